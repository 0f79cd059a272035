//! Converts the table to journal and checkpoint items, and applies items to it.

use std::ops::Range;

use karapace_store::inode::{Body, Ino};

use super::State;
use crate::error::{Error, Result};
use crate::upper::blocks::BlockSet;
use crate::upper::boot::Boot;
use crate::upper::data::DataFile;
use crate::upper::record::{AttrItem, DataState, Item, NameState, Place, PutItem, no_content, safe_blocks};
use crate::view::changes;
use crate::view::node::{BlockBody, FileBody, Meta, Node, NodeBody};

impl State {
    /// Adds the items that make `ino` and all its ancestors dirty, where they are not.
    pub fn dirty_chain(&self, ino: Ino, items: &mut Vec<Item>) -> Result<()> {
        let mut chain = Vec::new();
        let mut at = ino;
        loop {
            let node = self.node(at)?;
            if node.dirty || items.iter().any(|i| matches!(i, Item::Put(p) if p.record.ino == at)) {
                break;
            }
            chain.push(at);
            match &node.place {
                Some(place) => at = place.parent,
                None => break,
            }
        }
        for ino in chain.into_iter().rev() {
            items.push(Item::Put(Box::new(self.put_item(ino)?)));
        }
        Ok(())
    }

    /// The inode as a `Put`.
    pub fn put_item(&self, ino: Ino) -> Result<PutItem> {
        let node = self.node(ino)?;
        let (body, data) = match &node.body {
            NodeBody::Dir(d) => (Body::Directory { tree: d.tree, links: d.links }, DataState::None),
            NodeBody::Symlink(target) => (Body::Symlink(target.clone()), DataState::None),
            NodeBody::Special => (Body::Special, DataState::None),
            NodeBody::File(file) => match file {
                FileBody::Lower(content) => (Body::Regular((**content).clone()), DataState::None),
                FileBody::Whole(data) => {
                    (no_content(), DataState::Whole { generation: data.generation, size: node.meta.size })
                }
                FileBody::Blocks(b) => (Body::Regular((*b.base).clone()), b.data_state(node.meta.size)),
            },
        };
        Ok(PutItem {
            record: node.record_with(ino, body),
            place: node.place.clone(),
            linked: node.linked,
            data,
        })
    }

    /// Items to journal once an inode's data file and its name are synced, and with the file the fresh blocks
    /// in `synced`.
    pub fn synced_items(&self, ino: Ino, synced: &BlockSet) -> Result<Vec<Item>> {
        let Some(FileBody::Blocks(b)) = self.node(ino)?.file() else { return Ok(Vec::new()) };
        if b.fresh_since.is_none() {
            return Ok(safe_blocks(ino, synced));
        }
        // The journal does not yet count this file of blocks as safe, so list all its safe blocks, not only
        // `synced`.
        let (mut put, mut fresh, mut safe) = (self.put_item(ino)?, b.fresh.clone(), b.dirty.clone());
        put.data = b.safe_state(self.node(ino)?.meta.size);
        fresh.subtract(synced);
        safe.subtract(&fresh);
        let mut items = vec![Item::Put(Box::new(put))];
        items.extend(safe_blocks(ino, &safe));
        Ok(items)
    }

    /// Applies items in order. An operation has checked its items beforehand, so only items read from disk
    /// can fail to fit the table.
    pub fn apply(&mut self, items: Vec<Item>) -> Result<()> {
        self.generation += 1;
        changes::note_items(&items);
        for item in items {
            self.apply_one(item)?;
        }
        Ok(())
    }

