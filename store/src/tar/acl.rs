//! POSIX ACLs: converts between the text in tar's `SCHILY.acl.*` records and the kernel's xattrs.

use std::collections::BTreeMap;

use super::encode::Records;
use super::pax::{Pax, decimal};
use crate::acl::{
    ACCESS, DEFAULT, Entry, GROUP, GROUP_OBJ, MASK, OTHER, UNDEFINED, USER, USER_OBJ, encode,
    parse as parse_value,
};
use crate::inode::Xattrs;

/// The records, and the xattrs they correspond to.
const KINDS: [(&str, &[u8]); 2] = [("SCHILY.acl.access", ACCESS), ("SCHILY.acl.default", DEFAULT)];

/// Converts `SCHILY.acl.access` and `.default` to `system.posix_acl_*`, unless the archive has those xattrs
/// itself. An ACL that cannot be converted (it gives a user or group only by name) is left out, with a note
/// in `notes`.
pub(super) fn from_records(pax: &Pax, xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>, notes: &mut Vec<String>) {
    for (record, xattr) in KINDS {
        let Some(text) = pax.get(record) else { continue };
        if xattrs.contains_key(xattr) {
            continue;
        }
        match parse(text) {
            Some(value) => {
                xattrs.insert(xattr.to_vec(), value);
            }
            None => notes.push(format!(
                "its ACL {:?} was left out: users and groups must be given by number (tar --numeric-owner)",
                String::from_utf8_lossy(text)
            )),
        }
    }
}

/// Adds the ACLs among these xattrs as text, with numeric users and groups. Skips values that are not ACLs.
pub(super) fn to_records(xattrs: &Xattrs, records: &mut Records) {
    for (record, xattr) in KINDS {
        if let Some(text) = xattrs.get(xattr).and_then(text) {
            records.insert(record.as_bytes().to_vec(), text.into_bytes());
        }
    }
}

fn text(value: &[u8]) -> Option<String> {
    let entries = parse_value(value).filter(|entries| !entries.is_empty())?;
    let texts: Option<Vec<String>> = entries.into_iter().map(entry_text).collect();
    Some(texts?.join(","))
}

fn entry_text(entry: Entry) -> Option<String> {
    let name = match entry.tag {
        USER_OBJ | USER => "user",
        GROUP_OBJ | GROUP => "group",
        MASK => "mask",
        OTHER => "other",
        _ => return None,
    };
    let qualifier = if matches!(entry.tag, USER | GROUP) { entry.id.to_string() } else { String::new() };
    let bit = |mask, letter| if entry.permissions & mask != 0 { letter } else { '-' };
    Some(format!("{name}:{qualifier}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')))
}

/// `None` if the text is not an ACL, or gives a user or group without a number.
fn parse(text: &[u8]) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for entry in text.split(|&b| b == b',' || b == b'\n') {
        let entry = entry.split(|&b| b == b'#').next()?.trim_ascii();
        if !entry.is_empty() {
            entries.push(parse_entry(entry)?);
        }
    }
    entries.sort_unstable();
    Some(encode(&entries))
}

/// `tag:qualifier:permissions[:number]`.
fn parse_entry(entry: &[u8]) -> Option<Entry> {
    let fields: Vec<&[u8]> = entry.split(|&b| b == b':').map(<[u8]>::trim_ascii).collect();
    // Mask and other may be written without the empty qualifier.
    let (tag, qualifier, permissions, number) = match fields[..] {
        [tag, permissions] => (tag, &b""[..], permissions, None),
        [tag, qualifier, permissions] => (tag, qualifier, permissions, None),
        [tag, qualifier, permissions, number] => (tag, qualifier, permissions, Some(number)),
        _ => return None,
    };
    let tag = match (tag, qualifier.is_empty()) {
        (b"user" | b"u", true) => USER_OBJ,
        (b"user" | b"u", false) => USER,
        (b"group" | b"g", true) => GROUP_OBJ,
        (b"group" | b"g", false) => GROUP,
        (b"mask" | b"m", true) => MASK,
        (b"other" | b"o", true) => OTHER,
        _ => return None,
    };
    let id = if qualifier.is_empty() {
        UNDEFINED
    } else {
        u32::try_from(decimal(number.unwrap_or(qualifier))?).ok()?
    };
    let permissions = permissions.iter().try_fold(0u16, |bits, b| {
        Some(match b {
            b'r' => bits | 4,
            b'w' => bits | 2,
            b'x' => bits | 1,
            b'-' => bits,
            _ => return None,
        })
    })?;
    Some(Entry { tag, id, permissions })
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
