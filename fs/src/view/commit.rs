//! Commit: turns dirty inodes into objects, trees and a root, and empties the upper.
//!
//! 1. *Seal* (writers wait): copies the metadata of dirty inodes and marks their data files as sealed.
//! 2. *Build* (writers continue; writing to a sealed file makes a private copy first): stores contents,
//!    without copying where possible, rewrites changed directories bottom-up, and makes everything durable.
//! 3. *Publish*: the caller writes the layer record and the metadata.
//! 4. *Finish* (writers wait): writes a checkpoint with the new head and the changes since the seal, then
//!    updates the table in memory.
//!
//! A crash before the checkpoint leaves the upper unchanged. A crash after it leaves data files that the next
//! open removes.

mod remaining;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use karapace_store::batch::Batch;
use karapace_store::content::{self, FileContent};
use karapace_store::fail;
use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, Ino, InodeRecord, ROOT_INO, Xattrs};
use karapace_store::parallel::in_pieces;
use karapace_store::root::Root;
use karapace_store::tree::{Target, update_dir, update_links};

use crate::attr::HeadRef;
use crate::error::{Error, Result};
use crate::upper::Upper;
use crate::upper::data::DataFile;
use crate::upper::record::Place;
use crate::view::View;
use crate::view::node::{BlockBody, DirBody, FileBody, Meta, Node, NodeBody, record_of};
use crate::view::table::{Forgotten, State, lower_tree};
use remaining::{clean_since, rebased_dirs, remaining_items};

/// A view stored as trees; all of it is durable.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The lower view at the time of the seal.
    pub old: Arc<Root>,
    /// The view at the time of the seal, except for contents that stayed in the upper.
    pub root: Root,
    /// The object of `root`.
    pub id: ObjectId,
}

/// What the view stands on after it was stored.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// The layer, with the stored tree as its root; the upper is applied to that tree from then on.
    pub head: HeadRef,
    /// New inodes get numbers no lower than this.
    pub next_ino: Ino,
}

/// Makes a stored view durable as a layer and returns the layer that the view then stands on. `None` cancels:
/// the view stays as it was.
pub type Publish<'a, E> = &'a mut dyn FnMut(&Stored) -> std::result::Result<Option<Published>, E>;

/// Whether the uncommitted content of the file at a path may stay in the upper.
pub type Stays<'a> = &'a dyn Fn(&[u8]) -> bool;

/// A dirty inode at the time of the seal.
struct SealedNode {
    version: u32,
    meta: Meta,
    xattrs: Xattrs,
    place: Option<Place>,
    linked: bool,
    body: SealedBody,
}

enum SealedBody {
    Dir(DirBody),
    File(FileBody),
    Symlink(Box<[u8]>),
    Special,
}

/// The dirty part of a view at one moment.
struct Seal {
    nodes: HashMap<Ino, SealedNode>,
    gone_links: BTreeSet<Ino>,
    next_ino: Ino,
    generation: u64,
    old_root: Arc<Root>,
    old_id: ObjectId,
    /// Whether some dirty inodes were left out.
    is_partial: bool,
}

/// Result of the build: the lower form of each sealed inode.
struct Built {
    bodies: HashMap<Ino, Body>,
    root: Root,
    root_id: ObjectId,
}

impl View {
    /// Stores the view as a tree and empties the upper, which is applied to that tree from then on. `publish`
    /// receives the tree, makes it durable as a layer, and returns the layer that the view then stands on;
    /// that layer need not have this very tree. If it returns `None`, nothing has changed.
    ///
    /// Where `stays` returns true, the content of a changed file with one name stays in the upper instead,
    /// and the tree keeps what was there before. The tree includes every other operation that returned before
    /// the call.
    ///
    /// # Errors
    /// The view's own errors, and those of `publish` unchanged; the view is then as it was before.
    pub fn store<E: From<Error>>(
        &self,
        stays: Option<Stays<'_>>,
        publish: Publish<'_, E>,
    ) -> std::result::Result<Option<HeadRef>, E> {
        let _committing = self.committing.lock();
        let upper = self.writable()?;
        fail::point("commit.seal").map_err(Error::from)?;
        let seal = self.seal(stays)?;
        let built = self.build(upper, &seal).map_err(E::from);
        let done = built.and_then(|built| self.publish(upper, &seal, built, publish));
        if !matches!(done, Ok(Some(_))) {
            self.break_seal(upper, &seal);
        }
        let mut state = self.state.write();
        upper.bury(state.deferred.take().unwrap_or_default());
        done
    }

