//! Listing and removing snapshots, and removing their names.

use karapace_store::id::LayerHash;
use karapace_store::metadata::{Metadata, SnapshotEntry};
use karapace_store::rfc3339;
use serde::{Deserialize, Serialize};

use super::open::{Instance, Wait};
use super::reference;
use crate::engine::{Error, Result};

/// The result of a removal of snapshots.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoveOutcome {
    /// The removed snapshots.
    pub removed: Vec<LayerHash>,
}

/// A snapshot as listed.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotLine {
    /// Its hash.
    pub hash: String,
    /// Its first name.
    pub name: Option<String>,
    /// All its names, oldest first.
    pub names: Vec<String>,
    /// The layer that it was made on, or the nearest one below that still exists.
    pub parent: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Its message.
    pub message: Option<String>,
    /// Whether it is the environment's head.
    pub head: bool,
}

/// The snapshots of an environment, newest last.
pub fn snapshots(env: &Metadata) -> Vec<SnapshotLine> {
    let line = |made: &SnapshotEntry| {
        let all = || env.snapshots.iter().filter(|s| s.hash == made.hash);
        let names: Vec<String> = all().filter_map(|s| s.name.clone()).collect();
        SnapshotLine {
            hash: made.hash.to_hex(),
            name: names.first().cloned(),
            names,
            parent: made.parent.to_hex(),
            created_at: rfc3339::format(made.created_at),
            message: made.message.clone().or_else(|| all().find_map(|s| s.message.clone())),
            head: made.hash == env.head,
        }
    };
    env.made().into_iter().map(line).collect()
}

impl Instance {
    /// Removes snapshots: they are no longer listed and keep nothing in the store. A layer's record stays as
    /// long as a snapshot made on it does; such a snapshot then counts as made on the nearest remaining
    /// snapshot below.
    ///
    /// # Errors
    /// Refuses the head and the base; nothing is removed then.
    pub fn remove_snapshots(&self, references: &[String], wait: Wait) -> Result<RemoveOutcome> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        self.check_state()?;
        let metadata = self.metadata();
        let mut removed: Vec<LayerHash> = Vec::new();
        for reference in references {
            let layer = reference::resolve(&metadata, reference)?;
            let refuse = |why: &str| {
                let hash = &layer.hash.to_hex()[..12];
                Error::Invalid(format!("{reference} ({hash}) cannot be removed: {why}; nothing was removed"))
            };
            if metadata.is_built_from(&layer.hash) {
                return Err(refuse("it is the environment's base, and all other snapshots are based on it"));
            }
            if layer.hash == metadata.head {
                return Err(refuse("it is the environment's head; restore another one first"));
            }
            if !removed.contains(&layer.hash) {
                removed.push(layer.hash);
            }
        }
        self.update_metadata(|metadata| remove_snapshots(&mut metadata.snapshots, &removed))?;
        self.pin_head();
        Ok(RemoveOutcome { removed })
    }

    /// Removes a name; the snapshot stays.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] if no snapshot has this name.
    pub fn drop_name(&self, name: &str, wait: Wait) -> Result<()> {
        let _shared = self.lock_store(wait)?;
        let _turn = self.take_turn()?;
        self.check_writable()?;
        let metadata = self.metadata();
        let index = metadata.snapshots.iter().position(|s| s.name.as_deref() == Some(name));
        let Some(index) = index else {
            return Err(Error::NoSnapshot { env: metadata.name, reference: name.to_owned() });
        };
        self.update_metadata(|metadata| {
            let hash = metadata.snapshots[index].hash;
            let twins = metadata.snapshots.iter().filter(|s| s.hash == hash).count();
            if twins > 1 || metadata.is_built_from(&hash) {
                metadata.snapshots.remove(index);
            } else {
                metadata.snapshots[index].name = None;
            }
        })?;
        Ok(())
    }
}

/// Removes the snapshots with these hashes from the list. A snapshot made on a removed one gets that one's
/// parent.
fn remove_snapshots(snapshots: &mut Vec<SnapshotEntry>, removed: &[LayerHash]) {
    for hash in removed {
        let Some(parent) = snapshots.iter().rev().find(|s| s.hash == *hash).map(|s| s.parent) else {
            continue;
        };
        snapshots.retain(|s| s.hash != *hash);
        snapshots.iter_mut().filter(|s| s.parent == *hash).for_each(|s| s.parent = parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::id::RecordId;
    use karapace_store::inode::Timestamp;

    #[test]
    fn a_removed_snapshot_leaves_its_parent_to_its_children() {
        let on = |hash: u8, parent: u8| SnapshotEntry {
            hash: LayerHash::from_bytes([hash; 32]),
            record: RecordId::from_bytes([hash; 32]),
            parent: LayerHash::from_bytes([parent; 32]),
            name: None,
            message: None,
            created_at: Timestamp { secs: 0, nanos: 0 },
        };
        let mut list = vec![on(1, 0), on(2, 1), on(3, 2), on(4, 2), on(5, 4)];
        remove_snapshots(&mut list, &[2, 1, 4].map(|n| LayerHash::from_bytes([n; 32])));
        assert_eq!(list, [on(3, 0), on(5, 0)]);
    }
}
