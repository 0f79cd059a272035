//! The inode table. Applying items is the only way to change it.
//!
//! An operation works out the items that describe its result, journals them, and applies them. Opening an
//! upper applies the same items from disk, so recovery reproduces the state before the crash.

mod items;
pub(crate) mod listing;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;

use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, MAX_INO, ROOT_INO, Timestamp, Xattrs};
use karapace_store::root::Root;
use karapace_store::tree::{Target, Trees};
use lru::LruCache;

use crate::attr::HeadRef;
use crate::error::{Error, Result};
use crate::upper::data::DataFile;
use crate::upper::record::Place;
use crate::view::node::{FileBody, Node, NodeBody};

use listing::Listing;

pub(crate) use items::attr_item;

/// Number of directory listings cached.
const LISTINGS: usize = 32;

/// A table whose `most` is below this is not worth shrinking.
const FEW: usize = 4096;

/// What a directory entry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub ino: Ino,
    pub kind: FileKind,
}

/// All mutable state of a view, behind one lock.
pub(crate) struct State {
    /// Boxed because the map may have up to twice as many slots as entries.
    pub nodes: HashMap<Ino, Box<Node>>,
    /// The dirty inodes, and some that were dirty. Avoids scanning all inodes for the dirty ones.
    dirty: BTreeSet<Ino>,
    /// Files with fresh blocks, and some that had them.
    pub fresh: BTreeSet<Ino>,
    /// Highest number of inodes in the table since it was last shrunk.
    most: usize,
    /// The lower view.
    pub root: Arc<Root>,
    pub head: HeadRef,
    pub next_ino: Ino,
    /// Linked inodes removed since the head; a commit removes them from the link table.
    pub gone_links: BTreeSet<Ino>,
    /// Incremented with every change.
    pub generation: u64,
    /// Data files of removed inodes that a running commit may still read; removed when the commit ends.
    pub deferred: Option<Vec<Arc<DataFile>>>,
    pub listings: LruCache<Ino, Arc<Listing>>,
}

impl State {
    /// A table that holds only the root.
    pub fn new(root: Arc<Root>, head: HeadRef) -> State {
        let mut nodes = HashMap::new();
        nodes.insert(ROOT_INO, Box::new(Node::from_record(root.inode.clone(), None, false)));
        State {
            nodes,
            dirty: BTreeSet::new(),
            fresh: BTreeSet::new(),
            most: 0,
            next_ino: root.next_ino,
            root,
            head,
            gone_links: BTreeSet::new(),
            generation: 0,
            deferred: None,
            listings: LruCache::new(NonZeroUsize::new(LISTINGS).unwrap_or(NonZeroUsize::MIN)),
        }
    }

    pub fn node(&self, ino: Ino) -> Result<&Node> {
        self.nodes.get(&ino).map(|node| &**node).ok_or(Error::Stale)
    }

