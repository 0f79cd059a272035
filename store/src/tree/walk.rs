//! Visiting a whole root.

use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::InodeRecord;
use crate::root::Root;

use super::Trees;

/// Calls `visit` with each path (`/` for the root, else `/a/b`) and inode, in path order, component by component:
/// parents before children. An inode with several names comes with each of them.
pub fn walk(
    _trees: &Trees,
    _root: &Root,
    _visit: &mut dyn FnMut(&[u8], &InodeRecord) -> Result<()>,
) -> Result<()> {
    todo!()
}

/// What an object is to what refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectRole {
    /// A [`Root`].
    Root,
    /// A directory listing, a link table, or a chunk of one.
    Tree,
    /// Bytes of files.
    Content,
    /// A [`crate::content::BlockList`].
    BlockList,
}

/// Calls `visit` with every object that the root object `root` stands on, itself first. What is below a root or a tree is
/// visited only where `visit` gives true: give false for what was seen before. Paths are not followed, so this costs less than [`walk`].
pub fn references(
    _trees: &Trees,
    _root: &ObjectId,
    _visit: &mut dyn FnMut(&ObjectId, ObjectRole) -> Result<bool>,
) -> Result<()> {
    todo!()
}
