//! What differs between two roots.

use crate::error::Result;
use crate::inode::InodeRecord;
use crate::root::Root;

use super::Trees;

/// How a path differs.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It is in the new root only.
    Added(&'a InodeRecord),
    /// It is in the old root only.
    Removed(&'a InodeRecord),
    /// It is in both, of one kind, and differs.
    Modified {
        /// What it was.
        old: &'a InodeRecord,
        /// What it is.
        new: &'a InodeRecord,
    },
}

/// Calls `visit` with each path (`/` for the root, else `/a/b`) that differs, in path order, component by component:
/// parents before children.
///
/// Equal subtrees are not opened, except to find the names of a linked inode that changed. What is below an added or
/// removed directory is visited too. A path whose kind changed is removed (with what is below it), then added.
/// A path is modified when anything but atime, ctime, number, link count or listing differs, or when it is one of several
/// names in either root and the inode is another one; for directories times do not count.
pub fn diff(
    _trees: &Trees,
    _old: Option<&Root>,
    _new: &Root,
    _visit: &mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    todo!()
}