    pub fn node_mut(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).map(|node| &mut **node).ok_or(Error::Stale)
    }

    /// The dirty inodes, ordered by number.
    pub fn dirty_nodes(&self) -> impl Iterator<Item = (Ino, &Node)> {
        let nodes = self.dirty.iter().filter_map(|ino| Some((*ino, &**self.nodes.get(ino)?)));
        nodes.filter(|(_, node)| node.dirty)
    }

    /// Called after a checkpoint, which empties the journal: no `Touched` item is in it any more.
    pub fn clear_touched(&mut self) {
        for ino in &self.dirty {
            if let Some(node) = self.nodes.get_mut(ino) {
                node.touched = false;
            }
        }
    }

    /// Called after inodes became clean.
    pub fn drop_clean(&mut self) {
        let nodes = &self.nodes;
        self.dirty.retain(|ino| nodes.get(ino).is_some_and(|node| node.dirty));
    }

    /// The node of a directory that still has a name.
    pub fn live_dir(&self, ino: Ino) -> Result<&Node> {
        let node = self.node(ino)?;
        match &node.body {
            NodeBody::Dir(_) if node.is_orphan() => Err(Error::NotFound),
            NodeBody::Dir(_) => Ok(node),
            _ => Err(Error::NotDirectory),
        }
    }

    /// Resolves `name` in the directory; the inode need not be in the table.
    pub fn entry(&self, trees: &Trees, dir: Ino, name: &[u8]) -> Result<Option<Named>> {
        let body = self.live_dir(dir)?.dir().ok_or(Error::NotDirectory)?;
        if let Some(change) = body.changes.get(name) {
            return match change {
                None => Ok(None),
                Some(ino) => Ok(Some(Named { ino: *ino, kind: self.node(*ino)?.kind() })),
            };
        }
        let Some(tree) = &body.tree else { return Ok(None) };
        Ok(trees.lookup(tree, name)?.map(|target| match target {
            Target::Inode(record) => Named { ino: record.ino, kind: record.kind() },
            Target::Link { ino, kind } => Named { ino, kind },
        }))
    }

    /// Like `entry`, but also loads the inode into the table.
    pub fn load(&mut self, trees: &Trees, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let body = self.live_dir(dir)?.dir().ok_or(Error::NotDirectory)?;
        if let Some(change) = body.changes.get(name) {
            return Ok(*change);
        }
        let Some(tree) = body.tree else { return Ok(None) };
        match trees.lookup(&tree, name)? {
            None => Ok(None),
            Some(target) => Ok(Some(self.insert_lower(trees, dir, name, target)?)),
        }
    }

    /// Inserts the inode of a lower entry unless it is already in the table.
    fn insert_lower(&mut self, trees: &Trees, dir: Ino, name: &[u8], target: Target) -> Result<Ino> {
        let (ino, record, linked) = match target {
            Target::Inode(record) => (record.ino, Some(record), false),
            Target::Link { ino, .. } => (ino, None, true),
        };
        if self.nodes.contains_key(&ino) {
            return Ok(ino);
        }
        let record = match record {
            Some(record) => record,
            None => trees.link(&self.root, ino)?.ok_or_else(|| {
                Error::Corrupt(format!("inode {ino} is not in the link table of {}", self.head.root))
            })?,
        };
        let place = (!linked).then(|| Place { parent: dir, name: name.into() });
        self.insert(ino, Node::from_record(record, place, linked));
        Ok(ino)
    }

    /// Inserts a node and counts it in its parent's `children`.
    fn insert(&mut self, ino: Ino, node: Node) {
        if let Some(place) = &node.place
            && let Some(parent) = self.nodes.get_mut(&place.parent)
        {
            parent.children += 1;
        }
        self.nodes.insert(ino, Box::new(node));
        self.most = self.most.max(self.nodes.len());
    }

    /// Shrinks the table if most of the inodes it once held are gone. Returns whether it did.
    pub fn shrink(&mut self) -> bool {
        let shrinks = self.most >= FEW && self.nodes.len() < self.most / 2;
        if shrinks {
            self.most = self.nodes.len();
            self.nodes.shrink_to_fit();
            self.listings.clear();
        }
        shrinks
    }

    /// Drops `n` kernel references and every inode that is no longer needed. Returns the data files to
    /// remove.
    pub fn forget(&mut self, ino: Ino, n: u64) -> Forgotten {
        let mut forgotten = Forgotten::default();
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(n);
            self.release(ino, &mut forgotten);
        }
        forgotten
    }

    /// Drops `ino`, then its ancestors, as long as neither the kernel, a child nor a change holds them.
    pub fn release(&mut self, mut ino: Ino, forgotten: &mut Forgotten) {
        while ino != ROOT_INO {
            let Some(node) = self.nodes.get(&ino) else { return };
            let held = node.lookups > 0 || node.children > 0 || (node.dirty && !node.is_orphan());
            if held {
                return;
            }
            let Some(node) = self.nodes.remove(&ino) else { return };
            self.listings.pop(&ino);
            if node.dirty {
                self.dirty.remove(&ino);
            }
            if node.is_orphan() && node.dirty {
                if node.linked {
                    self.note_gone(ino);
                }
                if let Some(data) = node.file().and_then(FileBody::data) {
                    data.gone_with(node.meta.size);
                    match &mut self.deferred {
                        Some(deferred) => deferred.push(data.clone()),
                        None => forgotten.data.push(data.clone()),
                    }
                }
            }
            match node.place {
                Some(place) => {
                    if let Some(parent) = self.nodes.get_mut(&place.parent) {
                        parent.children = parent.children.saturating_sub(1);
                    }
                    ino = place.parent;
                }
                None => return,
            }
        }
    }

    /// Notes that a linked inode is gone. An inode created since the head is in no link table.
    fn note_gone(&mut self, ino: Ino) {
        if ino < self.root.next_ino {
            self.gone_links.insert(ino);
        }
    }

    /// Allocates a number that no inode of the view ever had.
    pub fn allocate(&mut self) -> Result<Ino> {
        let ino = self.next_ino;
        if ino > MAX_INO {
            return Err(Error::NoSpace);
        }
        self.next_ino += 1;
        Ok(ino)
    }

    /// Called after a replay: recounts children, because a child may have been inserted before its parent.
    pub fn recount_children(&mut self) {
        let parents: Vec<Ino> =
            self.nodes.values().filter_map(|n| n.place.as_ref().map(|p| p.parent)).collect();
        self.nodes.values_mut().for_each(|n| n.children = 0);
        for parent in parents {
            if let Some(node) = self.nodes.get_mut(&parent) {
                node.children += 1;
            }
        }
    }

    /// Path from the root of an inode that has one name.
    pub fn path_of(&self, ino: Ino) -> Result<Vec<u8>> {
        let (mut names, mut at) = (Vec::new(), ino);
        while let Some(place) = &self.node(at)?.place {
            names.push(&*place.name);
            at = place.parent;
        }
        let path = names.iter().rev().flat_map(|name| [b"/", *name].concat()).collect::<Vec<u8>>();
        Ok(if path.is_empty() { b"/".to_vec() } else { path })
    }

    /// The parent of a directory. The root is its own parent.
    pub fn parent_of(&self, ino: Ino) -> Ino {
        self.nodes.get(&ino).and_then(|n| n.place.as_ref()).map_or(ROOT_INO, |p| p.parent)
    }
}

