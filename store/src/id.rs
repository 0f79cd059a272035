//! Typed identifiers: fixed-size byte strings, written as lower-case hexadecimal.
//!
//! Each kind has its own type, so that the compiler rejects a layer's hash where an object id is expected.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::error::{IoContext as _, Result, StoreError};

/// The text is not a valid identifier of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}: give exactly {digits} lower-case hexadecimal digits")]
pub struct ParseIdError {
    /// The text given (truncated to 80 characters).
    text: String,
    /// What was expected, with an article.
    expected: &'static str,
    /// The number of digits expected.
    digits: usize,
}

impl ParseIdError {
    pub(crate) fn new(text: &str, expected: &'static str, digits: usize) -> Self {
        Self { text: text.chars().take(80).collect(), expected, digits }
    }
}

impl From<ParseIdError> for StoreError {
    fn from(error: ParseIdError) -> Self {
        StoreError::Invalid(error.to_string())
    }
}

/// Writes `bytes` as lower-case hexadecimal.
pub(crate) fn write_hex(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
}

/// Decodes exactly `out.len()` bytes of lower-case hexadecimal; returns false if `text` is anything else.
pub(crate) fn read_hex(text: &[u8], out: &mut [u8]) -> bool {
    fn digit(c: u8) -> Option<u8> {
        match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        }
    }
    if text.len() != out.len() * 2 {
        return false;
    }
    for (pair, byte) in text.chunks_exact(2).zip(out) {
        match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return false,
        }
    }
    true
}

/// Defines an identifier of `$len` bytes; `$expected` names it in parse errors ("an object id").
macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes; the text form has twice as many digits.
            pub const LEN: usize = $len;

            /// The identifier with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Lower-case hexadecimal text.
            pub fn to_hex(&self) -> String {
                let mut text = String::with_capacity($len * 2);
                $crate::id::write_hex(&self.0, &mut text);
                text
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(&self.to_hex())
            }
        }

        impl ::std::fmt::Debug for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(&self.to_hex())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::id::ParseIdError;

            fn from_str(text: &str) -> ::std::result::Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                if $crate::id::read_hex(text.as_bytes(), &mut bytes) {
                    Ok(Self(bytes))
                } else {
                    Err($crate::id::ParseIdError::new(text, $expected, $len * 2))
                }
            }
        }

        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, s: S) -> ::std::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(d: D) -> ::std::result::Result<Self, D::Error> {
                let text = <::std::borrow::Cow<'de, str> as ::serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_id;

hex_id!(
    /// Name of an object: the blake3 hash of its bytes.
    ObjectId, 32, "an object id"
);
hex_id!(
    /// The hash of a layer, as shown to and typed by users. It does not cover times; [`RecordId`] does.
    LayerHash, 32, "a layer hash"
);
hex_id!(
    /// Name of a layer record: the blake3 hash of the record's bytes.
    RecordId, 32, "a layer record id"
);
hex_id!(
    /// Random name of one environment instance.
    InstanceId, 16, "an instance id"
);

impl ObjectId {
    /// The name of the object that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl From<blake3::Hash> for ObjectId {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl RecordId {
    /// The name of the record that holds `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl InstanceId {
    /// A fresh random id.
    pub fn random() -> Result<Self> {
        Ok(Self(random_bytes()?))
    }
}

/// `N` bytes from the kernel's random number generator.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).at("read", path)?;
    Ok(bytes)
}

/// A random file name of 32 hexadecimal digits.
pub(crate) fn random_name() -> Result<String> {
    let mut name = String::with_capacity(32);
    write_hex(&random_bytes::<16>()?, &mut name);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_is_lower_case() {
        let id = ObjectId::of(b"karapace");
        let text = id.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text, blake3::hash(b"karapace").to_hex().as_str());
        assert_eq!(text.parse::<ObjectId>(), Ok(id));
        assert_eq!(format!("{id:?}"), text);
    }

    #[test]
    fn anything_but_the_exact_digits_is_refused() {
        let text = ObjectId::of(b"x").to_hex();
        for bad in ["", &text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replace('a', "g")] {
            assert!(bad.parse::<ObjectId>().is_err() || bad == text, "{bad}");
        }
        let error = "zz".parse::<InstanceId>().unwrap_err().to_string();
        assert!(error.contains("an instance id") && error.contains("32"), "{error}");
    }

    #[test]
    fn serde_uses_the_text_form() {
        let id = InstanceId::random().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<InstanceId>(&json).unwrap(), id);
        assert_eq!(serde_json::from_reader::<_, InstanceId>(json.as_bytes()).unwrap(), id);
    }
}
