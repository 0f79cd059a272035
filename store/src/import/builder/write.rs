//! Writes the builder's tree to the store: resolves hard links, numbers inodes, writes directories bottom-up.

use std::collections::{BTreeMap, HashMap};

use super::trail::Trail;
use super::{
    Attributes, Builder, Child, Content, DirId, Directory, Leaf, LeafId, MAX_DEPTH, Reason, Shape, refuse,
};
use crate::batch::Batch;
use crate::content::FileContent;
use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO};
use crate::root::Root;
use crate::tree::{self, Entry, Target};

impl Builder {
    /// Resolves hard links, numbers inodes in path order, and writes all directories, the link table and the
    /// root object. Returns the root and the number of names below it.
    pub fn write(mut self, batch: &mut Batch) -> Result<(ObjectId, u64)> {
        self.settle()?;
        let order = self.number()?;
        let names = order.iter().map(|directory| self.directories[directory.0].children.len() as u64).sum();
        let mut linked = BTreeMap::new();
        // In reverse, so that a directory comes after everything below it.
        for directory in order.into_iter().rev() {
            self.write_directory(directory, batch, &mut linked)?;
        }
        let links = tree::write_links(batch, &mut linked.into_values())?;
        let inode = self.directories[self.root.0].record();
        let root = Root { inode, links, next_ino: self.next_ino }.write(batch)?;
        Ok((root, names))
    }

    /// Replaces pending hard links by their targets.
    pub fn settle(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.pending) {
            return Ok(());
        }
        let mut known = HashMap::new();
        let mut todo = vec![(self.root, Trail::default())];
        while let Some((directory, path)) = todo.pop() {
            let children: Vec<_> = self.directories[directory.0]
                .children
                .iter()
                .map(|(name, &child)| (name.clone(), child))
                .collect();
            for (name, child) in children {
                match child {
                    Child::Directory(below) => todo.push((below, path.below(name))),
                    Child::Leaf(leaf) => {
                        let target = self
                            .target(leaf, &mut known)
                            .map_err(|reason| refuse(&path.below(name.clone()).path(), &reason))?;
                        self.directories[directory.0].children.insert(name, Child::Leaf(target));
                    }
                }
            }
        }
        Ok(())
    }

    /// Follows a leaf that is a pending hard link to its target. Results are kept in `known`, so that each
    /// link of a long chain is followed once.
    fn target(&self, leaf: LeafId, known: &mut HashMap<LeafId, LeafId>) -> Reason<LeafId> {
        let mut chain = Vec::new();
        let mut at = leaf;
        let target = loop {
            let wanted = match &self.leaves[at.0].shape {
                Shape::Pending(wanted) => wanted,
                Shape::Same(found) => {
                    at = *found;
                    continue;
                }
                _ => break at,
            };
            match known.get(&at) {
                // The chain has come back to a link that is being followed.
                Some(&same) if same == at => return Err("it is a hard link to itself".to_owned()),
                Some(&target) => break target,
                None => known.insert(at, at),
            };
            chain.push(at);
            at = match self.find(self.root, wanted) {
                Some(Child::Leaf(leaf)) => leaf,
                Some(Child::Directory(_)) => return Err("it is a hard link to a directory".to_owned()),
                None => {
                    let wanted = wanted.join(&b'/');
                    let wanted = String::from_utf8_lossy(&wanted);
                    return Err(format!("it is a hard link to {wanted:?}, which is not in the archive"));
                }
            };
        };
        known.extend(chain.into_iter().map(|link| (link, target)));
        Ok(target)
    }

    /// Numbers every inode that has no number yet. Returns the directories, parents before children.
    pub fn number(&mut self) -> Result<Vec<DirId>> {
        self.directories[self.root.0].ino = ROOT_INO;
        let mut order = vec![self.root];
        let mut stack = vec![self.directories[self.root.0].list()];
        while let Some(level) = stack.last_mut() {
            let Some(child) = level.next() else {
                stack.pop();
                continue;
            };
            let ino = match child {
                Child::Directory(below) => &mut self.directories[below.0].ino,
                Child::Leaf(leaf) => {
                    self.leaves[leaf.0].names += 1;
                    &mut self.leaves[leaf.0].ino
                }
            };
            if *ino == 0 {
                *ino = self.next_ino;
                self.next_ino += 1;
            }
            if let Child::Directory(below) = child {
                self.check_place(below, stack.len())?;
                order.push(below);
                stack.push(self.directories[below.0].list());
            }
        }
        Ok(order)
    }

    /// Refuses what renames in an overlay could cause: a directory in two places, or nested too deeply.
    fn check_place(&mut self, directory: DirId, depth: usize) -> Result<()> {
        let twice = std::mem::replace(&mut self.directories[directory.0].taken, true);
        if !twice && depth <= MAX_DEPTH {
            return Ok(());
        }
        let path = self.path_of(directory);
        let reason = if twice {
            "it appears in two places: renames in the upper directory contradict each other".to_owned()
        } else {
            super::too_deep()
        };
        Err(refuse(&path, &reason))
    }

    /// Some path of a directory, for an error.
    fn path_of(&self, wanted: DirId) -> Vec<u8> {
        let mut todo = vec![(self.root, Vec::new())];
        while let Some((directory, path)) = todo.pop() {
            for (name, &child) in &self.directories[directory.0].children {
                let Child::Directory(below) = child else { continue };
                let path = if path.is_empty() { name.to_vec() } else { [&path, &b"/"[..], name].concat() };
                if below == wanted {
                    return path;
                }
                todo.push((below, path));
            }
        }
        Vec::new()
    }

    /// Writes a directory whose subdirectories have been written. Inodes with several names go to `linked`.
    fn write_directory(
        &mut self,
        directory: DirId,
        batch: &mut Batch,
        linked: &mut BTreeMap<Ino, InodeRecord>,
    ) -> Result<()> {
        let children = std::mem::take(&mut self.directories[directory.0].children);
        let mut entries = Vec::with_capacity(children.len());
        let mut subdirectories = 0;
        for (name, child) in children {
            let target = match child {
                Child::Directory(below) => {
                    subdirectories += 1;
                    Target::Inode(self.directories[below.0].record())
                }
                Child::Leaf(leaf) => self.leaves[leaf.0].write(linked),
            };
            entries.push(Entry { name, target });
        }
        let directory = &mut self.directories[directory.0];
        directory.subdirectories = subdirectories;
        directory.written = tree::write_dir(batch, &mut entries.into_iter())?;
        Ok(())
    }
}