    /// After a commit without effect: data files that the store does not share may be written in place again.
    /// (On a full disk there is no room for private copies.)
    fn break_seal(&self, upper: &Upper, seal: &Seal) {
        let _gate = self.gate.write();
        let state = self.state.write();
        for (ino, sealed) in &seal.nodes {
            let SealedBody::File(file) = &sealed.body else { continue };
            let Some(data) = file.data() else { continue };
            let present =
                state.nodes.get(ino).and_then(|node| node.data_generation()) == Some(data.generation);
            if present && let Err(error) = upper.data.unshare(data) {
                tracing::warn!("{error}; the next write to inode {ino} copies the file");
            }
        }
    }

    /// The current generation, if the view equals its head; for [`View::restore`].
    pub fn clean_generation(&self) -> Result<Option<u64>> {
        let generation = self.stats().generation;
        let clean = self.diff()?.is_empty();
        Ok((clean && self.stats().generation == generation).then_some(generation))
    }

    fn seal(&self, stays: Option<Stays<'_>>) -> Result<Seal> {
        let _gate = self.gate.write();
        let mut state = self.state.write();
        self.settle_all_times(&mut state)?;
        let left = stays.map_or_else(|| Ok(HashSet::new()), |stays| self.left_out(&state, stays))?;
        let mut nodes = HashMap::new();
        for (ino, node) in state.dirty_nodes().filter(|(ino, n)| !n.is_orphan() && !left.contains(ino)) {
            let body = match &node.body {
                NodeBody::Dir(d) => {
                    let mut changes = d.changes.clone();
                    changes.retain(|_, change| change.is_none_or(|ino| !left.contains(&ino)));
                    SealedBody::Dir(DirBody { tree: d.tree, links: d.links, changes })
                }
                NodeBody::File(file) => {
                    if let Some(data) = file.data() {
                        data.sealed.store(true, std::sync::atomic::Ordering::Release);
                    }
                    SealedBody::File(file.clone())
                }
                NodeBody::Symlink(target) => SealedBody::Symlink(target.clone()),
                NodeBody::Special => SealedBody::Special,
            };
            let sealed = SealedNode {
                version: node.version,
                meta: node.meta,
                xattrs: node.xattrs.clone(),
                place: node.place.clone(),
                linked: node.linked,
                body,
            };
            nodes.insert(ino, sealed);
        }
        let mut gone_links = state.gone_links.clone();
        let gone = |ino: &Ino, node: &Node| node.linked && node.is_orphan() && *ino < state.root.next_ino;
        gone_links.extend(state.nodes.iter().filter(|(ino, n)| gone(ino, n)).map(|(ino, _)| *ino));
        state.deferred = Some(Vec::new());
        Ok(Seal {
            nodes,
            gone_links,
            next_ino: state.next_ino,
            generation: state.generation,
            old_root: state.root.clone(),
            old_id: state.head.root,
            is_partial: !left.is_empty(),
        })
    }

    /// The files that a seal leaves in the upper. In the lower view their names hold the same inode or
    /// nothing, so a tree without their changes still has every inode at one place.
    fn left_out(&self, state: &State, stays: Stays<'_>) -> Result<HashSet<Ino>> {
        let mut left = HashSet::new();
        for (ino, node) in state.dirty_nodes().filter(|(_, n)| !n.is_orphan() && !n.linked) {
            let (Some(place), Some(_)) = (&node.place, node.file().and_then(FileBody::data)) else {
                continue;
            };
            if !stays(&state.path_of(ino)?) {
                continue;
            }
            let tree = lower_tree(state.node(place.parent)?);
            let below = tree.map_or(Ok(None), |tree| self.trees.lookup(&tree, &place.name))?;
            let is_free = match below {
                None => true,
                Some(Target::Inode(record)) => record.ino == ino,
                Some(Target::Link { .. }) => false,
            };
            if is_free {
                left.insert(ino);
            }
        }
        Ok(left)
    }

