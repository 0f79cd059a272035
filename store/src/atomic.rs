//! Durable replacement of small files.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use crate::error::{IoContext as _, Result, StoreError};
use crate::fail;

/// Replaces `path` by a file (mode 0600) with these bytes: a reader sees the old or the new content, whole.
/// Durable on return. The directory must exist.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .ok_or_else(|| StoreError::invalid(format!("{} has no parent directory", path.display())))?;
    let mut temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile_in(dir)
        .at("create a temporary file in", dir)?;
    fail::point("file.write").and_then(|()| temp.write_all(bytes)).at("write", temp.path())?;
    fail::point("file.sync").and_then(|()| temp.as_file().sync_all()).at("sync", temp.path())?;
    fail::point("file.rename").at("replace", path)?;
    temp.persist(path).map_err(|error| error.error).at("replace", path)?;
    fail::point("file.sync-dir").at("sync", dir)?;
    fsync_dir(dir)
}

/// How the names of unfinished files begin; whatever lists a directory skips them.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Removes unfinished files of dead processes from a directory. The caller knows that nobody writes there.
pub fn sweep_temporary(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            fs::remove_file(entry.path()).at("remove", &entry.path())?;
        }
    }
    Ok(())
}

/// Makes the entries of the directory `path` durable.
pub fn fsync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).at("sync", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn says_what_failed() {
        let error = write_file(Path::new("/nonexistent/x"), b"").unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
