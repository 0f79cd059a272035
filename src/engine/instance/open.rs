//! One open environment: its view, its record, and what changes both. The same code runs in a serving process
//! and in a command whose environment is not mounted.
//!
//! Locks, outermost first: the store's lock (shared), `turn`, `metadata`. `metadata` is never held while the
//! view works.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use karapace_fs::attr::{DiffEntry, HeadRef};
use karapace_fs::session::Invalidator;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::error::StoreError;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{Body, Timestamp};
use karapace_store::layer::LayerRecord;
use karapace_store::lock::{EnvLock, StoreLock};
use karapace_store::metadata::Metadata;
use karapace_store::paths::Ignore;
use karapace_store::pins::Pin;
use karapace_store::tree::{Change, Trees, diff};
use karapace_store::wait::Deadline;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::watchers::Teller;
use super::{reference, sessions};
use crate::description::lifecycle;
use crate::description::manifest::Manifest;
use crate::engine::{Engine, Error, Result};

/// How long a command from a control file waits for the store's lock before it fails with EAGAIN. The process
/// that wrote the command cannot be interrupted, so this is short.
const BRIEF: Duration = Duration::from_secs(2);

/// Whether a command may wait for the store's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes: the caller can be interrupted.
    Long,
    /// Two seconds.
    Brief,
}

/// The result of a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitOutcome {
    /// The view's head layer after the commit.
    pub hash: LayerHash,
    /// Whether a snapshot was made; false when nothing had changed.
    pub created: bool,
    /// Paths added.
    pub added: u64,
    /// Paths modified.
    pub modified: u64,
    /// Paths deleted.
    pub deleted: u64,
}

/// The result of a restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// The requested snapshot. After a whole restore it is the view's head.
    pub hash: LayerHash,
    /// The snapshot that holds the changes that were uncommitted before, if there were any.
    pub saved: Option<LayerHash>,
    /// For a restore of chosen paths, how many paths changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// How many inodes, directories not counted, got the current time as their modification time.
    #[serde(default)]
    pub touched: u64,
}

/// Figures for `inspect` and `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Inodes that differ from the head.
    pub dirty_files: u64,
    /// Bytes of file data in the upper.
    pub dirty_bytes: u64,
}

/// What differs between the head's layer and the tree below the upper, without ignored paths.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Between {
    pub(super) record: Option<RecordId>,
    pub(super) root: Option<ObjectId>,
    /// Number of paths that differ.
    pub files: u64,
    /// Size of the regular files among them, in bytes.
    pub bytes: u64,
}

/// An environment that is open in this process. This process holds the environment's lock.
pub struct Instance {
    engine: Engine,
    pub(super) trees: Arc<Trees>,
    pub(super) view: Arc<View>,
    pub(super) metadata: Mutex<Metadata>,
    /// Held by one command at a time. True once the instance is closed.
    turn: Mutex<bool>,
    /// Cache of the layers' root objects. A layer's root never changes.
    roots: Mutex<HashMap<RecordId, ObjectId>>,
    /// What the manifest keeps out of layers.
    pub(super) ignore: Ignore,
    /// The last count of what differs between the head's layer and the tree below the upper.
    pub(super) between: Mutex<Option<Between>>,
    pin: Mutex<Option<Pin>>,
    /// Root objects of the snapshots in use through the control directory.
    looked_at: Mutex<Vec<ObjectId>>,
    pub(super) invalidator: OnceLock<Invalidator>,
    pub(super) teller: OnceLock<Arc<Teller>>,
    lock: EnvLock,
}

impl Instance {
    /// Opens an environment whose lock the caller holds. If a crash left the view and the record with
    /// different heads, the view's head wins and the record is corrected.
    pub fn open(engine: &Engine, mut metadata: Metadata, lock: EnvLock, read_only: bool) -> Result<Instance> {
        let store = engine.store();
        let trees = Arc::new(Trees::new(store.clone()));
        let ignore = ignored(&metadata)?;
        let root = LayerRecord::read(store, &metadata.head_record)?.tree;
        let head = HeadRef { layer: metadata.head, record: metadata.head_record, root };
        let read_only = read_only || !lifecycle::is_writable(metadata.state);
        let view = View::open(store, &trees, &store.upper_dir(&metadata.instance), head, read_only)?;
        view.set_name(&metadata.name);
        let actual = view.head();
        if actual.record != metadata.head_record {
            tracing::warn!(
                env = metadata.name,
                "the record says head {}, but the view is based on {}: using the view's",
                metadata.head,
                actual.layer
            );
            let _shared = StoreLock::shared(store)?;
            (metadata.head, metadata.head_record) = (actual.layer, actual.record);
            metadata.updated_at = Timestamp::now();
            if !store.is_read_only() {
                metadata.save(store)?;
            }
        }
        Ok(Instance {
            engine: engine.clone(),
            trees,
            view: Arc::new(view),
            metadata: Mutex::new(metadata),
            turn: Mutex::new(false),
            roots: Mutex::default(),
            ignore,
            between: Mutex::default(),
            pin: Mutex::new(None),
            looked_at: Mutex::default(),
            invalidator: OnceLock::new(),
            teller: OnceLock::new(),
            lock,
        })
    }

