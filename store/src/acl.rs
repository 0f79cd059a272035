//! POSIX ACLs as the kernel stores them in extended attributes, and their relation to permission bits.
//!
//! The format is that of `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` in the kernel's
//! include/uapi/linux/posix_acl_xattr.h; the rules are those of acl(5).

use crate::inode::{FileKind, Xattrs};

/// Name of the access ACL's attribute.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL's attribute.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Tag of the owner's entry.
pub const USER_OBJ: u16 = 0x01;
/// Tag of a user's entry.
pub const USER: u16 = 0x02;
/// Tag of the entry of the file's group.
pub const GROUP_OBJ: u16 = 0x04;
/// Tag of a group's entry.
pub const GROUP: u16 = 0x08;
/// Tag of the mask: the maximum permissions of named users, named groups and the file's group.
pub const MASK: u16 = 0x10;
/// Tag of the entry for everybody else.
pub const OTHER: u16 = 0x20;

/// The id of an entry that names no user or group.
pub const UNDEFINED: u32 = u32::MAX;

const VERSION: u32 = 2;

/// One entry. The kernel requires entries to be sorted by tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// To whom it applies.
    pub tag: u16,
    /// The user or group for [`USER`] and [`GROUP`]; otherwise [`UNDEFINED`].
    pub id: u32,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
}

/// The entries of an attribute's value; `None` when it does not have the format of an ACL.
pub fn parse(value: &[u8]) -> Option<Vec<Entry>> {
    let entries = value.strip_prefix(&VERSION.to_le_bytes())?;
    let entry = |b: &[u8]| Entry {
        tag: u16::from_le_bytes([b[0], b[1]]),
        permissions: u16::from_le_bytes([b[2], b[3]]),
        id: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    (entries.len() % 8 == 0).then(|| entries.chunks_exact(8).map(entry).collect())
}

/// Encodes the attribute's value.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        out.extend_from_slice(&entry.tag.to_le_bytes());
        out.extend_from_slice(&entry.permissions.to_le_bytes());
        out.extend_from_slice(&entry.id.to_le_bytes());
    }
    out
}

/// Whether the kernel accepts the ACL (its `posix_acl_valid`): exactly one entry each for owner, group and
/// others, a mask if users or groups are named, sorted by tag.
pub fn is_valid(entries: &[Entry]) -> bool {
    let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
    let names = count(USER) + count(GROUP) > 0;
    entries.is_sorted_by_key(|entry| entry.tag)
        && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
        && count(MASK) <= 1
        && (count(MASK) == 1 || !names)
        && entries.iter().all(|entry| match entry.tag {
            USER | GROUP => entry.id != UNDEFINED && entry.permissions <= 7,
            tag => matches!(tag, USER_OBJ | GROUP_OBJ | MASK | OTHER) && entry.permissions <= 7,
        })
}

/// Whether permission bits express the whole ACL: it names nobody and has no mask.
pub fn is_minimal(entries: &[Entry]) -> bool {
    entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
}

/// `mode` with the permission bits of an access ACL. The group's bits are those of the mask, if there is one.
pub fn mode_of(entries: &[Entry], mode: u32) -> u32 {
    let find = |tag| entries.iter().find(|entry| entry.tag == tag).map(|e| u32::from(e.permissions & 7));
    [(find(USER_OBJ), 6), (find(MASK).or(find(GROUP_OBJ)), 3), (find(OTHER), 0)]
        .into_iter()
        .filter_map(|(bits, shift)| Some((bits?, shift)))
        .fold(mode, |mode, (bits, shift)| mode & !(7 << shift) | bits << shift)
}