/// Work left over from forgetting inodes, to be done without the lock.
#[derive(Default)]
pub(crate) struct Forgotten {
    pub data: Vec<Arc<DataFile>>,
}

/// A new inode, not yet named anywhere.
pub(crate) struct NewInode {
    pub ino: Ino,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub xattrs: Xattrs,
    pub body: Body,
}

impl NewInode {
    /// The inode as a record with all times `now`.
    pub fn record(self, now: Timestamp) -> InodeRecord {
        let nlink = if matches!(self.body, Body::Directory { .. }) { 2 } else { 1 };
        InodeRecord {
            ino: self.ino,
            mode: self.mode,
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            atime: now,
            mtime: now,
            ctime: now,
            xattrs: self.xattrs,
            body: self.body,
        }
    }
}

/// The lower tree of a directory body, if it has one.
pub(crate) fn lower_tree(node: &Node) -> Option<ObjectId> {
    node.dir().and_then(|d| d.tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::id::{LayerHash, RecordId};

    fn inode(ino: Ino, mode: u32, body: Body) -> InodeRecord {
        let new = NewInode { ino, mode, uid: 0, gid: 0, rdev: 0, xattrs: Xattrs::new(), body };
        new.record(Timestamp::from_secs(0))
    }

    #[test]
    fn a_table_of_forgotten_inodes_is_small_again() {
        let inode_of_root = inode(ROOT_INO, 0o040_755, Body::Directory { tree: None, links: false });
        let root = Root { inode: inode_of_root, links: None, next_ino: 2 };
        let (layer, record) = (LayerHash::from_bytes([0; 32]), RecordId::from_bytes([0; 32]));
        let head = HeadRef { layer, record, root: ObjectId::from_bytes([0; 32]) };
        let mut state = State::new(Arc::new(root), head);
        let inos = 2..10 * FEW as Ino;
        for ino in inos.clone() {
            let place = Place { parent: ROOT_INO, name: ino.to_string().into_bytes().into() };
            let mut node = Node::from_record(inode(ino, 0o010_644, Body::Special), Some(place), false);
            node.lookups = 1;
            state.insert(ino, node);
            assert!(!state.shrink());
        }
        let full = state.nodes.capacity();
        let mut shrunk = 0;
        for ino in inos {
            state.forget(ino, 1);
            shrunk += u32::from(state.shrink());
        }
        assert_eq!(state.nodes.len(), 1, "the root");
        assert!((2..8).contains(&shrunk), "made smaller {shrunk} times");
        assert!(state.nodes.capacity() < full / 8, "{} of {full}", state.nodes.capacity());
        assert_eq!(state.node(ROOT_INO).unwrap().children, 0);
    }
}