    /// Stores contents, directories, link table and root; durable on return.
    fn build(&self, upper: &Upper, seal: &Seal) -> Result<Built> {
        fail::point("commit.build")?;
        if seal.nodes.is_empty() && seal.gone_links.is_empty() {
            let root = (*seal.old_root).clone();
            return Ok(Built { bodies: HashMap::new(), root, root_id: seal.old_id });
        }
        let mut batch = Batch::new(&self.store)?;
        let mut bodies: HashMap<Ino, Body> = HashMap::with_capacity(seal.nodes.len());
        bodies.extend(self.store_whole(upper, seal, &mut batch)?);
        for (ino, node) in &seal.nodes {
            let body = match &node.body {
                SealedBody::Dir(_) | SealedBody::File(FileBody::Whole(_)) => continue,
                SealedBody::File(FileBody::Lower(content)) => Body::Regular((**content).clone()),
                SealedBody::File(FileBody::Blocks(blocks)) => {
                    let stored = self.store_blocks(upper, blocks, node.meta.size, &mut batch);
                    Body::Regular(stored.map_err(|error| self.name_damage(&self.state.read(), *ino, error))?)
                }
                SealedBody::Symlink(target) => Body::Symlink(target.clone()),
                SealedBody::Special => Body::Special,
            };
            bodies.insert(*ino, body);
        }
        let mut children: HashMap<Ino, Vec<(&[u8], Ino)>> = HashMap::new();
        for (ino, node) in &seal.nodes {
            if let Some(place) = &node.place {
                children.entry(place.parent).or_default().push((&place.name, *ino));
            }
        }
        for dir in deepest_first(seal) {
            let SealedBody::Dir(body) = &seal.nodes[&dir].body else { continue };
            let mut changes: BTreeMap<Box<[u8]>, Option<Target>> = BTreeMap::new();
            for (name, ino) in children.get(&dir).into_iter().flatten() {
                changes.insert((*name).into(), Some(target(seal, &bodies, *ino)?));
            }
            for (name, change) in &body.changes {
                let to = change.map(|ino| target(seal, &bodies, ino)).transpose()?;
                changes.insert(name.clone(), to);
            }
            let written = update_dir(&self.trees, &mut batch, body.tree.as_ref(), &changes)?;
            bodies.insert(dir, Body::Directory { tree: written.tree, links: written.links });
        }
        let links = self.build_links(seal, &bodies, &mut batch)?;
        let inode = match seal.nodes.get(&ROOT_INO) {
            Some(_) => record(seal, &bodies, ROOT_INO)?,
            None => seal.old_root.inode.clone(),
        };
        let root = Root { inode, links, next_ino: seal.next_ino };
        let root_id = root.write(&mut batch)?;
        batch.commit()?;
        Ok(Built { bodies, root, root_id })
    }

    /// Stores the files that are entirely in the upper. The seal keeps their data files unchanged meanwhile.
    fn store_whole(&self, upper: &Upper, seal: &Seal, batch: &mut Batch) -> Result<Vec<(Ino, Body)>> {
        let mut files: Vec<(Ino, PathBuf)> = Vec::new();
        for (ino, node) in &seal.nodes {
            if let SealedBody::File(FileBody::Whole(data)) = &node.body {
                files.push((*ino, upper.data.path(data)));
            }
        }
        // In order of creation, so that reads follow roughly the order on disk.
        files.sort_unstable_by_key(|(ino, _)| *ino);
        let (inos, paths): (Vec<Ino>, Vec<PathBuf>) = files.into_iter().unzip();
        let contents = content::adopt_all(paths, batch)?;
        Ok(inos.into_iter().zip(contents.into_iter().map(Body::Regular)).collect())
    }

    /// Stores the blocks that are in the upper.
    fn store_blocks(
        &self,
        upper: &Upper,
        b: &BlockBody,
        size: u64,
        batch: &mut Batch,
    ) -> Result<FileContent> {
        // A snapshot of a file that is known to be damaged could not be read.
        let needed = |block: u64| !b.dirty.contains(block) && block * content::BLOCK < b.limit;
        if let Some(damage) = self.content.damage_in(&b.base, &needed) {
            return Err(Error::Damaged(Box::new(damage)));
        }
        let file = upper.data.file(&b.data)?;
        let updated = content::update(&b.base, b.limit, size, &mut b.dirty.iter(), &file, batch);
        updated.map_err(|error| self.content.lost(&b.base.hash, error))
    }

    fn build_links(
        &self,
        seal: &Seal,
        bodies: &HashMap<Ino, Body>,
        batch: &mut Batch,
    ) -> Result<Option<ObjectId>> {
        let mut changes: BTreeMap<Ino, Option<InodeRecord>> =
            seal.gone_links.iter().map(|ino| (*ino, None)).collect();
        for (ino, _) in seal.nodes.iter().filter(|(_, n)| n.linked) {
            changes.insert(*ino, Some(record(seal, bodies, *ino)?));
        }
        if changes.is_empty() {
            return Ok(seal.old_root.links);
        }
        Ok(update_links(&self.trees, batch, seal.old_root.links.as_ref(), &changes)?)
    }