    fn apply_one(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Put(put) => self.apply_put(*put),
            Item::Attr(a) => {
                let node = self.node_mut(a.ino)?;
                node.version += 1;
                node.meta = Meta {
                    mode: a.mode,
                    nlink: a.nlink,
                    uid: a.uid,
                    gid: a.gid,
                    atime: a.atime,
                    mtime: a.mtime,
                    ctime: a.ctime,
                    ..node.meta
                };
                Ok(())
            }
            Item::Xattr { ino, name, value } => {
                let node = self.node_mut(ino)?;
                node.version += 1;
                match value {
                    Some(value) => node.xattrs.set(&name, &value),
                    None => {
                        node.xattrs.remove(&name);
                    }
                }
                Ok(())
            }
            Item::Place { ino, place, linked } => self.apply_place(ino, place, linked),
            Item::Name { dir, name, state } => {
                let node = self.node_mut(dir)?;
                node.version += 1;
                let NodeBody::Dir(body) = &mut node.body else { return Err(Error::NotDirectory) };
                match state {
                    NameState::Names(ino) => body.changes.insert(name, Some(ino)),
                    NameState::Hidden => body.changes.insert(name, None),
                    NameState::AsBelow => body.changes.remove(&name),
                };
                Ok(())
            }
            Item::Blocks { ino, first, count } => self.apply_blocks(ino, first..first + count),
            Item::Fresh { ino, first, count, .. } => self.apply_fresh(ino, first..first + count),
            Item::Cut { ino, size } => self.apply_cut(ino, size),
            Item::Touched { ino } => {
                self.node_mut(ino)?.touched = true;
                Ok(())
            }
            Item::Gone { ino, linked } => {
                self.nodes.remove(&ino);
                self.dirty.remove(&ino);
                if linked {
                    self.note_gone(ino);
                }
                Ok(())
            }
            Item::Next { ino } => {
                self.next_ino = self.next_ino.max(ino);
                Ok(())
            }
        }
    }

    fn apply_blocks(&mut self, ino: Ino, blocks: Range<u64>) -> Result<()> {
        if let Some(body) = self.changed_blocks(ino)? {
            for block in blocks {
                body.dirty.insert(block);
                body.fresh.remove(block);
            }
        }
        Ok(())
    }

    fn apply_fresh(&mut self, ino: Ino, blocks: Range<u64>) -> Result<()> {
        if let Some(body) = self.changed_blocks(ino)? {
            for block in blocks {
                if !body.dirty.contains(block) {
                    body.dirty.insert(block);
                    body.fresh.insert(block);
                }
            }
            self.fresh.insert(ino);
        }
        Ok(())
    }

    /// Counts a change of the inode; returns its body if that is a file of blocks.
    fn changed_blocks(&mut self, ino: Ino) -> Result<Option<&mut BlockBody>> {
        let node = self.node_mut(ino)?;
        node.version += 1;
        Ok(match &mut node.body {
            NodeBody::File(FileBody::Blocks(body)) => Some(body),
            _ => None,
        })
    }

    fn apply_cut(&mut self, ino: Ino, size: u64) -> Result<()> {
        let node = self.node_mut(ino)?;
        node.version += 1;
        match &mut node.body {
            NodeBody::File(FileBody::Blocks(b)) => {
                b.limit = b.limit.min(size);
                b.cut_blocks(size);
            }
            // Its data file is lost, and with it everything beyond the end of the base.
            NodeBody::File(FileBody::Lower(_)) => return Ok(()),
            _ => {}
        }
        node.meta.size = size;
        Ok(())
    }

    fn apply_put(&mut self, put: PutItem) -> Result<()> {
        let ino = put.record.ino;
        self.next_ino = self.next_ino.max(ino + 1);
        // Putting the same inode again keeps its data file object (with its lock and seal) if the generation
        // is equal.
        let old_data = self.nodes.get(&ino).and_then(|n| n.file()).and_then(FileBody::data).cloned();
        let data_of = |generation: u32| match &old_data {
            Some(data) if data.generation == generation => data.clone(),
            _ => DataFile::new(ino, generation),
        };
        let PutItem { record, place, linked, data } = put;
        let mut node = Node::from_record(record, place, linked);
        match data {
            DataState::None => {}
            DataState::Whole { generation, size } => {
                node.meta.size = size;
                node.body = NodeBody::File(FileBody::Whole(data_of(generation)));
            }
            DataState::Blocks { generation, size, limit }
            | DataState::FreshBlocks { generation, size, limit, .. } => {
                let fresh_since = match data {
                    DataState::FreshBlocks { boot, .. } => Some(boot),
                    _ => None,
                };
                let NodeBody::File(FileBody::Lower(base)) = node.body else {
                    return Err(Error::Corrupt(format!("inode {ino}: blocks without a base")));
                };
                node.meta.size = size;
                let (dirty, fresh) = match self.nodes.get(&ino).and_then(|node| node.file()) {
                    Some(FileBody::Blocks(b)) => (b.dirty.clone(), b.fresh.clone()),
                    _ => Default::default(),
                };
                if fresh_since.is_some() {
                    self.fresh.insert(ino);
                }
                let data = data_of(generation);
                let blocks = BlockBody { data, base, limit, dirty, fresh, fresh_since };
                node.body = NodeBody::File(FileBody::Blocks(Box::new(blocks)));
            }
        }
        node.dirty = true;
        self.dirty.insert(ino);
        node.touched = node.file().is_some_and(|f| f.data().is_some());
        match self.nodes.remove(&ino) {
            Some(old) => {
                node.mapped = old.mapped;
                node.lookups = old.lookups;
                node.children = old.children;
                node.version = old.version + 1;
                node.unsynced = old.unsynced;
                node.stale_times = old.stale_times;
                if let (NodeBody::Dir(new), NodeBody::Dir(old)) = (&mut node.body, old.body) {
                    new.changes = old.changes;
                }
                let (from, to) = (old.place.map(|p| p.parent), node.place.as_ref().map(|p| p.parent));
                self.move_child(from, to);
                self.nodes.insert(ino, Box::new(node));
            }
            None => self.insert(ino, node),
        }
        Ok(())
    }

    fn apply_place(&mut self, ino: Ino, place: Option<Place>, linked: bool) -> Result<()> {
        let node = self.node_mut(ino)?;
        node.version += 1;
        node.linked = linked;
        let to = place.as_ref().map(|p| p.parent);
        let from = std::mem::replace(&mut node.place, place).map(|p| p.parent);
        self.move_child(from, to);
        Ok(())
    }

    fn move_child(&mut self, from: Option<Ino>, to: Option<Ino>) {
        if from == to {
            return;
        }
        if let Some(node) = from.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.children = node.children.saturating_sub(1);
        }
        if let Some(node) = to.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.children += 1;
        }
    }

    /// The items that make up a checkpoint: every dirty inode that is not an orphan, parents before children.
    /// `boot` is the kernel boot during which the fresh blocks were written.
    pub fn checkpoint_items(&self, boot: Option<Boot>) -> Result<Vec<Item>> {
        let mut items = vec![Item::Next { ino: self.next_ino }];
        items.extend(self.gone_links.iter().map(|ino| Item::Gone { ino: *ino, linked: true }));
        let dirty: Vec<Ino> =
            self.dirty_nodes().filter(|(_, n)| !n.is_orphan()).map(|(ino, _)| ino).collect();
        for ino in &dirty {
            items.push(Item::Put(Box::new(self.put_item(*ino)?)));
            if let Some(FileBody::Blocks(b)) = self.node(*ino)?.file() {
                let mut safe = b.dirty.clone();
                safe.subtract(&b.fresh);
                items.extend(safe_blocks(*ino, &safe));
                let fresh = b.fresh.runs().into_iter();
                items.extend(fresh.filter_map(|(first, count)| {
                    boot.map(|boot| Item::Fresh { ino: *ino, boot, first, count })
                }));
            }
        }
        // To a reader of the checkpoint, an orphan that is still in the link table is gone.
        let orphans = self.dirty_nodes().filter(|(_, n)| n.is_orphan() && n.linked);
        items.extend(orphans.map(|(ino, _)| Item::Gone { ino, linked: true }));
        for ino in &dirty {
            let Some(dir) = self.node(*ino)?.dir() else { continue };
            for (name, change) in &dir.changes {
                let state = change.map_or(NameState::Hidden, NameState::Names);
                items.push(Item::Name { dir: *ino, name: name.clone(), state });
            }
        }
        Ok(items)
    }
}

/// The attributes of an inode as an item.
pub(crate) fn attr_item(ino: Ino, meta: &Meta) -> Item {
    Item::Attr(AttrItem {
        ino,
        mode: meta.mode,
        nlink: meta.nlink,
        uid: meta.uid,
        gid: meta.gid,
        atime: meta.atime,
        mtime: meta.mtime,
        ctime: meta.ctime,
    })
}
