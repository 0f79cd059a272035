//! Removes what dead batches left in `staging/`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{IoContext, Result};
use crate::files::freed;
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
        let handle = match files.open_dir(&path) {
            Ok(handle) => handle,
            Err(error) => {
                // Its batch has just ended, or this is not a batch's directory.
                tracing::debug!("{} is passed over: {error}", path.display());
                continue;
            }
        };
        let Ok(_held) = Flock::lock(handle, FlockArg::LockExclusiveNonblock) else { continue };
        swept.bytes += size(store, &path)?;
        swept.batches += 1;
        if !dry_run {
            files.remove_tree(&path).at("remove", &path)?;
        }
    }
    Ok(swept)
}

fn size(store: &Store, dir: &Path) -> Result<u64> {
    let mut bytes = dir.symlink_metadata().at("stat", dir)?.blocks() * 512;
    for path in store.files().list(dir)? {
        bytes += freed(&path.symlink_metadata().at("stat", &path)?);
    }
    Ok(bytes)
}
