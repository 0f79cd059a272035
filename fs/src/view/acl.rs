//! POSIX ACLs, as far as a file system has to keep them true: an access ACL and the permission bits say the same, and
//! new inodes inherit the directory's default ACL. The kernel enforces them.
//!
//! The format of the xattr values is `struct posix_acl_xattr_header` and `posix_acl_xattr_entry` of the kernel's
//! include/uapi/linux/posix_acl_xattr.h; the rules are those of acl(5).

use karapace_store::inode::{FileKind, Xattrs};

use crate::error::{Error, Result};

/// Name of the access ACL's xattr.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the default ACL's xattr.
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whether the name is that of an ACL.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// Permission bits and xattrs of a new inode.
pub(super) struct Inherited {
    pub permissions: u32,
    pub xattrs: Xattrs,
}

fn parse(value: &[u8]) -> Result<Vec<Entry>> {
    let bad = || Error::Invalid("not a POSIX ACL");
    let (head, entries) = value.split_at_checked(4).ok_or_else(bad)?;
    if head != VERSION.to_le_bytes() || entries.len() % 8 != 0 {
        return Err(bad());
    }
    let entry = |b: &[u8]| Entry {
        tag: u16::from_le_bytes([b[0], b[1]]),
        permissions: u16::from_le_bytes([b[2], b[3]]),
        id: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    Ok(entries.chunks_exact(8).map(entry).collect())
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    for e in entries {
        out.extend_from_slice(&e.tag.to_le_bytes());
        out.extend_from_slice(&e.permissions.to_le_bytes());
        out.extend_from_slice(&e.id.to_le_bytes());
    }
    out
}

/// The permission bits that an access ACL stands for, and whether they say all that it says.
pub(super) fn mode_of(value: &[u8], mode: u32) -> Result<(u32, bool)> {
    let entries = parse(value)?;
    let mut bits = mode & 0o777;
    let mut minimal = true;
    let mut group = None;
    for e in &entries {
        let permissions = u32::from(e.permissions & 7);
        match e.tag {
            USER_OBJ => bits = (bits & 0o077) | permissions << 6,
            OTHER => bits = (bits & 0o770) | permissions,
            GROUP_OBJ => group = group.or(Some(permissions)),
            MASK => {
                group = Some(permissions);
                minimal = false;
            }
            USER | GROUP => minimal = false,
            _ => return Err(Error::Invalid("not a POSIX ACL")),
        }
    }
    if let Some(mask) = entries.iter().find(|e| e.tag == MASK) {
        group = Some(u32::from(mask.permissions & 7));
    }
    if let Some(group) = group {
        bits = (bits & 0o707) | group << 3;
    }
    Ok((bits, minimal))
}

/// The xattrs after chmod to `mode`, when there is an access ACL to change.
pub(super) fn chmod(xattrs: &Xattrs, mode: u32) -> Result<Option<Xattrs>> {
    let Some(value) = xattrs.get(ACCESS) else { return Ok(None) };
    let mut entries = parse(value)?;
    restrict(&mut entries, mode, false);
    let mut changed = xattrs.clone();
    changed.set(ACCESS, &encode(&entries));
    Ok(Some(changed))
}

/// Sets the entries that the permission bits stand for: exactly, or (`and`) only taking away.
fn restrict(entries: &mut [Entry], mode: u32, and: bool) {
    let has_mask = entries.iter().any(|e| e.tag == MASK);
    for e in entries {
        let bits = match e.tag {
            USER_OBJ => mode >> 6,
            GROUP_OBJ if !has_mask => mode >> 3,
            MASK => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        let bits = (bits & 7) as u16;
        e.permissions = if and { e.permissions & bits } else { bits };
    }
}

/// What a new inode in a directory with these xattrs gets: the default ACL when there is one, else the umask counts.
pub(super) fn inherit(dir: &Xattrs, kind: FileKind, permissions: u32, umask: u32) -> Result<Inherited> {
    let default = dir.get(DEFAULT).filter(|_| kind != FileKind::Symlink);
    let Some(value) = default else {
        return Ok(Inherited { permissions: permissions & !(umask & 0o777), xattrs: Xattrs::default() });
    };
    let mut entries = parse(value)?;
    restrict(&mut entries, permissions, true);
    let access = encode(&entries);
    let (bits, minimal) = mode_of(&access, permissions)?;
    let mut xattrs = Xattrs::default();
    if !minimal {
        xattrs.set(ACCESS, &access);
    }
    if kind == FileKind::Directory {
        xattrs.set(DEFAULT, value);
    }
    Ok(Inherited { permissions: (permissions & !0o777) | bits, xattrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries: Vec<Entry> = entries
            .iter()
            .map(|(tag, permissions, id)| Entry { tag: *tag, permissions: *permissions, id: *id })
            .collect();
        encode(&entries)
    }

    #[test]
    fn an_acl_decides_the_bits() {
        let named =
            acl(&[(USER_OBJ, 7, !0), (USER, 6, 5), (GROUP_OBJ, 5, !0), (MASK, 4, !0), (OTHER, 0, !0)]);
        assert_eq!(mode_of(&named, 0o777).unwrap(), (0o740, false));
        let plain = acl(&[(USER_OBJ, 6, !0), (GROUP_OBJ, 4, !0), (OTHER, 4, !0)]);
        assert_eq!(mode_of(&plain, 0o777).unwrap(), (0o644, true));
        assert!(mode_of(b"junk", 0).is_err());
    }

    #[test]
    fn chmod_sets_the_mask_and_not_the_group() {
        let mut xattrs = Xattrs::default();
        xattrs.set(
            ACCESS,
            &acl(&[(USER_OBJ, 7, !0), (USER, 6, 5), (GROUP_OBJ, 5, !0), (MASK, 4, !0), (OTHER, 0, !0)]),
        );
        let changed = chmod(&xattrs, 0o471).unwrap().unwrap();
        let expected =
            acl(&[(USER_OBJ, 4, !0), (USER, 6, 5), (GROUP_OBJ, 5, !0), (MASK, 7, !0), (OTHER, 1, !0)]);
        assert_eq!(changed.get(ACCESS), Some(&expected[..]));
    }

    #[test]
    fn a_default_acl_replaces_the_umask() {
        let mut dir = Xattrs::default();
        let value =
            acl(&[(USER_OBJ, 7, !0), (USER, 7, 5), (GROUP_OBJ, 7, !0), (MASK, 7, !0), (OTHER, 5, !0)]);
        dir.set(DEFAULT, &value);
        let file = inherit(&dir, FileKind::Regular, 0o666, 0o077).unwrap();
        assert_eq!(file.permissions, 0o664);
        assert!(file.xattrs.get(ACCESS).is_some());
        assert!(file.xattrs.get(DEFAULT).is_none());
        let sub = inherit(&dir, FileKind::Directory, 0o777, 0o077).unwrap();
        assert_eq!(sub.xattrs.get(DEFAULT), Some(&value[..]));
        let without = inherit(&Xattrs::default(), FileKind::Regular, 0o666, 0o077).unwrap();
        assert_eq!(without.permissions, 0o600);
    }
}
