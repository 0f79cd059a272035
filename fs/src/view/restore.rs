//! Restore: replaces the lower view under running processes.
//!
//! Compares the two trees by hash and touches only what differs. If an inode's content differs from what the
//! kernel has under its number, it gets a fresh number, so that open files keep their old content, as after a
//! rename over them; an inode with several names gets the number under all of them. A directory that both
//! sides have at a path keeps its number if that number is free in the restored tree, so processes working in
//! it, and mounts on it, stay.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use karapace_store::batch::Batch;
use karapace_store::fail;
use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO};
use karapace_store::root::Root;
use karapace_store::tree::{Linked, Pair, Pairs, Target, update_dir, update_links};

use crate::attr::{HeadRef, Invalidation, Restored};
use crate::error::{Error, Result};
use crate::upper::record::{Item, Place};
use crate::view::View;
use crate::view::exchange::{Reset, drop_idle, refresh, swap};
use crate::view::node::{FileBody, NodeBody};
use crate::view::table::State;
use crate::view::told::Telling;
use karapace_store::deep::deep;

/// Changes to make in the inode table, and invalidations to send to the kernel.
struct Plan<'a> {
    view: &'a View,
    state: &'a mut State,
    batch: Batch,
    old_root: Arc<Root>,
    new_root: Arc<Root>,
    /// Inodes in the table that lose a name.
    detached: HashSet<Ino>,
    /// Inodes in the table, with their record and place in the new view.
    attached: HashMap<Ino, (InodeRecord, Option<Place>)>,
    /// Places of directories that were compared or added: a known inode in one of them may need it in the
    /// table.
    homes: HashMap<Ino, Place>,
    /// Whether inode numbers of the new tree differ from the stored ones.
    renumbered: bool,
    /// Fresh numbers of linked inodes, by their old numbers.
    relinked: HashMap<Ino, Ino>,
    /// The keys of `relinked`.
    moved: Rc<HashSet<Ino>>,
    invalid: Vec<Invalidation>,
    telling: Telling,
}

/// A directory's listing after renumbering.
struct Listed {
    tree: Option<ObjectId>,
    links: bool,
}

impl View {
    /// Makes the view equal to `target`; durable on return. `generation` comes from
    /// [`View::clean_generation`].
    ///
    /// # Errors
    /// [`Error::TryAgain`] if the view has changed since `generation`; nothing is done then.
    pub fn restore(&self, target: HeadRef, generation: u64) -> Result<Restored> {
        deep(|| self.exchange_lower(target, generation))?
    }

    fn exchange_lower(&self, target: HeadRef, generation: u64) -> Result<Restored> {
        let _committing = self.committing.lock();
        let upper = self.writable()?;
        let _gate = self.gate.write();
        let mut state = self.state.write();
        if state.generation != generation {
            return Err(Error::TryAgain);
        }
        fail::point("restore.plan")?;
        let new_root = self.trees.root(&target.root)?;
        let old_root = state.root.clone();
        // Numbers in use by the new tree are taken, even if this view never assigned them.
        state.next_ino = state.next_ino.max(new_root.next_ino);
        let mut plan = Plan {
            view: self,
            batch: Batch::new(&self.store)?,
            old_root,
            new_root: new_root.clone(),
            detached: HashSet::new(),
            attached: HashMap::new(),
            homes: HashMap::new(),
            renumbered: false,
            relinked: HashMap::new(),
            moved: Rc::default(),
            invalid: Vec::new(),
            telling: Telling::default(),
            state: &mut state,
        };
        plan.relink()?;
        let (root, root_id) = plan.compare_roots(&target.root)?;
        plan.refresh_linked()?;
        let Plan { batch, detached, attached, homes, invalid, telling, .. } = plan;
        batch.commit()?;
        fail::point("restore.swap")?;
        let head = HeadRef { root: root_id, ..target };
        let next_ino = state.next_ino.max(root.next_ino);
        upper.checkpoint(head, vec![Item::Next { ino: next_ino }])?;
        fail::passed("restore.release");

        let data = swap(&mut state, root, head, next_ino, detached, attached);
        // The restore has taken effect. An error here affects only the inodes it occurred at; the kernel must
        // be told about all others.
        if let Err(error) =
            self.load_parents(&mut state, &homes).and_then(|()| self.refresh_dirty(&mut state, &data))
        {
            tracing::error!("restored except for some open inodes: {error}; unmount and mount again");
        }
        let forgotten = drop_idle(&mut state);
        drop(state);
        upper.discard(data.into_iter().filter_map(|d| d.file).chain(forgotten.data));
        Ok(Restored { stale: invalid, told: telling.done() })
    }

