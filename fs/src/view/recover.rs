//! Repairs an upper on open, after its records have been applied: it may be left from a killed process or a
//! power loss.

use std::collections::HashSet;
use std::io::ErrorKind;

use karapace_store::content::BLOCK;
use karapace_store::inode::Ino;

use crate::error::{Error, Result};
use crate::upper::Upper;
use crate::upper::blocks::BlockSet;
use crate::upper::data::DataFile;
use crate::view::View;
use crate::view::node::{FileBody, Node, NodeBody};
use crate::view::table::Forgotten;

impl View {
    /// Runs after a replay: drops inodes that were only held open, reads sizes and times from data files
    /// where the journal says so, and removes data files that nothing refers to.
    pub(super) fn recover(&self) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let mut state = self.state.write();
        let orphans: Vec<Ino> = state.nodes.iter().filter(|(_, n)| n.is_orphan()).map(|(i, _)| *i).collect();
        for ino in orphans {
            state.release(ino, &mut Forgotten::default());
        }
        let mut known = HashSet::new();
        for node in state.nodes.values_mut() {
            drop_lost_file(upper, node)?;
            let Some(data) = node.file().and_then(FileBody::data).cloned() else { continue };
            known.insert((data.ino, data.generation));
            // What was synced is no longer known. After a power loss the data file may be shorter than the
            // checkpoint says.
            node.unsynced = true;
            if node.touched || upper.data.stat(&data).map_or(true, |stat| stat.size != node.meta.size) {
                self.recover_touched(upper, node, &data)?;
            }
            drop_lost_blocks(upper, node)?;
        }
        drop(state);
        if self.is_read_only() {
            return Ok(());
        }
        self.sync_fresh();
        // Syncs the records that make the swept files unneeded.
        upper.sync()?;
        let swept = upper.data.sweep(&|ino, generation| known.contains(&(ino, generation)))?;
        if swept > 0 {
            let dir = upper.dir().display();
            tracing::info!("removed {swept} data files that a killed process left in {dir}");
        }
        Ok(())
    }

    /// Updates size and mtime from the data file, for a file written since the checkpoint.
    fn recover_touched(&self, upper: &Upper, node: &mut Node, data: &DataFile) -> Result<()> {
        let stat = match upper.data.stat(data) {
            Err(Error::Host { source, .. })
                if source.kind() == ErrorKind::NotFound && node.whole().is_some() =>
            {
                // A power loss took a new file that was never synced, but not its journal record.
                tracing::warn!("inode {} was never synced and has lost its content", data.ino);
                node.meta.size = 0;
                if !self.is_read_only() {
                    upper.data.create_file(data)?;
                }
                return Ok(());
            }
            other => other?,
        };
        node.meta.size = stat.size;
        node.meta.mtime = stat.mtime;
        node.meta.ctime = node.meta.ctime.max(stat.mtime);
        if let NodeBody::File(FileBody::Blocks(b)) = &mut node.body {
            // The file was truncated, and the process killed before it could journal that.
            b.limit = b.limit.min(stat.size);
            b.cut_blocks(stat.size);
        }
        Ok(())
    }
}

/// Falls back to the base if a fresh data file is missing or shorter than `limit`. In the same boot that can
/// only happen if the disk was detached in between; the base has all committed content.
fn drop_lost_file(upper: &Upper, node: &mut Node) -> Result<()> {
    let NodeBody::File(FileBody::Blocks(b)) = &node.body else { return Ok(()) };
    if b.fresh_since.is_none() {
        return Ok(());
    }
    let is_there = match upper.data.stat(&b.data) {
        Err(Error::Host { source, .. }) if source.kind() == ErrorKind::NotFound => false,
        stat => stat?.size >= b.limit,
    };
    if !is_there {
        tracing::warn!(
            "{} was not synced and is lost: the file has its committed content again",
            upper.data.path(&b.data).display()
        );
        node.meta.size = b.base.size;
        node.body = NodeBody::File(FileBody::Lower(b.base.clone()));
    }
    Ok(())
}

/// The same for fresh blocks that are holes in the data file.
fn drop_lost_blocks(upper: &Upper, node: &mut Node) -> Result<()> {
    let NodeBody::File(FileBody::Blocks(b)) = &mut node.body else { return Ok(()) };
    if b.fresh.is_empty() {
        return Ok(());
    }
    let file = upper.data.file(&b.data)?;
    // Sync first: some host file systems report holes only as they are on disk.
    if let Err(error) = upper.data.sync(&b.data, &file) {
        tracing::warn!("{error}");
    }
    let mut lost = BlockSet::default();
    for block in b.fresh.iter() {
        let (from, to) = (block * BLOCK, (block + 1) * BLOCK);
        if !upper.data.holds(&b.data, &file, from, to.min(b.limit))? {
            lost.insert(block);
        }
    }
    if !lost.is_empty() {
        let (path, n) = (upper.data.path(&b.data), lost.len());
        tracing::warn!(
            "{n} blocks of {} were not synced and are lost: they have their committed content again",
            path.display()
        );
        b.dirty.subtract(&lost);
        b.fresh.subtract(&lost);
    }
    Ok(())
}
