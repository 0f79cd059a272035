//! One environment, open: its view and its record, and what changes both. The same code serves a mount and a command
//! that finds the environment unmounted.
//!
//! Locks, outermost first: the store's lock (shared), `turn`, `metadata`. `metadata` is never held while the view works.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use karapace_fs::attr::{DiffEntry, HeadRef, Invalidation};
use karapace_fs::session::Invalidator;
use karapace_fs::view::{Sealed, View};
use karapace_store::Store;
use karapace_store::error::StoreError;
use karapace_store::fail;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::Timestamp;
use karapace_store::layer::{LayerKind, LayerRecord, snapshot_hash};
use karapace_store::lock::{EnvLock, StoreLock};
use karapace_store::metadata::{Metadata, SnapshotEntry};
use karapace_store::pins::Pin;
use karapace_store::tree::Trees;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::reference::{self, LayerRef};
use super::{Engine, Error, Result, sessions};
use crate::lifecycle;

/// How long a command from a control file waits for the store's lock before it fails with EAGAIN: its writer cannot be
/// interrupted.
const BRIEF: Duration = Duration::from_secs(2);

/// How often a restore commits what was written meanwhile before it gives up.
const RESTORE_ATTEMPTS: u32 = 20;

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
    /// The layer that the view stands on now.
    pub hash: LayerHash,
    /// The snapshot that took the uncommitted changes, if there were any.
    pub saved: Option<LayerHash>,
}

/// Figures for `inspect` and `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Inodes that differ from the head.
    pub dirty_files: u64,
    /// Bytes of file data in the upper.
    pub dirty_bytes: u64,
}

/// An environment, open in this process, which holds its lock.
pub struct Instance {
    engine: Engine,
    trees: Arc<Trees>,
    view: Arc<View>,
    metadata: Mutex<Metadata>,
    /// One command at a time; true once the instance is closed.
    turn: Mutex<bool>,
    /// Root objects of layers, which never change; read once.
    roots: Mutex<HashMap<RecordId, ObjectId>>,
    pin: Mutex<Option<(Pin, Vec<ObjectId>)>>,
    invalidator: OnceLock<Invalidator>,
    _lock: EnvLock,
}

