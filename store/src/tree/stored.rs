//! A tree of the store as [`crate::paths`] needs it, to scan it and resolve paths in it.

use super::{Trees, resolve};
use crate::error::{Result, StoreError};
use crate::inode::{Body, FileKind, InodeRecord};
use crate::paths::{PathTree, components};
use crate::root::Root;

/// The tree of a root in the store.
pub struct StoredTree<'a> {
    trees: &'a Trees,
    root: &'a Root,
}

impl<'a> StoredTree<'a> {
    /// The tree with this root.
    pub fn new(trees: &'a Trees, root: &'a Root) -> StoredTree<'a> {
        StoredTree { trees, root }
    }

    /// The inode at a path; symbolic links are not followed. `None` when nothing is there.
    pub fn find(&self, path: &[u8]) -> Result<Option<InodeRecord>> {
        let mut at = self.root.inode.clone();
        for name in components(path) {
            match self.lookup(&at, name)? {
                Some((record, _)) => at = record,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

impl PathTree for StoredTree<'_> {
    type Node = InodeRecord;

    fn root(&self) -> Result<InodeRecord> {
        Ok(self.root.inode.clone())
    }

    fn lookup(&self, dir: &InodeRecord, name: &[u8]) -> Result<Option<(InodeRecord, FileKind)>> {
        let Body::Directory { tree: Some(tree), .. } = &dir.body else { return Ok(None) };
        let Some(target) = self.trees.lookup(tree, name)? else { return Ok(None) };
        let record = resolve(self.trees, self.root, target)?;
        let kind = record.kind();
        Ok(Some((record, kind)))
    }

    fn readlink(&self, link: &InodeRecord) -> Result<Vec<u8>> {
        match &link.body {
            Body::Symlink(target) => Ok(target.to_vec()),
            _ => Err(StoreError::invalid("it is not a symbolic link")),
        }
    }

    fn list(&self, dir: &InodeRecord) -> Result<Vec<Box<[u8]>>> {
        let mut names = Vec::new();
        if let Body::Directory { tree: Some(tree), .. } = &dir.body {
            self.trees.for_each(tree, &mut |entry| {
                names.push(entry.name().into());
                Ok(())
            })?;
        }
        Ok(names)
    }
}
