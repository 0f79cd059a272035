//! Durable replacement of small files.

use std::fs::File;
use std::path::Path;

use crate::error::{IoContext as _, Result, StoreError};
use crate::files::Files;

/// Replaces `path` by a file (mode 0600) with these bytes: a reader sees the old or the new content, whole.
/// Durable on return. The directory must exist. For files that are in no store: in one, [`Files::write`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .ok_or_else(|| StoreError::invalid(format!("{} has no parent directory", path.display())))?;
    Files::at(dir).at("open", dir)?.write(path, bytes)
}

/// How the names of unfinished files begin; whatever lists a directory skips them.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Removes unfinished files of dead processes from a directory. The caller knows that nobody writes there.
pub fn sweep_temporary(files: &Files, dir: &Path) -> Result<()> {
    for name in files.names(dir).at("list", dir)? {
        if name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            let path = dir.join(name);
            files.remove(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Makes the entries of the directory `path`, which is in no store, durable.
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
