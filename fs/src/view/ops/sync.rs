//! Makes data durable.
//!
//! A file's bytes are synced without a lock, through a descriptor opened under the state lock: a commit may
//! move the data file into the store meanwhile and remove its name, which does no harm.

use std::fs::File;
use std::sync::Arc;

use karapace_store::inode::Ino;
use karapace_store::parallel::in_waiting_pieces;

use crate::error::{Error, Result};
use crate::upper::Upper;
use crate::upper::blocks::BlockSet;
use crate::upper::data::DataFile;
use crate::upper::journal::Room;
use crate::view::View;
use crate::view::node::{BlockBody, FileBody, Node, NodeBody};
use crate::view::table::State;

/// A data file to sync.
pub(in crate::view) struct ToSync {
    pub data: Arc<DataFile>,
    pub file: Arc<File>,
    /// The blocks that were fresh before the sync, which therefore covers them.
    fresh: BlockSet,
    /// Whether the file itself or any of its blocks is fresh.
    has_fresh: bool,
}

impl ToSync {
    /// The data file of a node in the table, if it has one. The caller holds the state lock.
    pub fn of(upper: &Upper, node: &Node) -> Result<Option<ToSync>> {
        let Some(body) = node.file() else { return Ok(None) };
        let Some(data) = body.data().cloned() else { return Ok(None) };
        let file = upper.data.file(&data)?;
        let (fresh, has_fresh) = match body {
            FileBody::Blocks(b) => (b.fresh.clone(), b.has_fresh()),
            FileBody::Lower(_) | FileBody::Whole(_) => (BlockSet::default(), false),
        };
        Ok(Some(ToSync { data, file, fresh, has_fresh }))
    }

    /// The inode's blocks; `None` if it has a different data file by now, which this sync did not cover.
    fn blocks<'a>(&self, state: &'a mut State) -> Option<&'a mut BlockBody> {
        match &mut state.nodes.get_mut(&self.data.ino)?.body {
            NodeBody::File(FileBody::Blocks(b)) if Arc::ptr_eq(&b.data, &self.data) => Some(b),
            _ => None,
        }
    }

    /// Called after the sync: what was fresh when it began is not any more. This does not count as a change.
    pub fn drop_fresh(&self, state: &mut State) {
        if let Some(b) = self.blocks(state) {
            b.fresh.subtract(&self.fresh);
            if b.fresh.is_empty() {
                // The set is cloned on every write; free its memory.
                b.fresh = BlockSet::default();
            }
            b.fresh_since = None;
        }
    }
}

impl View {
    /// Makes one file durable: its bytes, and every operation that has returned. fdatasync(2) is no cheaper,
    /// because size, extents and times are in one journal.
    pub fn fsync(&self, ino: Ino) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let found = {
            let mut state = self.state.write();
            let node = state.node_mut(ino)?;
            let found = ToSync::of(upper, node)?;
            // Cleared before the sync, which may not cover later writes.
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
    pub(in crate::view) fn sync_data(&self, upper: &Upper, found: &ToSync) -> Result<()> {
        let synced = upper.data.sync_with_name(&found.data, &found.file);
        let synced = synced.and_then(|()| self.note_synced(upper, found));
        if synced.is_err()
            && let Ok(node) = self.state.write().node_mut(found.data.ino)
        {
            node.unsynced = true;
        }
        synced
    }

    /// Syncs every file written since its last sync, and the files in `fresh`, one by one.
    pub(in crate::view) fn sync_each(&self, upper: &Upper, fresh: &[ToSync]) -> Result<()> {
        let unsynced = |node: &Node| node.unsynced && !node.is_orphan();
        let all = self.state.read();
        let files: Vec<Ino> = all.dirty_nodes().filter(|(_, n)| unsynced(n)).map(|(ino, _)| ino).collect();
        drop(all);
        let sync = |files: &[Ino]| {
            files.iter().try_for_each(|ino| {
                let found = {
                    let mut state = self.state.write();
                    let node = state.node_mut(*ino)?;
                    node.unsynced = false;
                    ToSync::of(upper, node)?
                };
                found.map_or(Ok(()), |found| self.sync_data(upper, &found))
            })
        };
        in_waiting_pieces(&files, sync).into_iter().collect::<Result<()>>()?;
        fresh.iter().try_for_each(|found| upper.data.sync_with_name(&found.data, &found.file))
    }

    /// Journals that the blocks which were fresh at the start of the completed sync are now safe.
    fn note_synced(&self, upper: &Upper, found: &ToSync) -> Result<()> {
        if !found.has_fresh {
            return Ok(());
        }
        let mut state = self.state.write();
        let Some(b) = found.blocks(&mut state).filter(|b| b.has_fresh()) else { return Ok(()) };
        let mut synced = found.fresh.clone();
        synced.intersect(&b.fresh);
        let ino = found.data.ino;
        // An inode without a name does not survive a crash.
        if !state.node(ino)?.is_orphan() {
            match upper.append(&state.synced_items(ino, &synced)?, Room::Reserved) {
                // The upper is open for reading only, so nothing may be written.
                Err(Error::ReadOnly) => return Ok(()),
                other => other?,
            }
        }
        found.drop_fresh(&mut state);
        Ok(())
    }

    /// Syncs a file if it has fresh blocks.
    pub(in crate::view) fn sync_fresh_of(&self, ino: Ino) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let found = ToSync::of(upper, self.state.read().node(ino)?)?;
        match found.filter(|found| found.has_fresh) {
            Some(found) => self.sync_fresh_in(upper, &found),
            None => Ok(()),
        }
    }

    fn sync_fresh_in(&self, upper: &Upper, found: &ToSync) -> Result<()> {
        upper.data.sync_with_name(&found.data, &found.file)?;
        self.note_synced(upper, found)
    }

    /// Syncs all fresh blocks. Those that fail stay fresh and are retried.
    pub(in crate::view) fn sync_fresh(&self) {
        let Some(upper) = &self.upper else { return };
        let files = self.fresh_files().map(|files| {
            let failed = files.iter().filter_map(|found| self.sync_fresh_in(upper, found).err());
            failed.collect::<Vec<_>>()
        });
        for error in files.unwrap_or_else(|error| vec![error]) {
            tracing::error!(%error, "cannot sync what was written into committed files");
        }
    }

    /// The named files with fresh blocks.
    pub(in crate::view) fn fresh_files(&self) -> Result<Vec<ToSync>> {
        let Some(upper) = &self.upper else { return Ok(Vec::new()) };
        if self.state.read().fresh.is_empty() {
            return Ok(Vec::new());
        }
        let mut state = self.state.write();
        let State { nodes, fresh, .. } = &mut *state;
        fresh.retain(|ino| {
            let node = nodes.get(ino).filter(|node| !node.is_orphan());
            matches!(node.and_then(|node| node.file()), Some(FileBody::Blocks(b)) if b.has_fresh())
        });
        fresh.iter().filter_map(|ino| ToSync::of(upper, nodes.get(ino)?).transpose()).collect()
    }
}
