//! POSIX ACLs, as far as the file system must keep them consistent: an access ACL must agree with the
//! permission bits, and new inodes inherit the directory's default ACL. The kernel enforces them.
//!
//! [`karapace_store::acl`] defines the format and the rules.

use karapace_store::acl::{
    self, DEFAULT, Entry, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, encode, is_minimal,
};
use karapace_store::inode::{FileKind, Xattrs};

use crate::error::{Error, Result};

pub(super) use karapace_store::acl::ACCESS;

/// Whether this is the name of an ACL xattr.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Permission bits and xattrs of a new inode.
pub(super) struct Inherited {
    pub permissions: u32,
    pub xattrs: Xattrs,
}

fn parse(value: &[u8]) -> Result<Vec<Entry>> {
    let known = |entry: &Entry| matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
    let entries = acl::parse(value).filter(|entries| entries.iter().all(known));
    entries.ok_or(Error::Invalid("not a POSIX ACL"))
}

/// The permission bits equivalent to an access ACL, and whether they express all of it.
pub(super) fn mode_of(value: &[u8], mode: u32) -> Result<(u32, bool)> {
    let entries = parse(value)?;
    Ok((acl::mode_of(&entries, mode) & 0o777, is_minimal(&entries)))
}

/// The xattrs after a chmod to `mode`; `None` if there is no access ACL to change.
pub(super) fn chmod(xattrs: &Xattrs, mode: u32) -> Result<Option<Xattrs>> {
    let Some(value) = xattrs.get(ACCESS) else { return Ok(None) };
    let mut entries = parse(value)?;
    restrict(&mut entries, mode, false);
    let mut changed = xattrs.clone();
    changed.set(ACCESS, &encode(&entries));
    Ok(Some(changed))
}

/// Applies permission bits to the corresponding entries: sets them, or with `and` only removes permissions.
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

/// Permissions and xattrs of a new inode in a directory with the xattrs `dir`: from the default ACL if there
/// is one, otherwise with the umask applied.
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
