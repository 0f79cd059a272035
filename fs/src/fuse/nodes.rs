//! Node ids of the kernel connection and the views behind them.
//!
//! A node id is the index of a view in bits 48 to 62 and the inode number in the low 48. Index 0 is the live
//! view, so that its root is node 1, as the protocol wants. Index [`CONTROL`] is the control directory. The
//! indexes between are read-only views of snapshots, made when one is looked up below
//! `.karapace/snapshots/` and dropped when the kernel forgets its root, which it does after everything below.

use std::collections::HashMap;
use std::sync::Arc;

use karapace_store::id::ObjectId;
use karapace_store::inode::{Ino, MAX_INO, ROOT_INO};
use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::view::View;

/// Index of the live view.
pub(crate) const LIVE: u16 = 0;
/// Index of the control directory's nodes.
pub(crate) const CONTROL: u16 = 0x7fff;

const INDEX_SHIFT: u32 = 48;

/// The node id for an inode of the view with this index.
pub(crate) fn node_id(index: u16, ino: Ino) -> u64 {
    debug_assert!(ino <= MAX_INO && index <= CONTROL);
    (u64::from(index) << INDEX_SHIFT) | ino
}

/// The view index and inode number of a node id.
pub(crate) fn split(node: u64) -> (u16, Ino) {
    ((node >> INDEX_SHIFT) as u16, node & MAX_INO)
}

/// Which snapshot a view shows, and under which name of `.karapace/snapshots/`: two names are two directories
/// to the kernel, which takes no hard links to a directory.
type Key = (Box<[u8]>, ObjectId);

struct Snapshot {
    key: Key,
    view: Arc<View>,
    /// Look-ups of the root that the kernel has not forgotten yet.
    references: u64,
}

#[derive(Default)]
struct Snapshots {
    by_key: HashMap<Key, u16>,
    by_index: HashMap<u16, Snapshot>,
    /// Where the search for a free index goes on: an index is reused as late as possible.
    next: u16,
}

/// All views of one kernel connection.
pub(crate) struct Views {
    live: Arc<View>,
    snapshots: RwLock<Snapshots>,
}

impl Views {
    /// Only the live view at first.
    pub fn new(live: Arc<View>) -> Views {
        Views { live, snapshots: RwLock::default() }
    }

    /// The live view.
    pub fn live(&self) -> &Arc<View> {
        &self.live
    }

    /// The view with this index.
    ///
    /// # Errors
    /// `Stale` for an index that no view has (any more).
    pub fn get(&self, index: u16) -> Result<Arc<View>> {
        if index == LIVE {
            return Ok(self.live.clone());
        }
        self.snapshots.read().by_index.get(&index).map(|s| s.view.clone()).ok_or(Error::Stale)
    }

    /// The view of the snapshot with this root under this name, made with `open` when there is none. Counts one
    /// look-up of its root.
    pub fn snapshot(
        &self,
        name: &[u8],
        root: ObjectId,
        open: &dyn Fn(ObjectId) -> Result<View>,
    ) -> Result<(u16, Arc<View>)> {
        let key: Key = (name.into(), root);
        let mut snapshots = self.snapshots.write();
        if let Some(&index) = snapshots.by_key.get(&key)
            && let Some(found) = snapshots.by_index.get_mut(&index)
        {
            found.references += 1;
            return Ok((index, found.view.clone()));
        }
        let index = snapshots.free_index()?;
        let view = Arc::new(open(root)?);
        snapshots.by_key.insert(key.clone(), index);
        snapshots.by_index.insert(index, Snapshot { key, view: view.clone(), references: 1 });
        Ok((index, view))
    }

    /// The kernel forgot `count` look-ups of a node. References to roots are kept here, the others by their view.
    pub fn forget(&self, index: u16, ino: Ino, count: u64) {
        if ino != ROOT_INO {
            // A stale index has nothing left to forget.
            if let Ok(view) = self.get(index) {
                view.forget(ino, count);
            }
            return;
        }
        let mut snapshots = self.snapshots.write();
        let Some(snapshot) = snapshots.by_index.get_mut(&index) else { return };
        snapshot.references = snapshot.references.saturating_sub(count);
        if snapshot.references == 0
            && let Some(gone) = snapshots.by_index.remove(&index)
        {
            snapshots.by_key.remove(&gone.key);
        }
    }
}

impl Snapshots {
    fn free_index(&mut self) -> Result<u16> {
        for _ in LIVE + 1..CONTROL {
            self.next = if self.next + 1 < CONTROL { self.next + 1 } else { LIVE + 1 };
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