    /// Loads the new parent directories of inodes in the table.
    fn load_parents(&self, state: &mut State, homes: &HashMap<Ino, Place>) -> Result<()> {
        let missing = |state: &State| -> Vec<Ino> {
            let parents = state.nodes.values().filter_map(|n| n.place.as_ref().map(|p| p.parent));
            parents.filter(|ino| !state.nodes.contains_key(ino)).collect()
        };
        for ino in missing(state) {
            let mut chain = Vec::new();
            let mut at = ino;
            while !state.nodes.contains_key(&at) {
                let place = homes.get(&at).ok_or(Error::Stale)?;
                chain.push(place);
                at = place.parent;
            }
            for place in chain.into_iter().rev() {
                state.load(&self.trees, place.parent, &place.name)?;
            }
        }
        state.recount_children();
        Ok(())
    }

    /// Dirty inodes that the comparison did not visit differ from the new view only in their times: rereads
    /// them.
    fn refresh_dirty(&self, state: &mut State, met: &[Reset]) -> Result<()> {
        for reset in met.iter().filter(|r| r.reread) {
            let Some(record) = self.record_at(state, reset.ino)? else { continue };
            let linked = state.node(reset.ino)?.linked;
            refresh(state, record, None, linked);
        }
        Ok(())
    }

    /// The lower view's record of an inode in the table, found through its place.
    fn record_at(&self, state: &State, ino: Ino) -> Result<Option<InodeRecord>> {
        if ino == ROOT_INO {
            return Ok(Some(state.root.inode.clone()));
        }
        let node = state.node(ino)?;
        if node.linked {
            return Ok(self.trees.link(&state.root, ino)?);
        }
        let Some(place) = node.place.clone() else { return Ok(None) };
        let Some(parent) = self.record_at(state, place.parent)? else { return Ok(None) };
        let Body::Directory { tree: Some(tree), .. } = parent.body else { return Ok(None) };
        match self.trees.lookup(&tree, &place.name)? {
            Some(Target::Inode(record)) => Ok(Some(record)),
            _ => Ok(None),
        }
    }
}

