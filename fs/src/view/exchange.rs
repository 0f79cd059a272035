//! The step of a restore that moves the inode table to another lower view.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use karapace_store::inode::{Body, Ino, InodeRecord, ROOT_INO};
use karapace_store::root::Root;

use crate::attr::HeadRef;
use crate::upper::data::DataFile;
use crate::upper::record::Place;
use crate::view::node::{FileBody, Node, NodeBody};
use crate::view::table::{Forgotten, State};

/// An inode that was dirty and is now clean.
pub(super) struct Reset {
    pub ino: Ino,
    /// Its data file, no longer needed.
    pub file: Option<Arc<DataFile>>,
    /// Whether the comparison did not visit it, so that its record must be reread.
    pub reread: bool,
}

/// Replaces the lower view under the table. Returns the inodes that were dirty.
pub(super) fn swap(
    state: &mut State,
    root: Root,
    head: HeadRef,
    next_ino: Ino,
    detached: HashSet<Ino>,
    attached: HashMap<Ino, (InodeRecord, Option<Place>)>,
) -> Vec<Reset> {
    let mut resets = Vec::new();
    for (ino, node) in state.nodes.iter_mut().filter(|(_, n)| n.dirty && !n.is_orphan()) {
        let file = node.file().and_then(FileBody::data).cloned();
        let gone = detached.contains(ino) && !attached.contains_key(ino);
        if gone {
            // May still be open: it keeps its bytes until the kernel forgets it.
            continue;
        }
        node.dirty = false;
        resets.push(Reset { ino: *ino, file, reread: !attached.contains_key(ino) });
    }
    for ino in detached.iter().filter(|ino| !attached.contains_key(ino)) {
        if let Some(node) = state.nodes.get_mut(ino) {
            node.meta.nlink = 0;
            node.place = None;
            node.version += 1;
        }
    }
    for (_, (record, place)) in attached {
        let linked = place.is_none() && record.ino != ROOT_INO;
        refresh(state, record, place, linked);
    }
    state.root = Arc::new(root);
    state.head = head;
    state.next_ino = next_ino;
    state.gone_links.clear();
    state.drop_clean();
    state.generation += 1;
    resets
}

/// Drops inodes without references or children. Returns the data files that become unused.
pub(super) fn drop_idle(state: &mut State) -> Forgotten {
    let mut forgotten = Forgotten::default();
    let idle = state.nodes.iter().filter(|(_, n)| n.lookups == 0 && n.children == 0);
    let idle: Vec<Ino> = idle.map(|(ino, _)| *ino).collect();
    for ino in idle {
        state.release(ino, &mut forgotten);
    }
    forgotten
}

/// Replaces a node's contents with the record; keeps its references.
pub(super) fn refresh(state: &mut State, record: InodeRecord, place: Option<Place>, linked: bool) {
    let ino = record.ino;
    let Some(old) = state.nodes.remove(&ino) else { return };
    let place = if linked { None } else { place.or(old.place) };
    let mut node = Node::from_record(record, place, linked);
    node.mapped = old.mapped;
    node.lookups = old.lookups;
    node.children = old.children;
    node.version = old.version + 1;
    state.nodes.insert(ino, Box::new(node));
}

impl Node {
    /// Whether the kernel would see a difference if the node took on the record's state.
    pub(super) fn record_differs(&self, record: &InodeRecord) -> bool {
        let same_body = match (&record.body, &self.body) {
            (Body::Directory { tree, .. }, NodeBody::Dir(d)) => *tree == d.tree && d.changes.is_empty(),
            (Body::Regular(a), NodeBody::File(FileBody::Lower(b))) => a.hash == b.hash,
            (Body::Symlink(a), NodeBody::Symlink(b)) => a == b,
            (Body::Special, NodeBody::Special) => true,
            _ => false,
        };
        let m = &self.meta;
        !same_body
            || (record.mode, record.nlink, record.uid, record.gid) != (m.mode, m.nlink, m.uid, m.gid)
            || (record.atime, record.mtime, record.ctime) != (m.atime, m.mtime, m.ctime)
            || record.xattrs != self.xattrs
    }
}
