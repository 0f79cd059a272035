//! The view: lower and upper merged into one file system with Linux semantics, independent of FUSE.
//!
//! - `table`, `node`: the inode table, which holds the inodes that the kernel knows and the dirty ones; items
//!   are the only way to change it.
//! - `ops`: file operations, one file per family.
//! - `content`: reads bytes from the store and verifies them on first read; `walk`: read-ahead.
//! - `commit`: moves dirty inodes into the store. `restore`, with `exchange` and `told`: replaces the lower.
//! - `diff`: lists uncommitted changes. `recover`: repairs an upper after a crash.
//!
//! All of them are methods of [`View`]. This file defines it, with what concerns the view as a whole:
//! opening, closing, checkpoints. The table knows no operation, and operations know neither commit nor
//! restore. The upper receives items and knows nothing of the table.
//!
//! Lock order: `committing`, `gate`, `DataFile::lock`, `state`, the upper's journal, caches.

mod changes;
mod commit;
mod content;
mod diff;
mod exchange;
mod fold;
mod gate;
pub(crate) mod node;
mod ops;
mod recover;
mod restore;
pub(crate) mod table;
mod told;
mod walk;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use karapace_store::Store;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{Ino, ROOT_INO, Timestamp};
use karapace_store::tree::Trees;
use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use parking_lot::{Mutex, RwLock};

use crate::attr::{Attr, HeadRef, Invalidation, NAME_MAX, StatFs, ViewStats};
use crate::error::{Error, Result};
use crate::upper::journal::Room;
use crate::upper::record::Item;
use crate::upper::{Upper, is_full};
use crate::view::content::ContentReader;
use crate::view::gate::Gate;
use crate::view::node::{FileBody, NodeBody};
use crate::view::table::{Forgotten, State};
use crate::view::walk::Walks;

pub(crate) use changes::observed;
pub use commit::{Publish, Published, Stays, Stored};
pub use gate::Hold;
pub use ops::Sought;
pub use walk::Ahead;

/// An environment's file system (or, read-only, a snapshot's). All methods may be called from any thread.
///
/// # Errors
/// A method that takes an inode number fails with [`Error::Stale`] if the view does not have that inode, and
/// one that changes something with [`Error::ReadOnly`] while changes are refused. A `parent` that is not a
/// directory gives [`Error::NotDirectory`], a removed one [`Error::NotFound`]; a name above 255 bytes gives
/// [`Error::NameTooLong`]. Errors of the host, such as a full disk, come as [`Error::Host`] or [`Error::Io`],
/// and those of the store as [`Error::Store`].
pub struct View {
    store: Arc<Store>,
    trees: Arc<Trees>,
    content: Arc<ContentReader>,
    /// Locked after `state`.
    walks: Mutex<Walks>,
    state: RwLock<State>,
    /// Shared while an operation makes a change; exclusive during seal and swap.
    gate: Gate,
    /// One commit or restore at a time.
    committing: Mutex<()>,
    /// `None` in a snapshot view.
    upper: Option<Upper>,
    read_only: AtomicBool,
    /// Whether changes are journalled; otherwise they count from the next checkpoint on.
    journals: AtomicBool,
    /// Set when most inodes have been forgotten: the heap memory they used should go back to the system.
    shrunk: AtomicBool,
    /// The environment's name, for messages.
    name: OnceLock<String>,
}

impl View {
    /// Opens the upper at `upper` over its lower view, or creates it on `head` if it does not exist. An
    /// existing upper records its own head, and `head` is ignored. The caller holds the environment's lock.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the upper is damaged.
    pub fn open(
        store: &Arc<Store>,
        trees: &Arc<Trees>,
        upper: &Path,
        head: HeadRef,
        read_only: bool,
    ) -> Result<View> {
        let loaded = Upper::open(store.files(), upper, head, !read_only)?;
        let root = trees.root(&loaded.head.root)?;
        let mut state = State::new(root, loaded.head);
        state.apply(loaded.settled)?;
        for node in state.nodes.values_mut() {
            node.touched = false;
        }
        state.apply(loaded.replayed)?;
        state.recount_children();
        state.generation = 1;
        let view = View::assemble(store, trees, state, Some(loaded.upper), read_only);
        view.recover()?;
        Ok(view)
    }