impl Directory {
    fn list(&self) -> std::vec::IntoIter<Child> {
        self.children.values().copied().collect::<Vec<_>>().into_iter()
    }

    /// The record of a directory that has been written; takes its attributes.
    fn record(&mut self) -> InodeRecord {
        let body = Body::Directory { tree: self.written.tree, links: self.written.links };
        let attributes = std::mem::take(&mut self.attributes);
        attributes.record(self.ino, FileKind::Directory, 2 + self.subdirectories, 0, body)
    }
}

impl Leaf {
    /// What its next name refers to; the first call takes the record.
    fn write(&mut self, linked: &mut BTreeMap<Ino, InodeRecord>) -> Target {
        let (kind, rdev, body) = match std::mem::replace(&mut self.shape, Shape::Written(FileKind::Regular)) {
            Shape::Content(Content::Regular(content)) => (FileKind::Regular, 0, Body::Regular(content)),
            Shape::Content(Content::Symlink(target)) => (FileKind::Symlink, 0, Body::Symlink(target)),
            Shape::Content(Content::Special(kind, rdev)) => (kind, rdev, Body::Special),
            // Links are resolved and layers covered by now, so these cannot occur.
            Shape::Pending(_) | Shape::Same(_) | Shape::Content(Content::Below(..)) => {
                (FileKind::Regular, 0, Body::Regular(FileContent::empty()))
            }
            Shape::Written(kind) => {
                self.shape = Shape::Written(kind);
                return Target::Link { ino: self.ino, kind };
            }
        };
        self.shape = Shape::Written(kind);
        let record = std::mem::take(&mut self.attributes).record(self.ino, kind, self.names, rdev, body);
        if self.names == 1 {
            return Target::Inode(record);
        }
        linked.insert(self.ino, record);
        Target::Link { ino: self.ino, kind }
    }
}

impl Attributes {
    fn record(self, ino: Ino, kind: FileKind, nlink: u32, rdev: u64, body: Body) -> InodeRecord {
        let (atime, ctime) = self.other_times.unwrap_or((self.mtime, self.mtime));
        InodeRecord {
            ino,
            mode: kind.to_mode() | (self.mode & 0o7777),
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev,
            atime,
            mtime: self.mtime,
            ctime,
            xattrs: self.xattrs,
            body,
        }
    }
}
