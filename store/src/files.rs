//! Listing the store's directories.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};
use crate::id::ObjectId;

/// Everything in a directory, sorted.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        paths.push(entry.at("list", dir)?.path());
    }
    paths.sort_unstable();
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
