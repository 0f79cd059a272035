//! Node ids of the kernel connection, and the views they belong to.
//!
//! A node id has the index of a view in bits 48 to 62 and the inode number in the low 48 bits. Index 0 is the
//! live view, so its root is node 1, as the protocol requires. Index [`CONTROL`] is the control directory,
//! [`PLACEHOLDER`] that of mount points which no view has. The indexes between are read-only views of
//! snapshots: created when a snapshot is looked up below `.karapace/snapshots/`, and dropped when the kernel
//! forgets its root, which it does after everything below it. As long as a view exists, the store keeps its
//! tree, even if the snapshot is removed.

use std::collections::HashMap;
use std::sync::Arc;

use karapace_store::id::ObjectId;
use karapace_store::inode::{Ino, MAX_INO, ROOT_INO};
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::view::View;

/// Index of the live view.
pub(crate) const LIVE: u16 = 0;
/// Index of the control directory's nodes.
pub(crate) const CONTROL: u16 = 0x7fff;
/// Index of placeholders; below it are those of snapshots.
pub(crate) const PLACEHOLDER: u16 = 0x7ffe;

const INDEX_SHIFT: u32 = 48;

/// The node id of an inode in the view with this index.
pub(crate) fn node_id(index: u16, ino: Ino) -> u64 {
    debug_assert!(ino <= MAX_INO && index <= CONTROL);
    (u64::from(index) << INDEX_SHIFT) | ino
}

/// The view index and inode number of a node id.
pub(crate) fn split(node: u64) -> (u16, Ino) {
    ((node >> INDEX_SHIFT) as u16, node & MAX_INO)
}

/// The snapshot that a view shows, and its name in `.karapace/snapshots/`. Two names are two directories to
/// the kernel, which does not accept hard links to a directory.
type Key = (Box<[u8]>, ObjectId);

struct Snapshot {
    key: Key,
    view: Arc<View>,
    /// Look-ups of the root that the kernel has not forgotten.
    references: u64,
}

#[derive(Default)]
struct Snapshots {
    by_key: HashMap<Key, u16>,
    by_index: HashMap<u16, Snapshot>,
    /// Where the search for a free index continues; an index is reused as late as possible.
    next: u16,
}

/// All views of one kernel connection.
pub(crate) struct Views {
    live: Arc<View>,
    snapshots: RwLock<Snapshots>,
    /// The roots that the store was told to keep. Held while a view is created; locked before `snapshots`.
    kept: Mutex<Vec<ObjectId>>,
}

/// Tells the store which roots to keep.
type Keep<'a> = &'a dyn Fn(&[ObjectId]) -> Result<()>;

impl Views {
    /// Starts with only the live view.
    pub fn new(live: Arc<View>) -> Views {
        Views { live, snapshots: RwLock::default(), kept: Mutex::default() }
    }

    /// The live view.
    pub fn live(&self) -> &Arc<View> {
        &self.live
    }

    /// The view with this index.
    ///
    /// # Errors
    /// `Stale` if no view has this index, or no longer.
    pub fn get(&self, index: u16) -> Result<Arc<View>> {
        if index == LIVE {
            return Ok(self.live.clone());
        }
        self.snapshots.read().by_index.get(&index).map(|s| s.view.clone()).ok_or(Error::Stale)
    }

    /// The view of the snapshot with this root under this name; counts one look-up of its root. If there is
    /// none yet, first tells the store to `keep` the root, then creates the view with `open`.
    pub fn snapshot(
        &self,
        name: &[u8],
        root: ObjectId,
        keep: Keep<'_>,
        open: &dyn Fn(ObjectId) -> Result<View>,
    ) -> Result<(u16, Arc<View>)> {
        let key: Key = (name.into(), root);
        let mut kept = self.kept.lock();
        if let Some(found) = self.snapshots.write().referenced(&key) {
            return Ok(found);
        }
        if !kept.contains(&root) {
            let mut roots = self.snapshots.read().roots();
            roots.push(root);
            keep(&roots)?;
            *kept = roots;
        }
        let view = Arc::new(open(root)?);
        let mut snapshots = self.snapshots.write();
        let index = snapshots.free_index()?;
        snapshots.by_key.insert(key.clone(), index);
        snapshots.by_index.insert(index, Snapshot { key, view: view.clone(), references: 1 });
        Ok((index, view))
    }

    /// Tells the store to keep only the roots that are in use.
    ///
    /// # Errors
    /// The error of `keep`; the store then keeps what it kept before.
    pub fn keep_no_more(&self, keep: Keep<'_>) -> Result<()> {
        let mut kept = self.kept.lock();
        let roots = self.snapshots.read().roots();
        if roots.len() < kept.len() {
            keep(&roots)?;
            *kept = roots;
        }
        Ok(())
    }

    /// Forgets `count` look-ups of a node. References to roots are counted here, all others in their view.
    /// Returns whether a snapshot's view was dropped.
    pub fn forget(&self, index: u16, ino: Ino, count: u64) -> bool {
        if ino != ROOT_INO {
            // Nothing is left to forget under a stale index.
            if let Ok(view) = self.get(index) {
                view.forget(ino, count);
            }
            return false;
        }
        let mut snapshots = self.snapshots.write();
        let Some(snapshot) = snapshots.by_index.get_mut(&index) else { return false };
        snapshot.references = snapshot.references.saturating_sub(count);
        if snapshot.references > 0 {
            return false;
        }
        if let Some(gone) = snapshots.by_index.remove(&index) {
            snapshots.by_key.remove(&gone.key);
        }
        true
    }
}

impl Snapshots {
    /// The view for a key, with one more reference.
    fn referenced(&mut self, key: &Key) -> Option<(u16, Arc<View>)> {
        let index = *self.by_key.get(key)?;
        let found = self.by_index.get_mut(&index)?;
        found.references += 1;
        Some((index, found.view.clone()))
    }

    /// The root objects of all views, without duplicates.
    fn roots(&self) -> Vec<ObjectId> {
        let mut roots: Vec<ObjectId> = self.by_index.values().map(|snapshot| snapshot.key.1).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    fn free_index(&mut self) -> Result<u16> {
        for _ in LIVE + 1..PLACEHOLDER {
            self.next = if self.next + 1 < PLACEHOLDER { self.next + 1 } else { LIVE + 1 };
            if !self.by_index.contains_key(&self.next) {
                return Ok(self.next);
            }
        }
        Err(Error::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids() {
        assert_eq!(node_id(LIVE, ROOT_INO), 1);
        for (index, ino) in [(0, 1), (0, MAX_INO), (1, 1), (CONTROL, MAX_INO), (0x1234, 0x5678)] {
            let node = node_id(index, ino);
            assert_eq!(split(node), (index, ino));
            assert!(node <= i64::MAX as u64, "node ids are positive as st_ino");
        }
    }
}