/// Makes the permission bits and the ACLs of an inode agree, as on Linux: the access ACL takes precedence,
/// and one that permission bits express completely is removed. An ACL that no Linux file system would accept
/// is removed, and `notes` says why: its format is invalid, or this kind of inode cannot have one.
///
/// An archiver may have stored in the header the permissions of the file's group (bsdtar), or the mask as in
/// stat(2) (GNU tar).
pub fn reconcile(kind: FileKind, mode: &mut u32, xattrs: &mut Xattrs, notes: &mut Vec<String>) {
    for (name, what) in [(ACCESS, "access"), (DEFAULT, "default")] {
        let Some(value) = xattrs.get(name) else { continue };
        let entries = parse(value);
        let reason = match (&entries, kind) {
            (_, FileKind::Symlink) => Some("symbolic links cannot have one"),
            (_, kind) if name == DEFAULT && kind != FileKind::Directory => {
                Some("only directories can have one")
            }
            (Some(entries), _) if entries.is_empty() || is_valid(entries) => None,
            _ => Some("Linux does not accept it"),
        };
        if let Some(reason) = reason {
            notes.push(format!("its {what} ACL was left out: {reason}"));
            xattrs.remove(name);
            continue;
        }
        let entries = entries.unwrap_or_default();
        if name == ACCESS {
            *mode = mode_of(&entries, *mode);
        }
        // Setting an ACL without entries removes it. Permission bits never express a default ACL.
        if entries.is_empty() || (name == ACCESS && is_minimal(&entries)) {
            xattrs.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, permissions, id): &(u16, u16, u32)| Entry { tag, permissions, id };
        encode(&entries.iter().map(entry).collect::<Vec<_>>())
    }

    fn named() -> Vec<u8> {
        acl(&[(USER_OBJ, 6, !0), (USER, 6, 5), (GROUP_OBJ, 4, !0), (MASK, 6, !0), (OTHER, 0, !0)])
    }

    fn minimal() -> Vec<u8> {
        acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 1, !0)])
    }

    #[test]
    fn values_are_read_as_they_are_written() {
        let entries = parse(&named()).unwrap();
        assert_eq!(encode(&entries), named());
        assert!(is_valid(&entries) && !is_minimal(&entries));
        assert_eq!(mode_of(&entries, 0o6777), 0o6660);
        assert_eq!(mode_of(&parse(&minimal()).unwrap(), 0o1000), 0o1751);
        for bad in [&named()[..5], b"\x01\0\0\0", b"", b"junk"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_invalid() {
        let (user, group, other) = ((USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 1, !0));
        let bad: [&[(u16, u16, u32)]; 9] = [
            &[user, group],
            &[user, user, group, other],
            &[group, user, other],
            &[user, (USER, 7, 5), group, other],
            &[user, group, (GROUP, 7, 5), other],
            &[user, (USER, 7, !0), group, (MASK, 7, !0), other],
            &[user, group, (MASK, 7, !0), (MASK, 7, !0), other],
            &[user, group, (OTHER, 8, !0)],
            &[user, group, other, (0x40, 7, !0)],
        ];
        for entries in bad {
            assert!(!is_valid(&parse(&acl(entries)).unwrap()), "{entries:?}");
        }
    }

    #[test]
    fn an_access_acl_decides_the_permission_bits() {
        // (kind, mode before, access, default) → (mode after, access stays, default stays, notes)
        type Case = (FileKind, u32, Option<Vec<u8>>, Option<Vec<u8>>);
        let invalid = acl(&[(USER_OBJ, 7, !0), (USER, 7, 5), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        let table: Vec<(Case, (u32, bool, bool, usize))> = vec![
            // As written by bsdtar: the group's own permissions in the mode.
            ((FileKind::Regular, 0o640, Some(named()), None), (0o660, true, false, 0)),
            ((FileKind::Regular, 0o6755, Some(named()), None), (0o6660, true, false, 0)),
            ((FileKind::Fifo, 0o777, Some(minimal()), None), (0o751, false, false, 0)),
            ((FileKind::Directory, 0o755, None, Some(minimal())), (0o755, false, true, 0)),
            ((FileKind::Directory, 0o755, Some(acl(&[])), Some(acl(&[]))), (0o755, false, false, 0)),
            ((FileKind::Regular, 0o755, None, Some(minimal())), (0o755, false, false, 1)),
            ((FileKind::Symlink, 0o777, Some(named()), None), (0o777, false, false, 1)),
            ((FileKind::Regular, 0o750, Some(invalid), None), (0o750, false, false, 1)),
            ((FileKind::Regular, 0o750, Some(b"junk".to_vec()), None), (0o750, false, false, 1)),
        ];
        for ((kind, mut mode, access, default), expected) in table {
            let mut xattrs: Xattrs = [(ACCESS, access), (DEFAULT, default), (b"user.x", Some(vec![1]))]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            let mut notes = Vec::new();
            reconcile(kind, &mut mode, &mut xattrs, &mut notes);
            let has = |name| xattrs.get(name).is_some();
            assert_eq!((mode, has(ACCESS), has(DEFAULT), notes.len()), expected, "{kind:?} {notes:?}");
            assert!(has(b"user.x"));
        }
    }
}
