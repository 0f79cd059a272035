//! One environment, open: its view and its record, and what changes both. The same code serves a mount and a
//! command that finds the environment unmounted.
//!
//! Locks, outermost first: the store's lock (shared), `turn`, `metadata`. `metadata` is never held while the
//! view works.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::watchers::Teller;
use super::{reference, sessions};
use crate::description::lifecycle;
use crate::description::manifest::Manifest;
use crate::engine::{Engine, Error, Result};

/// How long a command from a control file waits for the store's lock before it fails with EAGAIN: its writer
/// cannot be interrupted.
const BRIEF: Duration = Duration::from_secs(2);

/// Whether a command may wait for the store's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes: whoever asked can be interrupted.
    Long,
    /// Two seconds.
    Brief,
}

/// What a commit did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommitOutcome {
    /// The layer that the view stands on now.
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

/// What a restore did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreOutcome {
    /// The snapshot that was asked for. After a whole restore the view stands on it.
    pub hash: LayerHash,
    /// The snapshot that took the uncommitted changes, if there were any.
    pub saved: Option<LayerHash>,
    /// Of a restore of chosen paths: how many paths changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// How many inodes that are no directories got the present time as their modification time.
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

/// What differs between the head's layer and the tree that the upper lies over, ignored paths left out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Between {
    pub(super) record: Option<RecordId>,
    pub(super) root: Option<ObjectId>,
    /// Paths.
    pub files: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
}

/// An environment, open in this process, which holds its lock.
pub struct Instance {
    engine: Engine,
    pub(super) trees: Arc<Trees>,
    pub(super) view: Arc<View>,
    pub(super) metadata: Mutex<Metadata>,
    /// One command at a time; true once the instance is closed.
    turn: Mutex<bool>,
    /// Root objects of layers, which never change; read once.
    roots: Mutex<HashMap<RecordId, ObjectId>>,
    /// What the manifest keeps out of layers.
    pub(super) ignore: Ignore,
    /// What lies between the head's layer and the tree below the upper, as last counted.
    pub(super) between: Mutex<Option<Between>>,
    pin: Mutex<Option<Pin>>,
    /// Root objects of snapshots that are looked at through the control directory.
    looked_at: Mutex<Vec<ObjectId>>,
    pub(super) invalidator: OnceLock<Invalidator>,
    pub(super) teller: OnceLock<Teller>,
    lock: EnvLock,
}

