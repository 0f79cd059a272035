//! Paths in JSON. They are usually text, but may contain any byte except NUL.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as JSON: a string if it is UTF-8, else `{"hex": "…"}`, so that nothing is lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathText(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Hex { hex: String },
}

impl Serialize for PathText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                Form::Hex { hex: self.0.iter().map(|b| format!("{b:02x}")).collect() }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for PathText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(PathText(text.into_bytes())),
            Form::Hex { hex } => {
                let pair = |i: usize| hex.get(i..i + 2).and_then(|p| u8::from_str_radix(p, 16).ok());
                let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(pair).collect();
                bytes.map(PathText).ok_or_else(|| serde::de::Error::custom("bad hex digits"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        for bytes in [&b"/etc/x"[..], b"/a\xffb", b"", "/\u{e4}\n".as_bytes()] {
            let json = serde_json::to_string(&PathText(bytes.to_vec())).unwrap();
            assert_eq!(serde_json::from_str::<PathText>(&json).unwrap().0, bytes, "{json}");
        }
        assert_eq!(serde_json::to_string(&PathText(b"/a\xff".to_vec())).unwrap(), r#"{"hex":"2f61ff"}"#);
        assert!(serde_json::from_str::<PathText>(r#"{"hex":"zz"}"#).is_err());
    }
}
