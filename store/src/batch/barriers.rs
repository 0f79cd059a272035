//! The durability barriers of a batch: first for file contents, then for names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::unistd::syncfs;

use super::{Batch, Staged};
use crate::durability::Barrier;
use crate::error::{IoContext as _, Result};
use crate::id::ObjectId;
use crate::parallel::in_waiting_pieces;

/// Up to this many files or directories are synced one by one; for more, one `syncfs` is cheaper, where it
/// can be trusted.
const FEW: usize = 8;

impl Batch {
    /// The data barrier: contents are on disk before any name points at them.
    pub(super) fn make_durable(&self, staged: &HashMap<ObjectId, Staged>) -> Result<()> {
        if staged.len() > FEW && self.barrier == Barrier::Whole {
            return self.syncfs();
        }
        let paths: Vec<PathBuf> = staged.values().map(|staged| self.path_of(staged)).collect();
        self.each(&paths, |path| self.open_staged(path)?.sync_data().at("sync", path))
    }

    fn syncfs(&self) -> Result<()> {
        syncfs(&*self.lock).at("sync the file system of", &self.dir)
    }

    /// The barrier for names, including those of skipped objects.
    pub(super) fn make_names_durable(
        &mut self,
        staged: &HashMap<ObjectId, Staged>,
        new_dirs: bool,
    ) -> Result<()> {
        let skipped = std::mem::take(&mut self.skipped);
        let has_skipped = !skipped.is_empty();
        let mut dirs = skipped;
        dirs.extend(staged.keys().map(|id| id.as_bytes()[0]));
        if dirs.len() > FEW && self.barrier == Barrier::Whole {
            return self.syncfs();
        }
        let objects = self.store.objects();
        let mut dirs: Vec<PathBuf> = dirs.iter().map(|byte| objects.shard(*byte)).collect();
        if new_dirs {
            dirs.push(objects.dir().to_owned());
        }
        self.each(&dirs, |dir| self.store.files().sync_dir(dir))?;
        if self.barrier == Barrier::Named {
            let paths: Vec<PathBuf> = staged.keys().map(|id| objects.path(id)).collect();
            self.each(&paths, |path| self.open_staged(path)?.sync_all().at("sync", path))?;
            if has_skipped {
                self.store.files().sync_dir_surely(&self.dir)?;
            }
        }
        Ok(())
    }

    /// Syncs one path after another; in parallel where each sync is waited for by itself.
    fn each(&self, paths: &[PathBuf], sync: impl Fn(&Path) -> Result<()> + Sync) -> Result<()> {
        let one_by_one = |paths: &[PathBuf]| paths.iter().try_for_each(|path| sync(path));
        match self.barrier {
            Barrier::Whole => one_by_one(paths),
            Barrier::Each | Barrier::Named => in_waiting_pieces(paths, one_by_one).into_iter().collect(),
        }
    }
}
