//! PAX extended header records: `<length> <key>=<value>\n`, values of any bytes.

use std::collections::BTreeMap;

use crate::inode::Timestamp;

/// Size limit of one extended header, in bytes.
pub(super) const MAX_PAX: u64 = 8 << 20;

/// Limit of the memory taken by the records of all global headers, in bytes.
const MAX_GLOBAL: usize = 64 << 10;

/// Records by key; an empty value cancels a global one.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The values of `GNU.sparse.offset` (true) and `GNU.sparse.numbytes` of format 0.0, which repeat, in
    /// order.
    pub sparse_pairs: Vec<(bool, u64)>,
}

impl Pax {
    /// Adds the records of one header; a later record with the same key replaces an earlier one.
    pub fn parse(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let blank = bytes.iter().take(20).position(|&b| b == b' ').ok_or("a PAX record has no length")?;
            let length = decimal(&bytes[..blank]).ok_or("a PAX record's length is not a number")?;
            let length = usize::try_from(length).map_err(|_| "a PAX record's length is too large")?;
            if length <= blank + 1 || length > bytes.len() {
                return Err("a PAX record reaches beyond its header");
            }
            let record = &bytes[blank + 1..length];
            bytes = &bytes[length..];
            let record = record.strip_suffix(b"\n").ok_or("a PAX record does not end in a newline")?;
            let equals = record.iter().position(|&b| b == b'=').ok_or("a PAX record has no '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let value = decimal(value).ok_or("a GNU.sparse record is not a number")?;
                    self.sparse_pairs.push((key == b"GNU.sparse.offset", value));
                }
                _ => {
                    self.records.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Adds the records of `other`, which take precedence.
    pub fn overlay(&mut self, other: Pax) {
        self.records.extend(other.records);
        self.sparse_pairs = other.sparse_pairs;
    }

    /// Checks that these records may apply to all following members. Each member keeps a copy of them, so an
    /// archive of short members could otherwise demand any amount of memory.
    pub fn check_global(&self) -> Result<(), &'static str> {
        let weight: usize = self.records.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
        if weight > MAX_GLOBAL || !self.sparse_pairs.is_empty() {
            return Err("its global PAX headers are too large");
        }
        let own = |key: &[u8]| {
            matches!(key, b"path" | b"linkpath" | b"size")
                || [&b"SCHILY."[..], b"LIBARCHIVE.", b"RHT.", b"GNU.sparse."]
                    .iter()
                    .any(|p| key.starts_with(p))
        };
        match self.records.keys().any(|key| own(key)) {
            true => Err("a global PAX header has a record that is allowed for single members only"),
            false => Ok(()),
        }
    }

    /// A record's value; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice).filter(|v| !v.is_empty())
    }

    pub fn number(&self, key: &str) -> Result<Option<u64>, &'static str> {
        self.get(key).map(|v| decimal(v).ok_or("a PAX record that must be a number is not one")).transpose()
    }

    pub fn mtime(&self) -> Result<Option<Timestamp>, &'static str> {
        self.get("mtime").map(|v| time(v).ok_or("the PAX mtime is not a time")).transpose()
    }

    /// Extended attributes from `SCHILY.xattr.*`, `LIBARCHIVE.xattr.*` and `RHT.security.selinux`. If two
    /// records name the same attribute, SCHILY's raw bytes win.
    pub fn xattrs(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
        let mut all = BTreeMap::new();
        for (key, value) in &self.records {
            if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let name = percent_decode(name, None);
                all.insert(name, base64(value).ok_or("a LIBARCHIVE.xattr record is not base64")?);
            } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                all.insert(percent_decode(name, Some(b"%=")), value.clone());
            }
        }
        if let Some(label) = self.get("RHT.security.selinux") {
            // The record omits the NUL that the kernel stores at the end of a label.
            all.entry(b"security.selinux".to_vec()).or_insert_with(|| [label, b"\0"].concat());
        }
        Ok(all)
    }
}

/// Decodes `%XX`: any byte, or only those in `only` (GNU tar escapes just `%` and `=`).
fn percent_decode(text: &[u8], only: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let hex = (first == b'%').then(|| tail.get(..2)).flatten();
        let byte = hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match byte {
            Some(b) if only.is_none_or(|set| set.contains(&b)) => {
                out.push(b);
                rest = &tail[2..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Encodes a name so that [`Pax::xattrs`] decodes it from a SCHILY record.
pub(super) fn percent_encode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for &b in name {
        match b {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            _ => out.push(b),
        }
    }
    out
}

/// Parses decimal digits; `None` for anything else, or on overflow.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &b| match b {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(b - b'0')),
        _ => None,
    })
}

/// `[-]seconds[.fraction]`; digits beyond nanoseconds are dropped.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let secs = i64::try_from(decimal(&text[..dot])?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    let mut nanos = 0u32;
    for i in 0..9 {
        let digit = match fraction.get(i) {
            Some(b @ b'0'..=b'9') => u32::from(b - b'0'),
            Some(_) => return None,
            None => 0,
        };
        nanos = nanos * 10 + digit;
    }
    Some(match (negative, nanos) {
        (false, _) => Timestamp { secs, nanos },
        (true, 0) => Timestamp { secs: -secs, nanos },
        (true, _) => Timestamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0u32, 0u32);
    for &b in text {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_fractions_and_signs() {
        assert_eq!(time(b"12"), Some(Timestamp { secs: 12, nanos: 0 }));
        assert_eq!(time(b"12.5"), Some(Timestamp { secs: 12, nanos: 500_000_000 }));
        assert_eq!(time(b"12.1234567899"), Some(Timestamp { secs: 12, nanos: 123_456_789 }));
        assert_eq!(time(b"-1.25"), Some(Timestamp { secs: -2, nanos: 750_000_000 }));
        assert_eq!(time(b"-3"), Some(Timestamp { secs: -3, nanos: 0 }));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn records_keep_any_bytes() {
        let mut pax = Pax::default();
        pax.parse(b"26 SCHILY.xattr.user.a=\0\n\n").unwrap();
        pax.parse(b"13 path=a\xffb=\n").unwrap();
        assert_eq!(pax.get("path"), Some(&b"a\xffb="[..]));
        assert_eq!(pax.xattrs().unwrap()[&b"user.a"[..]], b"\0\n");
    }

    #[test]
    fn broken_records_are_refused() {
        for bad in [&b"99 path=a\n"[..], b"3 \n", b"x path=a\n", b"9 path=ab", b"8 pathx\n", b"0 a=b\n"] {
            assert!(Pax::default().parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn libarchive_names_and_values() {
        let mut pax = Pax::default();
        pax.parse(b"35 LIBARCHIVE.xattr.user.a%20b=aGk\n").unwrap();
        assert_eq!(pax.xattrs().unwrap()[&b"user.a b"[..]], b"hi");
        assert_eq!(base64(b"aGk="), Some(b"hi".to_vec()));
        assert_eq!(base64(b"aGk"), Some(b"hi".to_vec()));
        assert_eq!(base64(b"a*"), None);
        assert_eq!(percent_decode(&percent_encode(b"user.a=%b"), Some(b"%=")), b"user.a=%b");
    }
}
