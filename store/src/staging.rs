//! Sweeping what dead batches left in `staging/`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{IoContext, Result};
use crate::gc;
use crate::layout::Layout;

/// Staged directories of dead batches, and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    pub batches: u64,
    pub bytes: u64,
}

/// Removes (unless `dry_run`) every staging directory whose batch is gone: a living one holds a flock on it.
pub(crate) fn sweep(layout: &Layout, dry_run: bool) -> Result<Swept> {
    let staging = layout.staging();
    let mut swept = Swept::default();
    for entry in fs::read_dir(&staging).at("list", &staging)? {
        let path = entry.at("list", &staging)?.path();
        let handle = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue, // its batch has just ended
            other => other.at("open", &path)?,
        };
        let Ok(_held) = Flock::lock(handle, FlockArg::LockExclusiveNonblock) else { continue };
        if !path.is_dir() {
            continue;
        }
        swept.bytes += size(&path)?;
        swept.batches += 1;
        if !dry_run {
            fs::remove_dir_all(&path).at("remove", &path)?;
        }
    }
    Ok(swept)
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = fs::metadata(dir).at("stat", dir)?.blocks() * 512;
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        bytes += gc::freed(&entry.metadata().at("stat", &entry.path())?);
    }
    Ok(bytes)
}
