//! Making a snapshot.
//!
//! The view is stored as a tree. The layer is that tree without the ignored paths or, for a commit of chosen
//! paths, the head's tree with these paths replaced. Afterwards the layer is the view's head, and the upper
//! lies over the stored tree: what the layer left out is still there, and still counts as uncommitted.

use karapace_fs::attr::HeadRef;
use karapace_fs::view::{Published, Stays, Stored};
use karapace_store::Store;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::inode::Timestamp;
use karapace_store::layer::{LayerKind, LayerRecord, snapshot_hash};
use karapace_store::metadata::{Metadata, SnapshotEntry};

use super::layering::{Counts, Layer, Layering, normalised};
use super::open::{CommitOutcome, Instance, Wait};
use super::reference::{self, LayerRef};
use crate::engine::{Error, Result};

/// What a commit leaves in the upper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The ignored paths.
    Upper,
    /// Nothing: the tree below the upper gets everything.
    Nothing,
}

/// The fields of the environment's record that a commit changes, with their values before it.
struct Before {
    snapshots: Vec<SnapshotEntry>,
    head: LayerHash,
    head_record: RecordId,
}

impl Before {
    fn of(metadata: &Metadata) -> Before {
        let Metadata { snapshots, head, head_record, .. } = metadata;
        Before { snapshots: snapshots.clone(), head: *head, head_record: *head_record }
    }
}

impl Instance {
    /// Moves everything from the upper into the tree below it. The view's head layer does not change.
    pub(super) fn settle(&self) -> Result<()> {
        self.view.store(None, &mut |stored| -> Result<_> { Ok(Some(self.settled(stored))) })?;
        self.pin_head();
        Ok(())
    }

