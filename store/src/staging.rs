//! Removes what dead batches left in `staging/`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{IoContext, Result};
use crate::files::freed;
use crate::held::{lock_dir, try_lock_dir};
use crate::open::Store;

/// The number of staging directories of dead batches, and their size in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    pub batches: u64,
    pub bytes: u64,
}

/// Removes (unless `dry_run`) every staging directory whose batch is dead: a live batch holds a flock on it.
pub(crate) fn sweep(store: &Store, dry_run: bool) -> Result<Swept> {
    let (files, staging) = (store.files(), store.layout().staging());
    let mut swept = Swept::default();
    for path in files.list(&staging)? {
        let Some(_held) = lock_dead(store, &path, dry_run)? else { continue };
        swept.bytes += size(store, &path)?;
        swept.batches += 1;
        if !dry_run {
            files.remove_tree(&path).at("remove", &path)?;
        }
    }
    Ok(swept)
}

/// Locks the staging directory of a dead batch; `None` if its batch lives or has just ended, or if this is
/// not a batch's directory.
fn lock_dead(store: &Store, path: &Path, dry_run: bool) -> Result<Option<Flock<File>>> {
    // A new directory is made and locked under this lock, so that one which is not locked is a dead batch's.
    let staging = store.layout().staging();
    let guard = if dry_run {
        try_lock_dir(store.files(), &staging)?
    } else {
        Some(lock_dir(store.files(), &staging)?)
    };
    // A dry run counts less rather than wait for another user's process in a foreign store.
    let Some(_guard) = guard else { return Ok(None) };
    let handle = match store.files().open_dir(path) {
        Ok(handle) => handle,
        Err(error) => {
            tracing::debug!("skipped {}: {error}", path.display());
            return Ok(None);
        }
    };
    let Ok(held) = Flock::lock(handle, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
    // Its batch may have removed it between the two calls.
    Ok(path.try_exists().at("stat", path)?.then_some(held))
}

fn size(store: &Store, dir: &Path) -> Result<u64> {
    let mut bytes = dir.symlink_metadata().at("stat", dir)?.blocks() * 512;
    for path in store.files().list(dir)? {
        bytes += freed(&path.symlink_metadata().at("stat", &path)?);
    }
    Ok(bytes)
}
