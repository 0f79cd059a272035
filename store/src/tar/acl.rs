//! POSIX ACLs: the text that tar writers put into `SCHILY.acl.*`, and the xattr that the kernel keeps.

use std::collections::BTreeMap;

use super::encode::Records;
use super::pax::{Pax, decimal};
use crate::inode::Xattrs;

const VERSION: u32 = 2;
/// The id of entries that name nobody.
const UNDEFINED: u32 = u32::MAX;

/// The records and the xattrs that they stand for.
const KINDS: [(&str, &str); 2] =
    [("SCHILY.acl.access", "system.posix_acl_access"), ("SCHILY.acl.default", "system.posix_acl_default")];

/// Turns `SCHILY.acl.access` and `.default` into `system.posix_acl_*`, unless the archive carries those xattrs as they are.
/// An ACL that cannot be turned (a user or group by name only) is left out, and `notes` says so.
pub(super) fn from_records(pax: &Pax, xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>, notes: &mut Vec<String>) {
    for (record, xattr) in KINDS {
        let Some(text) = pax.get(record) else { continue };
        if xattrs.contains_key(xattr.as_bytes()) {
            continue;
        }
        match parse(text) {
            Some(value) => {
                xattrs.insert(xattr.as_bytes().to_vec(), value);
            }
            None => notes.push(format!(
                "its ACL {:?} was left out: users and groups must be given by number (tar --numeric-owner)",
                String::from_utf8_lossy(text)
            )),
        }
    }
}

/// Adds the ACLs among these xattrs as text, users and groups by number. A value that is no ACL has no text.
pub(super) fn to_records(xattrs: &Xattrs, records: &mut Records) {
    for (record, xattr) in KINDS {
        if let Some(text) = xattrs.get(xattr.as_bytes()).and_then(text) {
            records.insert(record.as_bytes().to_vec(), text.into_bytes());
        }
    }
}

fn text(value: &[u8]) -> Option<String> {
    let entries = value.strip_prefix(&VERSION.to_le_bytes())?;
    if entries.is_empty() || entries.len() % 8 != 0 {
        return None;
    }
    let texts: Option<Vec<String>> = entries.chunks_exact(8).map(entry_text).collect();
    Some(texts?.join(","))
}

fn entry_text(entry: &[u8]) -> Option<String> {
    let tag = u16::from_le_bytes(entry[..2].try_into().ok()?);
    let bits = u16::from_le_bytes(entry[2..4].try_into().ok()?);
    let id = u32::from_le_bytes(entry[4..].try_into().ok()?);
    let name = match tag {
        0x01 | 0x02 => "user",
        0x04 | 0x08 => "group",
        0x10 => "mask",
        0x20 => "other",
        _ => return None,
    };
    let qualifier = if matches!(tag, 0x02 | 0x08) { id.to_string() } else { String::new() };
    let bit = |mask, letter| if bits & mask != 0 { letter } else { '-' };
    Some(format!("{name}:{qualifier}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')))
}

/// `None` when the text is no ACL, or names somebody without a number.
fn parse(text: &[u8]) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for entry in text.split(|&b| b == b',' || b == b'\n') {
        let entry = entry.split(|&b| b == b'#').next()?.trim_ascii();
        if !entry.is_empty() {
            entries.push(parse_entry(entry)?);
        }
    }
    entries.sort_unstable();
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Some(value)
}

/// `tag:qualifier:permissions[:number]` → (tag, id, permissions).
fn parse_entry(entry: &[u8]) -> Option<(u16, u32, u16)> {
    let fields: Vec<&[u8]> = entry.split(|&b| b == b':').map(<[u8]>::trim_ascii).collect();
    // Mask and other may be written without their empty qualifier.
    let (tag, qualifier, permissions, number) = match fields[..] {
        [tag, permissions] => (tag, &b""[..], permissions, None),
        [tag, qualifier, permissions] => (tag, qualifier, permissions, None),
        [tag, qualifier, permissions, number] => (tag, qualifier, permissions, Some(number)),
        _ => return None,
    };
    let tag = match (tag, qualifier.is_empty()) {
        (b"user" | b"u", true) => 0x01,
        (b"user" | b"u", false) => 0x02,
        (b"group" | b"g", true) => 0x04,
        (b"group" | b"g", false) => 0x08,
        (b"mask" | b"m", true) => 0x10,
        (b"other" | b"o", true) => 0x20,
        _ => return None,
    };
    let id = if qualifier.is_empty() {
        UNDEFINED
    } else {
        u32::try_from(decimal(number.unwrap_or(qualifier))?).ok()?
    };
    let bits = permissions.iter().try_fold(0u16, |bits, b| {
        Some(match b {
            b'r' => bits | 4,
            b'w' => bits | 2,
            b'x' => bits | 1,
            b'-' => bits,
            _ => return None,
        })
    })?;
    Some((tag, id, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kernels_form() {
        let value = parse(b"user::rwx,user:joe:r-x:1000,group::r--,mask::r-x,other::---").unwrap();
        let mut expected = vec![2, 0, 0, 0];
        for (tag, bits, id) in
            [(1u8, 7u8, u32::MAX), (2, 5, 1000), (4, 4, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)]
        {
            expected.extend_from_slice(&[tag, 0, bits, 0]);
            expected.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(value, expected);
        assert_eq!(text(&value).unwrap(), "user::rwx,user:1000:r-x,group::r--,mask::r-x,other::---");
        for bad in [&value[..value.len() - 1], &value[..4], &[1, 0, 0, 0], &[]] {
            assert_eq!(text(bad), None);
        }
        assert!(parse(b"user:joe:rwx").is_none());
        assert!(parse(b"user:7:rwx\nother:r-x").is_some());
    }
}
