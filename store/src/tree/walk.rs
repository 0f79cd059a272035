//! Visits a whole tree.

use crate::error::{Result, StoreError};
use crate::inode::{Body, InodeRecord};
use crate::root::Root;

use super::cursor::Cursor;
use super::{Keys, Target, Trees};

/// Calls `visit` with each path (`/` for the root, else `/a/b`) and its inode, in the order of paths compared
/// by component: parents before children. An inode with several names is visited once for each.
///
/// # Errors
/// When a tree cannot be read; also any error of `visit`.
pub fn walk(
    trees: &Trees,
    root: &Root,
    visit: &mut dyn FnMut(&[u8], &InodeRecord) -> Result<()>,
) -> Result<()> {
    visit(b"/", &root.inode)?;
    let mut path = Vec::new();
    // The open directories, each with the length of its path. Not recursive: a tree may be deeper than the
    // thread's stack allows.
    let mut stack = vec![(Cursor::new(root.tree(), Keys::Names), 0)];
    while let Some((cursor, length)) = stack.last_mut() {
        let Some(entry) = cursor.peek(trees)? else {
            stack.pop();
            continue;
        };
        path.truncate(*length);
        path.push(b'/');
        path.extend_from_slice(entry.name());
        let target = cursor.target()?;
        cursor.advance();
        let Some(target) = target else { continue };
        let record = resolve(trees, root, target)?;
        visit(&path, &record)?;
        if let Body::Directory { tree: Some(tree), .. } = &record.body {
            stack.push((Cursor::new(Some(tree), Keys::Names), path.len()));
        }
    }
    Ok(())
}

/// The inode that an entry of `root` refers to.
pub(crate) fn resolve(trees: &Trees, root: &Root, target: Target) -> Result<InodeRecord> {
    match target {
        Target::Inode(record) => Ok(record),
        Target::Link { ino, kind } => match trees.link(root, ino)? {
            Some(record) if record.kind() == kind => Ok(record),
            found => {
                let table = root.links.map_or_else(|| "(none)".to_owned(), |id| id.to_hex());
                let what = if found.is_some() {
                    "has another kind than one of its names says"
                } else {
                    "is missing"
                };
                Err(StoreError::corrupt("link table", table, format!("inode {ino} {what}")))
            }
        },
    }
}