impl Instance {
    /// Opens an environment whose lock is held. Where a crash left view and record with different heads, the view's wins and
    /// the record is mended.
    pub fn open(engine: &Engine, mut metadata: Metadata, lock: EnvLock, read_only: bool) -> Result<Instance> {
        let store = engine.store();
        let trees = Arc::new(Trees::new(store.clone()));
        let root = LayerRecord::read(store, &metadata.head_record)?.tree;
        let head = HeadRef { layer: metadata.head, record: metadata.head_record, root };
        let read_only = read_only || !lifecycle::is_writable(metadata.state);
        let view = View::open(store, &trees, &store.layout().upper(&metadata.instance), head, read_only)?;
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
            metadata.save(store)?;
        }
        Ok(Instance {
            engine: engine.clone(),
            trees,
            view: Arc::new(view),
            metadata: Mutex::new(metadata),
            turn: Mutex::new(false),
            roots: Mutex::default(),
            pin: Mutex::new(None),
            invalidator: OnceLock::new(),
            _lock: lock,
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

    /// From now on a restore tells the kernel through `invalidator` what to forget.
    pub fn attach(&self, invalidator: Invalidator) {
        if self.invalidator.set(invalidator).is_err() {
            tracing::error!("an environment was attached to two mounts");
        }
    }

    /// Keeps from now on every tree that the view has stood on: files opened before a restore go on reading it.
    pub fn hold_pin(&self) -> Result<()> {
        let _shared = StoreLock::shared(self.store())?;
        let roots = vec![self.view.head().root];
        *self.pin.lock() = Some((Pin::hold(self.store(), &roots)?, roots));
        Ok(())
    }

    /// State as shown: Running while a session is inside.
    pub fn state(&self) -> String {
        let metadata = self.metadata.lock();
        sessions::shown_state(&self.engine, &metadata).to_string()
    }

    /// What differs from the head.
    pub fn diff(&self) -> Result<Vec<DiffEntry>> {
        Ok(self.view.diff()?)
    }

    /// Figures of the upper.
    pub fn status(&self) -> Status {
        let stats = self.view.stats();
        Status { dirty_files: stats.dirty_inodes, dirty_bytes: stats.dirty_bytes }
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

    /// Makes a snapshot of the view; with no change the head is given back and nothing is added, but for the name.
    pub fn commit(&self, name: Option<&str>, message: Option<&str>, wait: Wait) -> Result<CommitOutcome> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        self.check_writable()?;
        if let Some(name) = name {
            self.check_snapshot_name(name)?;
        }
        let outcome = self.commit_changes(name, message)?;
        if let (false, Some(name)) = (outcome.created, name) {
            self.name_head(name, message)?;
        }
        Ok(outcome)
    }

    /// Makes the view equal to a snapshot. Uncommitted changes are committed first.
    pub fn restore(&self, reference: &str, wait: Wait) -> Result<RestoreOutcome> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        self.check_writable()?;
        // Resolved before the commit below: `head`, `latest` and `~k` mean what they meant when asked.
        let LayerRef { hash, record } = reference::resolve(&self.metadata(), reference)?;
        let target = HeadRef { layer: hash, record, root: self.root_of(&record)? };
        let message = format!("before restore of {}", &hash.to_hex()[..12]);
        let (saved, stale) = self.save_and_swap(target, &message)?;
        fail::passed("restore.record");
        // The view is another one now: whatever fails here, the kernel has to hear of it.
        let recorded =
            self.update_metadata(|metadata| (metadata.head, metadata.head_record) = (hash, record));
        let pinned = self.pin_head();
        if let Some(invalidator) = self.invalidator.get() {
            invalidator.send(&stale).map_err(|e| {
                Error::Invalid(format!(
                    "{hash} is restored, but the kernel keeps old entries ({e}): unmount and mount again"
                ))
            })?;
        }
        // A record that could not be written is mended when the environment is opened next.
        recorded?;
        pinned?;
        Ok(RestoreOutcome { hash, saved })
    }

    /// Commits what is uncommitted and restores `target` on that very state: a write in between begins it anew.
    fn save_and_swap(
        &self,
        target: HeadRef,
        message: &str,
    ) -> Result<(Option<LayerHash>, Vec<Invalidation>)> {
        let mut saved = None;
        for _ in 0..RESTORE_ATTEMPTS {
            let Some(generation) = self.view.clean_generation()? else {
                let outcome = self.commit_changes(None, Some(message))?;
                saved = outcome.created.then_some(outcome.hash).or(saved);
                continue;
            };
            match self.view.restore(target, generation) {
                Ok(stale) => return Ok((saved, stale)),
                Err(karapace_fs::Error::TryAgain) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(karapace_fs::Error::Busy.into())
    }

    /// Takes a name off its snapshot.
    pub fn drop_name(&self, name: &str, wait: Wait) -> Result<()> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        let metadata = self.metadata();
        let index = metadata.snapshots.iter().position(|s| s.name.as_deref() == Some(name));
        let Some(index) = index else {
            return Err(Error::NoSnapshot { env: metadata.name, reference: name.to_owned() });
        };
        self.update_metadata(|metadata| {
            let hash = metadata.snapshots[index].hash;
            let twins = metadata.snapshots.iter().filter(|s| s.hash == hash).count();
            if twins > 1 || hash == metadata.base_layer {
                metadata.snapshots.remove(index);
            } else {
                metadata.snapshots[index].name = None;
            }
        })?;
        Ok(())
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

    /// Whether [`Instance::close`] was called.
    pub fn is_closed(&self) -> bool {
        *self.turn.lock()
    }

    fn store(&self) -> &Arc<Store> {
        self.engine.store()
    }

    fn lock_store(&self, wait: Wait) -> Result<StoreLock> {
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

    fn take_turn(&self) -> Result<parking_lot::MutexGuard<'_, bool>> {
        let closed = self.turn.lock();
        if *closed {
            return Err(Error::Fs(karapace_fs::Error::TryAgain));
        }
        Ok(closed)
    }

    fn check_writable(&self) -> Result<()> {
        let metadata = self.metadata.lock();
        if !lifecycle::is_writable(metadata.state) {
            let why = metadata.state.to_string().to_lowercase();
            return Err(Error::ReadOnly { env: metadata.name.clone(), why });
        }
        if self.view.is_read_only() {
            return Err(Error::ReadOnly { env: metadata.name.clone(), why: "mounted read-only".to_owned() });
        }
        Ok(())
    }

    fn check_snapshot_name(&self, name: &str) -> Result<()> {
        check_snapshot_name(name)?;
        let metadata = self.metadata.lock();
        if metadata.snapshots.iter().any(|s| s.name.as_deref() == Some(name)) {
            return Err(Error::SnapshotNameTaken { env: metadata.name.clone(), name: name.to_owned() });
        }
        Ok(())
    }

    fn commit_changes(&self, name: Option<&str>, message: Option<&str>) -> Result<CommitOutcome> {
        let mut counts = (0, 0, 0);
        let committed = self.view.commit(&mut |sealed| {
            counts = (sealed.added, sealed.modified, sealed.deleted);
            self.publish(sealed, name, message)
        })?;
        self.pin_head()?;
        let (added, modified, deleted) = counts;
        let hash = self.view.head().layer;
        Ok(CommitOutcome { hash, created: committed.is_some(), added, modified, deleted })
    }

    /// Records what the view has sealed: the layer, then the environment's record, which makes it visible.
    fn publish(
        &self,
        sealed: &Sealed,
        name: Option<&str>,
        message: Option<&str>,
    ) -> std::result::Result<HeadRef, StoreError> {
        let parent = self.view.head().layer;
        let env_id = self.metadata.lock().env_id.clone();
        let hash = snapshot_hash(&env_id, &parent, &sealed.tar_hash);
        let created_at = Timestamp::now();
        let layer = LayerRecord {
            hash,
            kind: LayerKind::Snapshot,
            parent: Some(parent),
            object_refs: vec![sealed.root],
            read_only: true,
            tar_hash: sealed.tar_hash,
            tree: sealed.root,
            created_at,
            message: message.map(str::to_owned),
        };
        let record = LayerRecord::write(self.store(), &layer)?;
        self.update_metadata(|metadata| {
            let entry = SnapshotEntry {
                hash,
                record,
                parent,
                name: name.map(str::to_owned),
                message: message.map(str::to_owned),
                created_at,
            };
            add_snapshot(&mut metadata.snapshots, entry);
            (metadata.head, metadata.head_record) = (hash, record);
        })?;
        Ok(HeadRef { layer: hash, record, root: sealed.root })
    }

    /// Names the layer that the view stands on.
    fn name_head(&self, name: &str, message: Option<&str>) -> Result<()> {
        let head = self.view.head();
        self.update_metadata(|metadata| {
            let unnamed =
                metadata.snapshots.iter_mut().rev().find(|s| s.record == head.record && s.name.is_none());
            if let Some(entry) = unnamed {
                entry.name = Some(name.to_owned());
                entry.message = entry.message.take().or(message.map(str::to_owned));
                return;
            }
            let made = metadata.snapshots.iter().rev().find(|s| s.record == head.record);
            let entry = SnapshotEntry {
                hash: head.layer,
                record: head.record,
                parent: made.map_or(metadata.base_layer, |s| s.parent),
                name: Some(name.to_owned()),
                message: message.map(str::to_owned),
                created_at: Timestamp::now(),
            };
            metadata.snapshots.push(entry);
        })?;
        Ok(())
    }

    fn pin_head(&self) -> Result<()> {
        let mut pin = self.pin.lock();
        let root = self.view.head().root;
        if let Some((pin, roots)) = pin.as_mut()
            && !roots.contains(&root)
        {
            roots.push(root);
            pin.set(roots)?;
        }
        Ok(())
    }

    /// Changes the record, durably; on failure the old one stays, on disk and here.
    fn update_metadata(&self, change: impl FnOnce(&mut Metadata)) -> std::result::Result<(), StoreError> {
        let mut current = self.metadata.lock();
        let mut next = current.clone();
        change(&mut next);
        next.updated_at = Timestamp::now();
        next.save(self.store())?;
        *current = next;
        Ok(())
    }
}

/// Whether a snapshot may have this name at all.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    karapace_fs::control::command::valid_name(name).map_err(Error::Invalid)
}

/// Appends a snapshot. The same content committed on the same parent has the same hash: then the newer record takes the older
/// one's place in the list, unless each has a name of its own.
fn add_snapshot(snapshots: &mut Vec<SnapshotEntry>, mut entry: SnapshotEntry) {
    let twin = snapshots.iter().position(|s| {
        s.hash == entry.hash && (s.name.is_none() || entry.name.is_none() || s.name == entry.name)
    });
    if let Some(index) = twin {
        let old = snapshots.remove(index);
        entry.name = entry.name.or(old.name);
        entry.message = entry.message.or(old.message);
    }
    snapshots.push(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(hash: u8, record: u8, name: Option<&str>, message: Option<&str>) -> SnapshotEntry {
        SnapshotEntry {
            hash: LayerHash::from_bytes([hash; 32]),
            record: RecordId::from_bytes([record; 32]),
            parent: LayerHash::from_bytes([0; 32]),
            name: name.map(str::to_owned),
            message: message.map(str::to_owned),
            created_at: Timestamp { secs: 0, nanos: 0 },
        }
    }

    #[test]
    fn a_snapshot_made_again_moves_to_the_end_and_keeps_its_name() {
        let mut list = vec![entry(1, 1, Some("one"), Some("first")), entry(2, 2, None, None)];
        add_snapshot(&mut list, entry(1, 3, None, None));
        assert_eq!(list, [entry(2, 2, None, None), entry(1, 3, Some("one"), Some("first"))]);
    }

    #[test]
    fn two_names_for_one_snapshot_are_two_entries() {
        let mut list = vec![entry(1, 1, Some("one"), None)];
        add_snapshot(&mut list, entry(1, 2, Some("two"), None));
        assert_eq!(list.len(), 2);
    }
}