    /// The view.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The cache of trees that the view uses.
    pub fn trees(&self) -> &Arc<Trees> {
        &self.trees
    }

    /// The engine it was opened with.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// A copy of the record, with the view's head.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = self.metadata.lock().clone();
        let head = self.view.head();
        (metadata.head, metadata.head_record) = (head.layer, head.record);
        metadata
    }

    /// Connects the instance to its mount: from now on a restore tells the kernel through `invalidator` what
    /// to forget, and then notifies programs that watch files through `teller`.
    pub fn attach(&self, invalidator: Invalidator, teller: Arc<Teller>) {
        if self.invalidator.set(invalidator).is_err() || self.teller.set(teller).is_err() {
            tracing::error!("an environment was attached twice");
        }
    }

    /// Pins the view's tree from now on, together with the contents of open files that have no name any more:
    /// after a restore these files must still read what they had.
    pub fn hold_pin(&self) -> Result<()> {
        let _shared = StoreLock::shared(self.store())?;
        *self.pin.lock() = Some(Pin::hold(self.store(), &[self.view.head().root])?);
        Ok(())
    }

    /// The state to show: Running while a session is inside.
    pub fn state(&self) -> String {
        let metadata = self.metadata.lock();
        sessions::shown_state(&self.engine, &metadata).to_string()
    }

    /// The paths that differ from the head's layer or, if given, from the snapshot `since`, without ignored
    /// paths.
    pub fn diff(&self, since: Option<&str>) -> Result<Vec<DiffEntry>> {
        let record = match since {
            Some(since) => reference::resolve(&self.metadata(), since)?.record,
            None => self.view.head().record,
        };
        let mut changes = self.view.diff_from(&self.root_of(&record)?)?;
        changes.retain(|change| !self.ignore.covers(&change.path));
        Ok(changes)
    }

    /// Counts what is uncommitted.
    pub fn status(&self) -> Status {
        let stats = self.view.stats();
        // If this count fails, report the rest all the same; `diff` and `commit` return the error.
        let between = self.between().unwrap_or_else(|error| {
            tracing::error!("cannot count uncommitted changes: {error}");
            Between::default()
        });
        Status {
            dirty_files: stats.dirty_inodes + between.files,
            dirty_bytes: stats.dirty_bytes + between.bytes,
        }
    }

    /// Counts what is uncommitted but not in the upper: what a commit or restore of chosen paths left in the
    /// tree below.
    pub(super) fn between(&self) -> Result<Between> {
        let head = self.view.head();
        let known = *self.between.lock();
        if let Some(known) =
            known.filter(|known| (known.record, known.root) == (Some(head.record), Some(head.root)))
        {
            return Ok(known);
        }
        let layer = self.trees.root(&self.root_of(&head.record)?)?;
        let below = self.trees.root(&head.root)?;
        let mut found = Between { record: Some(head.record), root: Some(head.root), files: 0, bytes: 0 };
        diff(&self.trees, Some(&layer), &below, &mut |path, change| {
            if self.ignore.covers(path) {
                return Ok(());
            }
            found.files += 1;
            if let Change::Added(new) | Change::Modified { new, .. } = change
                && let Body::Regular(content) = &new.body
            {
                found.bytes += content.size;
            }
            Ok(())
        })?;
        *self.between.lock() = Some(found);
        Ok(found)
    }

    /// The root object of a layer.
    pub fn root_of(&self, record: &RecordId) -> Result<ObjectId> {
        if let Some(root) = self.roots.lock().get(record) {
            return Ok(*root);
        }
        let root = LayerRecord::read(self.store(), record)?.tree;
        self.roots.lock().insert(*record, root);
        Ok(root)
    }

    /// Closes the environment: no command runs after this, and the view's checkpoint is written.
    pub fn close(&self) -> Result<()> {
        let mut closed = self.turn.lock();
        if !std::mem::replace(&mut *closed, true) {
            // The pin ends here even if references to the instance remain.
            drop(self.pin.lock().take());
            self.view.close()?;
        }
        Ok(())
    }

    /// Closes the instance and keeps the lock: nothing changes until the lock is dropped.
    pub(in crate::engine) fn into_lock(self) -> Result<EnvLock> {
        self.close()?;
        Ok(self.lock)
    }

    /// Whether [`Instance::close`] was called.
    pub fn is_closed(&self) -> bool {
        *self.turn.lock()
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        self.engine.store()
    }

    pub(super) fn lock_store(&self, wait: Wait) -> Result<StoreLock> {
        if wait == Wait::Long {
            return Ok(StoreLock::shared(self.store())?);
        }
        let deadline = Deadline::after(BRIEF);
        loop {
            match StoreLock::try_shared(self.store()) {
                Err(StoreError::Locked { .. }) if !deadline.has_passed() => deadline.pause(),
                other => return Ok(other?),
            }
        }
    }

    pub(super) fn take_turn(&self) -> Result<parking_lot::MutexGuard<'_, bool>> {
        let closed = self.turn.lock();
        if *closed {
            return Err(Error::Fs(karapace_fs::Error::TryAgain));
        }
        Ok(closed)
    }

    pub(super) fn check_state(&self) -> Result<()> {
        let metadata = self.metadata.lock();
        if lifecycle::is_writable(metadata.state) {
            return Ok(());
        }
        let why = metadata.state.to_string().to_lowercase();
        Err(Error::ReadOnly { env: metadata.name.clone(), why })
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_state()?;
        if self.view.is_read_only() {
            let env = self.metadata.lock().name.clone();
            return Err(Error::ReadOnly { env, why: "mounted read-only".to_owned() });
        }
        Ok(())
    }

    pub(super) fn check_name_is_free(&self, name: &str) -> Result<()> {
        let metadata = self.metadata.lock();
        if metadata.snapshots.iter().any(|s| s.name.as_deref() == Some(name)) {
            return Err(Error::SnapshotNameTaken { env: metadata.name.clone(), name: name.to_owned() });
        }
        Ok(())
    }

    /// Pins these roots of snapshots, in place of those pinned by the last call and in addition to what the
    /// view needs.
    ///
    /// # Errors
    /// `NotFound` if a root that was not pinned before is no longer a snapshot: a collection may have begun
    /// to remove it.
    pub(in crate::engine) fn keep_snapshots(&self, roots: &[ObjectId]) -> Result<()> {
        // No collection can begin while this is held: the listed snapshots are complete, and the next
        // collection sees the pin.
        let _shared = self.lock_store(Wait::Brief)?;
        let mut pin = self.pin.lock();
        let mut looked_at = self.looked_at.lock();
        let listed = self.metadata.lock().snapshots.clone();
        for root in roots.iter().filter(|root| !looked_at.contains(root)) {
            let is_listed = listed.iter().any(|s| self.root_of(&s.record).is_ok_and(|known| known == *root));
            if !is_listed {
                return Err(Error::Fs(karapace_fs::Error::NotFound));
            }
        }
        if let Some(pin) = pin.as_mut() {
            let all = [&[self.view.head().root], roots].concat();
            pin.set(&all, &self.view.unnamed_objects())?;
        }
        *looked_at = roots.to_vec();
        Ok(())
    }

    /// Pins what the view needs now. A failure here does not fail the commit or restore before it: the upper
    /// keeps the view's tree, and what was pinned before stays pinned.
    pub(super) fn pin_head(&self) {
        let mut pin = self.pin.lock();
        let Some(pin) = pin.as_mut() else { return };
        let roots = [&[self.view.head().root], &self.looked_at.lock()[..]].concat();
        if let Err(error) = pin.set(&roots, &self.view.unnamed_objects()) {
            tracing::warn!("{error}; gc may remove objects that open but deleted files need");
        }
    }

    /// Changes the record durably. On failure the old record stays, on disk and in memory.
    pub(super) fn update_metadata(
        &self,
        change: impl FnOnce(&mut Metadata),
    ) -> std::result::Result<(), StoreError> {
        let mut current = self.metadata.lock();
        let mut next = current.clone();
        change(&mut next);
        next.updated_at = Timestamp::now();
        next.save(self.store())?;
        *current = next;
        Ok(())
    }
}

/// Begins the upper of a new environment over the tree `root` instead of its head's.
pub(in crate::engine) fn begin_upper(store: &Arc<Store>, env: &Metadata, root: &ObjectId) -> Result<()> {
    let trees = Arc::new(Trees::new(store.clone()));
    let head = HeadRef { layer: env.head, record: env.head_record, root: *root };
    Ok(View::open(store, &trees, &store.upper_dir(&env.instance), head, false)?.close()?)
}

/// The paths that an environment's manifest keeps out of layers.
pub(super) fn ignored(metadata: &Metadata) -> Result<Ignore> {
    let manifest =
        Manifest::parse(&metadata.manifest, Path::new("the manifest in the environment's record"))?;
    Ok(Ignore::new(manifest.snapshot.ignore))
}
