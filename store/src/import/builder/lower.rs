//! A builder that starts with a tree of the store.

use std::collections::HashMap;

use super::{Attributes, Builder, Content, DirId, LeafId, ROOT, Shape, refuse};
use crate::error::Result;
use crate::inode::{Body, Ino, InodeRecord};
use crate::root::Root;
use crate::tree::{Trees, walk};

impl Builder {
    /// Loads the tree of `root`. Inodes keep their numbers, so that unchanged parts are written as they were.
    pub fn from_tree(trees: &Trees, root: &Root, room: u64) -> Result<Builder> {
        let mut builder = Builder::new(room);
        builder.next_ino = root.next_ino;
        let mut linked = HashMap::new();
        // The directories above the current path, each with the length of its path.
        let mut above: Vec<(usize, DirId)> = Vec::new();
        walk(trees, root, &mut |path, record| {
            let Some(slash) = path.iter().rposition(|&b| b == b'/').filter(|_| path.len() > 1) else {
                builder.set_root(attributes(record));
                above.push((0, ROOT));
                return Ok(());
            };
            above.truncate(above.iter().rposition(|(length, _)| *length == slash).map_or(1, |i| i + 1));
            let parent = above.last().map_or(ROOT, |(_, directory)| *directory);
            let taken = builder.take(parent, &path[slash + 1..], record, &mut linked);
            if let Some(directory) = taken.map_err(|reason| refuse(&path[1..], &reason))? {
                above.push((path.len(), directory));
            }
            Ok(())
        })?;
        Ok(builder)
    }

    fn take(
        &mut self,
        parent: DirId,
        name: &[u8],
        record: &InodeRecord,
        linked: &mut HashMap<Ino, LeafId>,
    ) -> super::Reason<Option<DirId>> {
        let content = match &record.body {
            Body::Directory { .. } => {
                let directory = self.add_directory(parent, name, attributes(record))?;
                self.directories[directory.0].ino = record.ino;
                return Ok(Some(directory));
            }
            Body::Regular(content) => Content::Regular(content.clone()),
            Body::Symlink(target) => Content::Symlink(target.clone()),
            Body::Special => Content::Special(record.kind(), record.rdev),
        };
        if let Some(&leaf) = linked.get(&record.ino) {
            self.add_link(parent, name, leaf)?;
            return Ok(None);
        }
        let leaf = self.push(attributes(record), Shape::Content(content))?;
        self.leaves[leaf.0].ino = record.ino;
        self.add_link(parent, name, leaf)?;
        if record.nlink > 1 {
            linked.insert(record.ino, leaf);
        }
        Ok(None)
    }
}

fn attributes(record: &InodeRecord) -> Attributes {
    let (atime, mtime, ctime) = (record.atime, record.mtime, record.ctime);
    Attributes {
        mode: record.mode & 0o7777,
        uid: record.uid,
        gid: record.gid,
        mtime,
        other_times: (atime != mtime || ctime != mtime).then_some((atime, ctime)),
        xattrs: record.xattrs.clone(),
    }
}