impl Instance {
    /// Opens an environment whose lock is held. Where a crash left view and record with different heads, the
    /// view's wins and the record is mended.
    pub fn open(engine: &Engine, mut metadata: Metadata, lock: EnvLock, read_only: bool) -> Result<Instance> {
        let store = engine.store();
        let trees = Arc::new(Trees::new(store.clone()));
        let ignore = ignored(&metadata)?;
        let root = LayerRecord::read(store, &metadata.head_record)?.tree;
        let head = HeadRef { layer: metadata.head, record: metadata.head_record, root };
        let read_only = read_only || !lifecycle::is_writable(metadata.state);
        let view = View::open(store, &trees, &store.layout().upper(&metadata.instance), head, read_only)?;
        view.set_name(&metadata.name);
        let actual = view.head();
        if actual.record != metadata.head_record {
            tracing::warn!(
                env = metadata.name,
                "the record says head {}, the view stands on {}: the view is right",
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

    /// A copy of the record; head as the view has it.
    pub fn metadata(&self) -> Metadata {
        let mut metadata = self.metadata.lock().clone();
        let head = self.view.head();
        (metadata.head, metadata.head_record) = (head.layer, head.record);
        metadata
    }

    /// From now on a restore tells the kernel through `invalidator` what to forget, and then, by `teller`,
    /// programs that watch files.
    pub fn attach(&self, invalidator: Invalidator, teller: Teller) {
        if self.invalidator.set(invalidator).is_err() || self.teller.set(teller).is_err() {
            tracing::error!("an environment was attached to two mounts");
        }
    }

    /// Keeps from now on the tree that the view stands on, and what files read that are open and have no name
    /// any more: after a restore they go on reading what they had.
    pub fn hold_pin(&self) -> Result<()> {
        let _shared = StoreLock::shared(self.store())?;
        *self.pin.lock() = Some(Pin::hold(self.store(), &[self.view.head().root])?);
        Ok(())
    }

    /// State as shown: Running while a session is inside.
    pub fn state(&self) -> String {
        let metadata = self.metadata.lock();
        sessions::shown_state(&self.engine, &metadata).to_string()
    }

    /// What differs from the head's layer, or from the snapshot `since`, but for what is ignored.
    pub fn diff(&self, since: Option<&str>) -> Result<Vec<DiffEntry>> {
        let record = match since {
            Some(since) => reference::resolve(&self.metadata(), since)?.record,
            None => self.view.head().record,
        };
        let mut changes = self.view.diff_from(&self.root_of(&record)?)?;
        changes.retain(|change| !self.ignore.covers(&change.path));
        Ok(changes)
    }

    /// Figures of what is uncommitted.
    pub fn status(&self) -> Status {
        let stats = self.view.stats();
        // What cannot be counted is no reason to say nothing of the rest; diff and commit will tell.
        let between = self.between().unwrap_or_else(|error| {
            tracing::error!("counting what is uncommitted: {error}");
            Between::default()
        });
        Status {
            dirty_files: stats.dirty_inodes + between.files,
            dirty_bytes: stats.dirty_bytes + between.bytes,
        }
    }

    /// What counts as uncommitted although it is not in the upper: a commit or restore of chosen paths left
    /// it in the tree below.
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

    /// Ends the work on the environment: no command runs after this, the view's checkpoint is written.
    pub fn close(&self) -> Result<()> {
        let mut closed = self.turn.lock();
        if !std::mem::replace(&mut *closed, true) {
            // Whoever holds on to the instance, its pin ends here.
            drop(self.pin.lock().take());
            self.view.close()?;
        }
        Ok(())
    }

    /// Closes it and keeps the lock: from here on nothing changes until the lock is dropped.
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
        let start = Instant::now();
        loop {
            match StoreLock::try_shared(self.store()) {
                Err(StoreError::Locked { .. }) if start.elapsed() < BRIEF => {
                    std::thread::sleep(Duration::from_millis(20));
                }
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

    pub(super) fn check_snapshot_name(&self, name: &str) -> Result<()> {
        check_snapshot_name(name)?;
        let metadata = self.metadata.lock();
        if metadata.snapshots.iter().any(|s| s.name.as_deref() == Some(name)) {
            return Err(Error::SnapshotNameTaken { env: metadata.name.clone(), name: name.to_owned() });
        }
        Ok(())
    }

    /// Pins these roots of snapshots from now on, instead of those before, beside what the view needs.
    ///
    /// # Errors
    /// `NotFound` when one that was not pinned is no snapshot any more: a collection may have begun to remove
    /// it.
    pub(in crate::engine) fn keep_snapshots(&self, roots: &[ObjectId]) -> Result<()> {
        // With it held no collection begins: what is listed is there, and will be found pinned.
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

    /// Pins what the view needs now. A failure is no failure of the commit or restore before it: what the
    /// view stands on is kept by its upper, and what was pinned before stays pinned.
    pub(super) fn pin_head(&self) {
        let mut pin = self.pin.lock();
        let Some(pin) = pin.as_mut() else { return };
        let roots = [&[self.view.head().root], &self.looked_at.lock()[..]].concat();
        if let Err(error) = pin.set(&roots, &self.view.unnamed_objects()) {
            tracing::warn!("{error}; a collection may take what files read that are open and removed");
        }
    }

    /// Changes the record, durably; on failure the old one stays, on disk and here.
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

/// What an environment's manifest keeps out of layers.
pub(super) fn ignored(metadata: &Metadata) -> Result<Ignore> {
    let manifest =
        Manifest::parse(&metadata.manifest, Path::new("the manifest in the environment's record"))?;
    Ok(Ignore::new(manifest.snapshot.ignore))
}

/// Whether a snapshot may have this name at all.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    karapace_fs::control::command::check_snapshot_name(name).map_err(Error::Invalid)
}
