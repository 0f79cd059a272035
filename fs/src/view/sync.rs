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
            self.sync_data(upper, &[found])?;
        }
        self.sync_journal(upper)
    }

    /// Makes every operation that returned durable, but for bytes written to files that were not synced.
    pub fn sync_all(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        self.sync_journal(upper)
    }

    /// Syncs the journal, but first the data of every file whose bytes in the upper took the place of safe ones:
    /// otherwise the record that says so could outlive the bytes that it stands for.
    fn sync_journal(&self, upper: &Upper) -> Result<()> {
        self.sync_replacing(upper, &|_, _| true)?;
        upper.sync()
    }

    /// Makes bytes durable that took the place of safe ones, of those inodes that `which` picks.
    pub(super) fn sync_replacing(&self, upper: &Upper, which: &dyn Fn(Ino, &Node) -> bool) -> Result<()> {
        let mut pending = Vec::new();
        {
            let mut state = self.state.write();
            for (ino, node) in state.nodes.iter_mut() {
                if node.replaces && !node.is_orphan() && which(*ino, node) {
                    pending.extend(ToSync::of(upper, node)?);
                    node.unsynced = false;
                }
            }
        }
        self.sync_data(upper, &pending)
    }

    fn sync_data(&self, upper: &Upper, files: &[ToSync]) -> Result<()> {
        let sync =
            |f: &ToSync| upper.data.sync(&f.data, &f.file).and_then(|()| upper.data.sync_names(f.data.ino));
        let synced = files.iter().try_for_each(sync);
        if files.is_empty() {
            return Ok(());
        }
        let mut state = self.state.write();
        for f in files {
            let Ok(node) = state.node_mut(f.data.ino) else { continue };
            if node.data_generation() != Some(f.data.generation) {
                continue;
            }
            match &synced {
                Ok(()) => node.replaces = false,
                Err(_) => node.unsynced = true,
            }
        }
        synced
    }
}