impl Plan<'_> {
    fn compare_roots(&mut self, target: &ObjectId) -> Result<(Root, ObjectId)> {
        let (old, new) = (self.old_root.inode.clone(), self.new_root.inode.clone());
        let listed = self.compare_dirs(ROOT_INO, &old, &new)?;
        let mut root = (*self.new_root).clone();
        if !self.renumbered {
            self.attach(root.inode.clone(), None);
            return Ok((root, *target));
        }
        root.inode.body = Body::Directory { tree: listed.tree, links: listed.links };
        root.next_ino = root.next_ino.max(self.state.next_ino);
        root.links = self.write_links(&root)?;
        self.attach(root.inode.clone(), None);
        let id = root.write(&mut self.batch)?;
        Ok((root, id))
    }

    /// Compares a directory that both sides have, under the number `dir`. Returns its new listing,
    /// renumbered.
    ///
    /// The store's tree walk passes values only downwards. Here a directory's result depends on everything
    /// below it and is needed in the listing above, so this shares the comparison of names with the walk, but
    /// not the walk itself.
    fn compare_dirs(&mut self, dir: Ino, old: &InodeRecord, new: &InodeRecord) -> Result<Listed> {
        let (old_tree, _) = old.listing();
        let (new_tree, links) = new.listing();
        if old_tree == new_tree && (!links || self.relinked.is_empty()) {
            return Ok(Listed { tree: new_tree, links });
        }
        let known = self.state.nodes.contains_key(&dir);
        let mut edits: BTreeMap<Box<[u8]>, Option<Target>> = BTreeMap::new();
        let (trees, moved) = (&self.view.trees, self.moved.clone());
        let mut pairs = Pairs::new(old_tree.as_ref(), new_tree.as_ref());
        while let Some(Pair { name, old, new }) = pairs.next(trees, Linked::Some(&moved))? {
            let place = Place { parent: dir, name: name.clone() };
            let same_dir = match (&old, &new) {
                (Some(Target::Inode(a)), Some(Target::Inode(b))) => self.is_same_dir(a, b),
                _ => false,
            };
            if known && !same_dir {
                self.tell(&place, old.as_ref(), new.as_ref())?;
            }
            let edit = match (old, new) {
                (Some(Target::Inode(a)), Some(Target::Inode(b))) if same_dir => {
                    if known {
                        self.telling.directory(dir, &name, &a, &b);
                    }
                    self.telling.enter(&name);
                    let edit = self.both(place, &a, b)?;
                    self.telling.leave();
                    edit
                }
                (old, new) => {
                    let old_ino = old.as_ref().map(Target::ino);
                    let keeps = old_ino == new.as_ref().map(Target::ino);
                    let is_link = |target: &Option<Target>| matches!(target, Some(Target::Link { .. }));
                    let becomes_linked = is_link(&new) && !is_link(&old);
                    if let Some(old) = old {
                        self.removed(old)?;
                    }
                    let edit = new.map(|new| self.added(place, new)).transpose()?.flatten();
                    let now = edit.as_ref().map_or(old_ino.filter(|_| keeps), |edit| Some(edit.ino()));
                    // A linked inode does not tell its names.
                    if known && (!keeps || now != old_ino || becomes_linked) {
                        self.invalid.push(Invalidation::Entry { parent: dir, name: name.clone() });
                    }
                    edit
                }
            };
            if let Some(edit) = edit {
                edits.insert(name, Some(edit));
            }
        }
        if known {
            self.invalid.push(Invalidation::Inode { ino: dir });
        }
        if edits.is_empty() {
            return Ok(Listed { tree: new_tree, links });
        }
        let written = update_dir(&self.view.trees, &mut self.batch, new_tree.as_ref(), &edits)?;
        Ok(Listed { tree: written.tree, links: written.links })
    }

    /// Notes the events to raise for a name.
    fn tell(&mut self, place: &Place, old: Option<&Target>, new: Option<&Target>) -> Result<()> {
        let inode = |root: &Root, target: Option<&Target>| match target {
            Some(Target::Inode(record)) => Ok(Some(record.clone())),
            Some(Target::Link { ino, .. }) => self.view.trees.link(root, *ino),
            None => Ok(None),
        };
        let (old, new) = (inode(&self.old_root, old)?, inode(&self.new_root, new)?);
        self.telling.name(place.parent, &place.name, old.as_ref(), new.as_ref());
        Ok(())
    }

    /// Handles a directory that stays at its place and keeps its number.
    fn both(&mut self, place: Place, old: &InodeRecord, mut new: InodeRecord) -> Result<Option<Target>> {
        let renumbered = new.ino != old.ino;
        if renumbered {
            self.renumbered = true;
            new.ino = old.ino;
        }
        self.homes.insert(new.ino, place.clone());
        let listed = self.compare_dirs(new.ino, old, &new)?;
        let edited = renumbered || new.listing().0 != listed.tree;
        new.body = Body::Directory { tree: listed.tree, links: listed.links };
        self.attach(new.clone(), Some(place));
        Ok(edited.then_some(Target::Inode(new)))
    }

    /// Handles an entry that the new view lacks: its inodes in the table may lose their place.
    fn removed(&mut self, old: Target) -> Result<()> {
        // The link table decides about linked inodes.
        let Target::Inode(record) = old else { return Ok(()) };
        if self.state.nodes.contains_key(&record.ino) {
            self.detached.insert(record.ino);
        }
        for (_, below) in self.view.trees.entries(record.listing().0)? {
            self.removed(below)?;
        }
        Ok(())
    }

    /// Handles an entry that the old view lacks. Returns the entry to write instead if it, or anything below
    /// it, was renumbered.
    fn added(&mut self, place: Place, new: Target) -> Result<Option<Target>> {
        let mut record = match new {
            Target::Inode(record) => record,
            Target::Link { ino, kind } => {
                return Ok(self.relinked.get(&ino).map(|fresh| Target::Link { ino: *fresh, kind }));
            }
        };
        let mut edited = false;
        if self.conflicts(&record) {
            let fresh = self.state.allocate()?;
            self.renumbered = true;
            self.detached.insert(record.ino);
            record.ino = fresh;
            edited = true;
        }
        if record.kind() == FileKind::Directory {
            self.homes.insert(record.ino, place.clone());
        }
        if let (Some(tree), links) = record.listing() {
            let mut edits = BTreeMap::new();
            for (name, below) in self.view.trees.entries(Some(tree))? {
                let place = Place { parent: record.ino, name: name.clone() };
                if let Some(edit) = self.added(place, below)? {
                    edits.insert(name, Some(edit));
                }
            }
            if !edits.is_empty() {
                let written = update_dir(&self.view.trees, &mut self.batch, Some(&tree), &edits)?;
                record.body = Body::Directory { tree: written.tree, links: written.links || links };
                edited = true;
            }
        }
        self.attach(record.clone(), Some(place));
        Ok(edited.then_some(Target::Inode(record)))
    }

    /// Whether two directories at the same path, before and after, become one: they have the same number; or
    /// the new tree never assigned the old number, the kernel may hold the old directory, and it does not
    /// know the new one.
    fn is_same_dir(&self, old: &InodeRecord, new: &InodeRecord) -> bool {
        let known = |ino| self.state.nodes.get(&ino).is_some_and(|node| !node.is_orphan());
        let takes_over = || old.ino >= self.new_root.next_ino && known(old.ino) && !known(new.ino);
        let dirs = old.kind() == FileKind::Directory && new.kind() == FileKind::Directory;
        dirs && (old.ino == new.ino || takes_over())
    }

    /// Assigns fresh numbers to those linked inodes of the new view whose number the kernel may hold for
    /// different content.
    fn relink(&mut self) -> Result<()> {
        if self.new_root.links.is_none() {
            return Ok(());
        }
        let known: Vec<Ino> =
            self.state.nodes.iter().filter(|(_, n)| n.dir().is_none()).map(|(i, _)| *i).collect();
        for ino in known {
            let Some(record) = self.view.trees.link(&self.new_root, ino)? else { continue };
            if self.conflicts(&record) {
                let fresh = self.state.allocate()?;
                self.relinked.insert(ino, fresh);
                self.renumbered = true;
            }
        }
        self.moved = Rc::new(self.relinked.keys().copied().collect());
        Ok(())
    }

    /// Writes the new view's link table with the fresh numbers.
    fn write_links(&mut self, root: &Root) -> Result<Option<ObjectId>> {
        let mut changes = BTreeMap::new();
        for (ino, fresh) in &self.relinked {
            let record = self.view.trees.link(&self.new_root, *ino)?;
            changes.insert(*fresh, record.map(|record| InodeRecord { ino: *fresh, ..record }));
            changes.insert(*ino, None);
        }
        if changes.is_empty() {
            return Ok(root.links);
        }
        Ok(update_links(&self.view.trees, &mut self.batch, root.links.as_ref(), &changes)?)
    }

    /// Whether the kernel may hold something different under the record's number.
    fn conflicts(&self, record: &InodeRecord) -> bool {
        let Some(node) = self.state.nodes.get(&record.ino) else { return false };
        if node.is_orphan() {
            return true;
        }
        match (&record.body, &node.body) {
            // What the kernel caches below a directory must still be true if the directory comes back
            // elsewhere.
            (Body::Directory { tree, .. }, NodeBody::Dir(dir)) => *tree != dir.tree,
            (Body::Regular(new), NodeBody::File(FileBody::Lower(old))) => new.hash != old.hash,
            (Body::Symlink(new), NodeBody::Symlink(old)) => new != old,
            (Body::Special, NodeBody::Special) => {
                record.mode & libc::S_IFMT != node.meta.mode & libc::S_IFMT || record.rdev != node.meta.rdev
            }
            _ => true,
        }
    }

    /// If the inode is in the table, makes it match `record` and `place`.
    fn attach(&mut self, record: InodeRecord, place: Option<Place>) {
        let ino = record.ino;
        let Some(node) = self.state.nodes.get(&ino) else { return };
        if node.record_differs(&record) {
            self.invalid.push(Invalidation::Inode { ino });
        }
        self.attached.insert(ino, (record, place));
    }

    /// Updates linked inodes in the table from the new link table.
    fn refresh_linked(&mut self) -> Result<()> {
        let linked = self.state.nodes.iter().filter(|(ino, n)| n.linked || self.detached.contains(ino));
        let linked: Vec<Ino> = linked.map(|(ino, _)| *ino).collect();
        for ino in linked {
            if self.attached.contains_key(&ino) {
                continue;
            }
            match self.view.trees.link(&self.new_root, ino)? {
                Some(record) if !self.relinked.contains_key(&ino) => self.attach(record, None),
                _ => {
                    self.detached.insert(ino);
                }
            }
        }
        Ok(())
    }
}