    /// What the view shows, as a tree under its head: stores what is uncommitted, which then lies in the tree
    /// below the upper. No snapshot is made.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] if something is uncommitted and the view cannot be changed.
    pub(in crate::engine) fn shown(&self, wait: Wait) -> Result<HeadRef> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        if self.view.clean_generation()?.is_none() {
            self.check_writable()?;
            self.settle()?;
        }
        Ok(self.view.head())
    }

    fn settled(&self, stored: &Stored) -> Published {
        let head = HeadRef { root: stored.id, ..self.view.head() };
        Published { head, next_ino: stored.root.next_ino }
    }

    /// Makes a snapshot of the view or of the chosen paths (docs/MANIFEST.md, "Chosen paths"); the other
    /// paths stay uncommitted. If nothing changed, returns the head and adds nothing but the name.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::SnapshotNameTaken`], and `TryAgain` if the instance is closed.
    pub fn commit(
        &self,
        paths: &[Vec<u8>],
        name: Option<&str>,
        message: Option<&str>,
        wait: Wait,
    ) -> Result<CommitOutcome> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        self.check_writable()?;
        if let Some(name) = name {
            self.check_name_is_free(name)?;
        }
        let paths = normalised(paths, &self.ignore)?;
        let chosen = (!paths.is_empty()).then_some(&paths[..]);
        let outcome = self.commit_changes(chosen, Keep::Upper, name, message)?;
        if let (false, Some(name)) = (outcome.created, name) {
            self.name_head(name, message)?;
        }
        Ok(outcome)
    }

    /// Commits what differs from the head's layer, limited to the chosen paths if there are any. With
    /// [`Keep::Nothing`] the upper is empty afterwards, even if there was nothing to commit.
    pub(super) fn commit_changes(
        &self,
        chosen: Option<&[Vec<u8>]>,
        keep: Keep,
        name: Option<&str>,
        message: Option<&str>,
    ) -> Result<CommitOutcome> {
        let mut counts = Counts::default();
        let before = Before::of(&self.metadata.lock());
        let mut recorded = None;
        let stays = |path: &[u8]| self.ignore.covers(path);
        let stays: Option<Stays<'_>> = (keep == Keep::Upper && !self.ignore.is_empty()).then_some(&stays);
        let done = self.view.store(stays, &mut |stored| match self.layer_of(stored, chosen)? {
            Some(layer) => {
                counts = layer.counts;
                let published = self.publish(stored, &layer, name, message)?;
                recorded = Some(published.head.layer);
                Ok(Some(published))
            }
            None if keep == Keep::Nothing => Ok(Some(self.settled(stored))),
            None => Ok(None),
        });
        match (done, recorded) {
            (Err(error), Some(hash)) => return Err(self.take_back(before, hash, error)),
            (done, _) => drop(done?),
        }
        self.pin_head();
        let Counts { added, modified, deleted } = counts;
        let created = added + modified + deleted > 0;
        Ok(CommitOutcome { hash: self.view.head().layer, created, added, modified, deleted })
    }

    /// Called when a snapshot was recorded but the view could not be switched to it. Restores the record, so
    /// that the commit has no effect; if that fails too, the returned error says so. The caller holds `turn`.
    fn take_back(&self, before: Before, hash: LayerHash, error: Error) -> Error {
        let undone = self.update_metadata(|metadata| {
            metadata.snapshots = before.snapshots;
            (metadata.head, metadata.head_record) = (before.head, before.head_record);
        });
        let Err(second) = undone else { return error };
        let reason = format!(
            "{error}; the snapshot {hash} was made nevertheless and could not be removed again: {second}. Its changes also \
             count as uncommitted until the next commit"
        );
        Error::Served { errno: error.errno(), reason }
    }

    /// The layer that a stored view makes on the head; `None` if it would be empty.
    fn layer_of(&self, stored: &Stored, chosen: Option<&[Vec<u8>]>) -> Result<Option<Layer>> {
        let head_id = self.root_of(&self.view.head().record)?;
        let head = self.trees.root(&head_id)?;
        let layering = Layering { trees: &self.trees, ignore: &self.ignore, head: &head, head_id };
        layering.layer(stored, chosen, self.view.next_ino())
    }

    /// Writes the layer's record, then the environment's record, which makes the layer visible.
    fn publish(
        &self,
        stored: &Stored,
        made: &Layer,
        name: Option<&str>,
        message: Option<&str>,
    ) -> Result<Published> {
        let parent = self.view.head().layer;
        let env_id = self.metadata.lock().env_id.clone();
        let entry = record_snapshot(self.store(), (&env_id, parent), made, (name, message))?;
        let (hash, record) = (entry.hash, entry.record);
        self.update_metadata(|metadata| {
            add_snapshot(&mut metadata.snapshots, entry);
            (metadata.head, metadata.head_record) = (hash, record);
        })?;
        let head = HeadRef { layer: hash, record, root: stored.id };
        Ok(Published { head, next_ino: made.next_ino })
    }

    /// Names the view's head layer.
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
            let twin = metadata.snapshots.iter().rposition(|s| s.record == head.record);
            // Next to the snapshot that it names and with the same time, so that the newest snapshot stays
            // the newest.
            let (at, parent, created_at) = match twin {
                Some(at) => (at + 1, metadata.snapshots[at].parent, metadata.snapshots[at].created_at),
                None => {
                    let layer = LayerRef { hash: head.layer, record: head.record };
                    let below = reference::parent(metadata, layer).map(|parent| parent.hash);
                    (0, below.unwrap_or(metadata.base_layer), metadata.created_at)
                }
            };
            let (name, message) = (Some(name.to_owned()), message.map(str::to_owned));
            let entry =
                SnapshotEntry { hash: head.layer, record: head.record, parent, name, message, created_at };
            metadata.snapshots.insert(at, entry);
        })?;
        Ok(())
    }
}

/// Appends a snapshot. The same content committed on the same parent has the same hash; then the new record
/// replaces the old one in the list, unless both have a name and the names differ.
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

/// Writes the record of a layer that is a snapshot of the environment with this identity, on its layer
/// `parent`. The snapshot exists once the environment's record has the returned entry.
pub(in crate::engine) fn record_snapshot(
    store: &Store,
    (env_id, parent): (&str, LayerHash),
    made: &Layer,
    (name, message): (Option<&str>, Option<&str>),
) -> Result<SnapshotEntry> {
    let hash = snapshot_hash(env_id, &parent, &made.tar_hash);
    let created_at = Timestamp::now();
    let (name, message) = (name.map(str::to_owned), message.map(str::to_owned));
    let layer = LayerRecord {
        hash,
        kind: LayerKind::Snapshot,
        parent: Some(parent),
        object_refs: vec![made.id],
        read_only: true,
        tar_hash: made.tar_hash,
        tree: made.id,
        created_at,
        message: message.clone(),
    };
    let record = LayerRecord::write(store, &layer)?;
    Ok(SnapshotEntry { hash, record, parent, name, message, created_at })
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
