//! Making things durable.
//!
//! A file's bytes are synced without a lock, through a descriptor taken under the state lock: a commit may give the data file to
//! the store meanwhile and remove its name, which harms nobody.

use std::fs::File;
use std::sync::Arc;

use karapace_store::inode::Ino;

use crate::error::Result;
use crate::upper::Upper;
use crate::upper::data::DataFile;
use crate::view::View;
use crate::view::node::{FileBody, Node};

/// A data file that is to be synced.
pub(super) struct ToSync {
    pub data: Arc<DataFile>,
    pub file: Arc<File>,
}

impl ToSync {
    /// That of a node in the table, if it has one; the caller holds the state lock.
    pub fn of(upper: &Upper, node: &Node) -> Result<Option<ToSync>> {
        let Some(data) = node.file().and_then(FileBody::data).cloned() else { return Ok(None) };
        let file = upper.data.file(&data)?;
        Ok(Some(ToSync { data, file }))
    }
}

impl View {
    /// Makes one file durable: its bytes, and every operation that returned.
    pub fn fsync(&self, ino: Ino, _datasync: bool) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let found = {
            let mut state = self.state.write();
            let node = state.node_mut(ino)?;
            let found = ToSync::of(upper, node)?;
            // Cleared before: what is written from here on may not be covered.
            node.unsynced = false;
            found
        };
        if let Some(found) = found {
            self.sync_data(upper, &found)?;
        }
        if upper.is_broken() && !self.is_read_only() {
            return self.checkpoint();
        }
        upper.sync()
    }

    /// Syncs one file's bytes and its name.
    pub(super) fn sync_data(&self, upper: &Upper, found: &ToSync) -> Result<()> {
        let synced = upper.data.sync_with_name(&found.data, &found.file);
        if synced.is_err()
            && let Ok(node) = self.state.write().node_mut(found.data.ino)
        {
            node.unsynced = true;
        }
        synced
    }
}
