//! The store's files: listing them, and renewing their times.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::error::{IoContext, Result};
use crate::id::ObjectId;

/// Everything in a directory, sorted.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        paths.push(entry.at("list", dir)?.path());
    }
    // As bytes: all but the last component is the same, and a comparison by components takes ten times as long.
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(paths)
}

/// A path's last component, unless it is no UTF-8.
pub(crate) fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The object whose file this is, by the names of directory and file.
pub(crate) fn object_id(path: &Path) -> Option<ObjectId> {
    let (prefix, rest) = (name(path.parent()?)?, name(path)?);
    (prefix.len() == 2).then(|| format!("{prefix}{rest}").parse().ok()).flatten()
}

/// Whether there is a file; if so its change time is now (see [`crate::object::Objects::refresh`]).
pub(crate) fn refresh(path: &Path) -> Result<bool> {
    // The access time says nothing: a call that changes nothing need not count as a change.
    match utimensat(
        AT_FDCWD,
        path,
        &TimeSpec::UTIME_OMIT,
        &TimeSpec::UTIME_NOW,
        UtimensatFlags::NoFollowSymlink,
    ) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).at("set the time of", path),
    }
}