    /// A read-only view of a root object, with nothing on disk.
    pub fn snapshot(trees: &Arc<Trees>, root: ObjectId) -> Result<View> {
        let head =
            HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root };
        let state = State::new(trees.root(&root)?, head);
        Ok(View::assemble(trees.store(), trees, state, None, true))
    }

    fn assemble(
        store: &Arc<Store>,
        trees: &Arc<Trees>,
        state: State,
        upper: Option<Upper>,
        read_only: bool,
    ) -> View {
        View {
            store: store.clone(),
            trees: trees.clone(),
            content: Arc::new(ContentReader::new(store.clone())),
            walks: Mutex::default(),
            state: RwLock::new(state),
            gate: Gate::default(),
            committing: Mutex::new(()),
            upper,
            read_only: AtomicBool::new(read_only),
            journals: AtomicBool::new(true),
            shrunk: AtomicBool::new(false),
            name: OnceLock::new(),
        }
    }

    /// Store objects that are still read through open inodes without a name.
    pub fn unnamed_objects(&self) -> Vec<ObjectId> {
        let state = self.state.read();
        let contents = state.nodes.values().filter(|n| n.is_orphan()).filter_map(|n| match n.file()? {
            FileBody::Lower(content) => Some(content),
            FileBody::Blocks(blocks) => Some(&blocks.base),
            FileBody::Whole(_) => None,
        });
        contents.flat_map(|content| content.objects()).collect()
    }

    /// Sets the name used in messages; only the first call counts.
    pub fn set_name(&self, name: &str) {
        self.name.get_or_init(|| name.to_owned());
    }

    /// Looks up a name and counts one kernel reference.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotDirectory`]; [`Error::NameTooLong`] above 255 bytes.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let mut state = self.state.write();
        let ino = state.load(&self.trees, parent, name)?.ok_or(Error::NotFound)?;
        self.referenced(&mut state, ino)
    }

    /// Counts one kernel reference and returns the attributes.
    fn referenced(&self, state: &mut State, ino: Ino) -> Result<Attr> {
        self.settle_times(state, ino)?;
        let node = state.node_mut(ino)?;
        node.lookups += 1;
        Ok(node.attr(ino))
    }

    /// Number of references that the kernel holds to an inode.
    pub fn references(&self, ino: Ino) -> u64 {
        self.state.read().nodes.get(&ino).map_or(0, |node| node.lookups)
    }

    /// What a kernel may have cached of the inodes for which `holds` is true, given their references: the
    /// name of each, if it has one only, and its attributes.
    pub(crate) fn known(&self, holds: &dyn Fn(Ino, u64) -> bool) -> Vec<Invalidation> {
        let state = self.state.read();
        let mut known = vec![Invalidation::Inode { ino: ROOT_INO }];
        for (ino, node) in state.nodes.iter().filter(|(ino, node)| holds(**ino, node.lookups)) {
            if let Some(place) = &node.place {
                known.push(Invalidation::Entry { parent: place.parent, name: place.name.clone() });
            }
            known.push(Invalidation::Inode { ino: *ino });
        }
        known
    }

    /// Drops all kernel references but as many as `stay` tells for an inode.
    pub(crate) fn forget_all_but(&self, stay: &dyn Fn(Ino) -> u64) {
        let held: Vec<(Ino, u64)> =
            self.state.read().nodes.iter().map(|(ino, node)| (*ino, node.lookups)).collect();
        for (ino, lookups) in held {
            let gone = lookups.saturating_sub(stay(ino));
            if gone > 0 {
                self.forget(ino, gone);
            }
        }
    }

    /// Drops `n` kernel references.
    pub fn forget(&self, ino: Ino, n: u64) {
        let mut state = self.state.write();
        let forgotten = state.forget(ino, n);
        self.bury(forgotten);
        if state.shrink() {
            self.shrunk.store(true, Ordering::Relaxed);
        }
    }

    /// The data files of forgotten inodes can be removed once the journal is durable. The caller holds the
    /// state lock.
    fn bury(&self, forgotten: Forgotten) {
        if let Some(upper) = self.upper.as_ref().filter(|_| !forgotten.data.is_empty()) {
            upper.bury(forgotten.data);
        }
    }

    /// Whether most inodes were forgotten, so that [`View::trim`] should be called from a thread on which no
    /// request waits. Returns true once per shrink.
    pub fn wants_trim(&self) -> bool {
        self.shrunk.load(Ordering::Relaxed) && self.shrunk.swap(false, Ordering::Relaxed)
    }

    /// Returns the memory of forgotten inodes, and of the trees read for them, to the system.
    pub fn trim(&self) {
        self.trees.clear_cache();
        crate::sys::trim_heap();
    }

    /// Whether files were removed, so that [`View::relieve`] should be called from a thread on which no
    /// request waits. Returns true once.
    pub fn wants_relief(&self) -> bool {
        self.upper.as_ref().is_some_and(Upper::wants_relief)
    }

    /// Returns the disk space of removed files to the host.
    pub fn relieve(&self) {
        if let Some(upper) = &self.upper {
            upper.relieve();
        }
    }

    /// Runs `work`, and retries it once if the disk was full and removed files could be reclaimed.
    fn with_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match (work(), &self.upper) {
            (Err(error), Some(upper)) if is_full(&error) && upper.reclaim() => work(),
            (done, _) => done,
        }
    }

    /// Attributes of an inode.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let state = self.state.read();
        let node = state.node(ino)?;
        if !node.stale_times {
            return Ok(node.attr(ino));
        }
        drop(state);
        let mut state = self.state.write();
        self.settle_times(&mut state, ino)?;
        Ok(state.node(ino)?.attr(ino))
    }

    /// Updates the modification time from the data file if a write has changed it.
    fn settle_times(&self, state: &mut State, ino: Ino) -> Result<()> {
        let node = state.node_mut(ino)?;
        if !node.stale_times {
            return Ok(());
        }
        if let (Some(upper), Some(data)) = (&self.upper, node.file().and_then(FileBody::data)) {
            let mtime = upper.data.stat(data)?.mtime;
            // The host's file clock is coarser than ours: a write right after another change can appear to
            // precede it.
            let floor = if mtime == node.meta.mtime { node.meta.ctime } else { just_after(node.meta.ctime) };
            node.meta.mtime = mtime;
            node.meta.ctime = floor.max(mtime);
        }
        node.stale_times = false;
        Ok(())
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other inode.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.state.read().node(ino)?.body {
            NodeBody::Symlink(target) => Ok(target.to_vec()),
            _ => Err(Error::Invalid("not a symbolic link")),
        }
    }

    /// Statistics of the host file system that holds the upper, or the store for a view that has none: one of
    /// a snapshot, or one that was opened read-only before anything was ever written.
    pub fn statfs(&self) -> Result<StatFs> {
        let of_upper = self.upper.as_ref().map(|upper| {
            // Removed files count as free space.
            upper.reclaim();
            statvfs(upper.dir())
        });
        let s = match of_upper {
            None | Some(Err(Errno::ENOENT)) => statvfs(self.store.shared_dir())?,
            Some(found) => found?,
        };
        Ok(StatFs {
            blocks: s.blocks(),
            bfree: s.blocks_free(),
            bavail: s.blocks_available(),
            files: s.files(),
            ffree: s.files_free(),
            bsize: u32::try_from(s.block_size()).unwrap_or(4096),
            frsize: u32::try_from(s.fragment_size()).unwrap_or(4096),
            namelen: NAME_MAX as u32,
        })
    }

    /// Whether changes are refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Refuses or allows changes from now on. A snapshot view stays read-only.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only || self.upper.is_none(), Ordering::Release);
    }

    /// Blocks changes to the view until the hold is dropped, for callers that take several steps between
    /// which nothing may change. Only one hold at a time: the caller serializes its environment's commits and
    /// restores.
    pub fn hold(&self) -> Hold<'_> {
        self.gate.hold()
    }

    /// Lower bound for unused inode numbers: above every number that the view has assigned.
    pub fn next_ino(&self) -> Ino {
        self.state.read().next_ino
    }

    /// The layer the view stands on, with the tree that its changes are applied to.
    pub fn head(&self) -> HeadRef {
        self.state.read().head
    }

    /// Counters for `status`.
    pub fn stats(&self) -> ViewStats {
        let state = self.state.read();
        let mut stats = ViewStats {
            generation: state.generation,
            cached_inodes: state.nodes.len() as u64,
            ..ViewStats::default()
        };
        for (_, node) in state.dirty_nodes() {
            stats.dirty_inodes += 1;
            stats.dirty_bytes += match node.file() {
                Some(FileBody::Whole(_)) => node.meta.size,
                Some(FileBody::Blocks(b)) => b.dirty.len() * karapace_store::content::BLOCK,
                _ => 0,
            };
        }
        stats
    }

    /// The upper, if the view can be changed now.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] for a snapshot view and while changes are refused.
    fn writable(&self) -> Result<&Upper> {
        match &self.upper {
            Some(upper) if !self.is_read_only() => Ok(upper),
            _ => Err(Error::ReadOnly),
        }
    }

    /// Journals and applies an operation's items. Fails on a full disk.
    fn change(&self, state: &mut State, items: Vec<Item>) -> Result<()> {
        self.change_in(state, items, Room::Ordinary)
    }

    /// Journals and applies an operation's items. Items that concern only inodes without a name are not
    /// journalled: those inodes do not survive a crash, and a checkpoint written since their removal does not
    /// know them.
    fn change_in(&self, state: &mut State, items: Vec<Item>, room: Room) -> Result<()> {
        let upper = self.writable()?;
        let lasts =
            |item: &Item| item.ino().and_then(|ino| state.nodes.get(&ino)).is_none_or(|n| !n.is_orphan());
        if self.journals.load(Ordering::Relaxed) && items.iter().any(lasts) {
            upper.append(&items, room)?;
        }
        state.apply(items)
    }

    /// From now on changes take effect with the next checkpoint, and not before.
    fn stop_journal(&self) {
        self.journals.store(false, Ordering::Relaxed);
    }

    /// Syncs data that was written into committed files, writes a checkpoint when the journal has grown long,
    /// and frees the space of removed files. Called between operations.
    pub fn maintain(&self) -> Result<()> {
        self.sync_fresh();
        match &self.upper {
            Some(upper) if !self.is_read_only() && (upper.wants_checkpoint() || upper.is_broken()) => {
                self.checkpoint()
            }
            Some(upper) => {
                upper.reclaim();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Writes a checkpoint, so that the next open has nothing to replay.
    pub fn checkpoint(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let _gate = self.gate.write();
        let mut state = self.state.write();
        self.settle_all_times(&mut state)?;
        upper.checkpoint(state.head, state.checkpoint_items(upper.boot)?)?;
        state.clear_touched();
        Ok(())
    }

    fn settle_all_times(&self, state: &mut State) -> Result<()> {
        let stale: Vec<Ino> =
            state.dirty_nodes().filter(|(_, n)| n.stale_times).map(|(ino, _)| ino).collect();
        stale.into_iter().try_for_each(|ino| self.settle_times(state, ino))
    }

    /// Makes all data durable and writes a last checkpoint. The view must not be used afterwards.
    pub fn close(&self) -> Result<()> {
        let Some(upper) = self.upper.as_ref().filter(|_| !self.is_read_only()) else { return Ok(()) };
        upper.data.drop_ahead();
        let fresh = self.fresh_files()?;
        if !upper.sync_all_data()? {
            self.sync_each(upper, &fresh)?;
        }
        let mut state = self.state.write();
        fresh.iter().for_each(|found| found.drop_fresh(&mut state));
        drop(state);
        self.checkpoint()
    }
}

/// The smallest timestamp later than `time`.
fn just_after(time: Timestamp) -> Timestamp {
    match time.nanos {
        999_999_999 => Timestamp { secs: time.secs.saturating_add(1), nanos: 0 },
        nanos => Timestamp { nanos: nanos + 1, ..time },
    }
}

/// Rejects strings that cannot be a file name.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::Invalid("a name must not be empty or contain / or NUL"));
    }
    if name == b"." || name == b".." {
        return Err(Error::Exists);
    }
    Ok(())
}
