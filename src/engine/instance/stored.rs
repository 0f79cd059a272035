//! Reads single files of a stored tree, as a program inside would find them.

use karapace_store::content::{FileContent, read_at};
use karapace_store::error::Result;
use karapace_store::inode::{Body, InodeRecord};
use karapace_store::paths::find;
use karapace_store::tree::{StoredTree, Trees};

/// The content, if it is a regular file.
pub(in crate::engine) fn content(record: &Option<InodeRecord>) -> Option<&FileContent> {
    match record.as_ref().map(|record| &record.body) {
        Some(Body::Regular(content)) => Some(content),
        _ => None,
    }
}

/// The inode at a path, with all symlinks followed inside the tree.
pub(in crate::engine) fn follow(tree: &StoredTree<'_>, path: &[u8]) -> Result<Option<InodeRecord>> {
    Ok(find(tree, path)?.map(|(record, _)| record))
}

/// The first bytes of a file, at most `most`.
pub(in crate::engine) fn read_up_to(trees: &Trees, content: &FileContent, most: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; most as usize];
    let length = read_at(trees.store(), content, 0, &mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}
