//! Which names, paths and attributes are allowed.

use super::{MAX_DEPTH, Reason};
use crate::error::StoreError;
use crate::inode::FileKind;

/// The name at the root that is reserved for the control files.
const RESERVED: &[u8] = b".karapace";

/// The only attributes in the namespace `system.`.
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// How many bytes of attribute names listxattr(2) can return for one inode, each with a NUL.
const MAX_NAMES: usize = 64 << 10;

/// The components of a path below the root.
pub(in crate::import) fn normalise(path: &[u8]) -> Reason<Vec<Box<[u8]>>> {
    let mut components: Vec<Box<[u8]>> = Vec::new();
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("a name with '..' could leave the tree".to_owned()),
            name if components.len() < MAX_DEPTH => components.push(name.into()),
            _ => return Err(too_deep()),
        }
    }
    Ok(components)
}

/// No path could reach such an entry; without a limit a small archive could demand any amount of work.
pub(super) fn too_deep() -> String {
    format!("it is nested deeper than {MAX_DEPTH} levels")
}

pub(super) fn check_name(at_root: bool, name: &[u8]) -> Reason<()> {
    if at_root && name == RESERVED {
        return Err("the name .karapace at the root is reserved for the control files".to_owned());
    }
    if name.len() > 255 {
        return Err("a component of its name is longer than 255 bytes".to_owned());
    }
    if name.contains(&0) {
        return Err("its name holds a NUL byte".to_owned());
    }
    Ok(())
}

/// Checks that Linux can hold the attributes; an archive may contain anything.
pub(in crate::import) fn check_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Reason<()> {
    let names: usize = xattrs.iter().map(|(name, _)| name.len() + 1).sum();
    if names > MAX_NAMES {
        return Err(format!("its {} extended attributes are more than Linux can list", xattrs.len()));
    }
    for (name, value) in xattrs {
        if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 64 << 10 {
            return Err(format!(
                "its extended attribute {:?} has a name or value that Linux does not allow",
                String::from_utf8_lossy(name)
            ));
        }
    }
    Ok(())
}

/// Why Linux would not let anybody set an attribute of this name on such an inode; `None` if it would.
/// Archives from other systems contain such attributes, and some file systems list them.
pub(in crate::import) fn why_not_settable(name: &[u8], kind: FileKind) -> Option<&'static str> {
    let below = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    if below(b"user.") {
        let may = matches!(kind, FileKind::Regular | FileKind::Directory);
        return (!may).then_some("Linux allows user attributes on files and directories only");
    }
    let known = below(b"trusted.") || below(b"security.") || ACLS.contains(&name);
    (!known).then_some("it is in no namespace that Linux has")
}

/// An error that names an entry.
pub(in crate::import) fn refuse(path: &[u8], reason: &str) -> StoreError {
    StoreError::Invalid(format!("cannot import {:?}: {reason}", String::from_utf8_lossy(path)))
}