    fn publish<E: From<Error>>(
        &self,
        upper: &Upper,
        seal: &Seal,
        built: Built,
        publish: Publish<'_, E>,
    ) -> std::result::Result<Option<HeadRef>, E> {
        fail::point("commit.publish").map_err(Error::from)?;
        let stored = Stored { old: seal.old_root.clone(), root: built.root.clone(), id: built.root_id };
        let Some(published) = publish(&stored)? else { return Ok(None) };
        fail::point("commit.finish").map_err(Error::from)?;
        self.finish(upper, seal, &built, published)?;
        Ok(Some(published.head))
    }

    /// Swaps the lower view: first on disk, then in memory.
    fn finish(&self, upper: &Upper, seal: &Seal, built: &Built, published: Published) -> Result<()> {
        let head = published.head;
        let _gate = self.gate.write();
        let mut state = self.state.write();
        let clean = clean_since(&state, seal);
        self.settle_all_times(&mut state)?;
        state.next_ino = state.next_ino.max(published.next_ino);
        let new_dirs = rebased_dirs(&state, seal, built, &clean);
        let items = remaining_items(&state, upper.boot, seal, &clean, &new_dirs)?;
        upper.checkpoint(head, items)?;
        fail::passed("commit.release");

        state.clear_touched();
        let mut removable: Vec<Arc<DataFile>> = Vec::new();
        for (ino, dir) in new_dirs {
            if let Some(node) = state.nodes.get_mut(&ino) {
                node.body = NodeBody::Dir(Box::new(dir));
            }
        }
        for ino in &clean {
            let Some(node) = state.nodes.get_mut(ino) else { continue };
            node.dirty = false;
            if let (NodeBody::File(file), Some(Body::Regular(content))) =
                (&mut node.body, built.bodies.get(ino))
            {
                removable.extend(file.data().cloned());
                *file = FileBody::Lower(Arc::new(content.clone()));
                node.unsynced = false;
            }
        }
        state.drop_clean();
        state.gone_links.retain(|ino| !seal.gone_links.contains(ino));
        state.root = Arc::new(built.root.clone());
        state.head = head;
        let mut forgotten = Forgotten::default();
        for ino in &clean {
            state.release(*ino, &mut forgotten);
        }
        self.bury(forgotten);
        drop(state);
        in_pieces(&removable, |files| upper.discard(files.iter().cloned()));
        Ok(())
    }
}

/// The sealed directories, children before their parents.
fn deepest_first(seal: &Seal) -> Vec<Ino> {
    let mut depths: HashMap<Ino, u32> = HashMap::new();
    let dirs = seal.nodes.iter().filter(|(_, n)| matches!(n.body, SealedBody::Dir(_)));
    for (dir, _) in dirs {
        let (mut chain, mut at) = (Vec::new(), *dir);
        while !depths.contains_key(&at) {
            chain.push(at);
            match seal.nodes.get(&at).and_then(|n| n.place.as_ref()) {
                Some(place) => at = place.parent,
                None => break,
            }
        }
        let first = depths.get(&at).map_or(0, |depth| depth + 1);
        depths.extend(chain.into_iter().rev().zip(first..));
    }
    let sealed = depths.into_iter().filter(|(ino, _)| seal.nodes.contains_key(ino));
    let mut dirs: Vec<(u32, Ino)> = sealed.map(|(ino, depth)| (depth, ino)).collect();
    dirs.sort_unstable_by(|a, b| b.cmp(a));
    dirs.into_iter().map(|(_, ino)| ino).collect()
}

fn record(seal: &Seal, bodies: &HashMap<Ino, Body>, ino: Ino) -> Result<InodeRecord> {
    let missing = || Error::Corrupt(format!("inode {ino} has a name but is not among the changed inodes"));
    let node = seal.nodes.get(&ino).ok_or_else(missing)?;
    let body = bodies.get(&ino).ok_or_else(missing)?.clone();
    Ok(record_of(ino, &node.meta, node.xattrs.clone(), body))
}

fn target(seal: &Seal, bodies: &HashMap<Ino, Body>, ino: Ino) -> Result<Target> {
    match seal.nodes.get(&ino) {
        Some(node) if node.linked => Ok(Target::Link { ino, kind: node.meta.kind() }),
        _ => Ok(Target::Inode(record(seal, bodies, ino)?)),
    }
}
