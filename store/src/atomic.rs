//! Durable replacement of small files.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use crate::error::{IoContext as _, Result, StoreError};
use crate::fail;
use crate::files::{self, Files, TEMP_PREFIX};

/// Atomically replaces `path` by a file (mode 0600) with these bytes: a reader sees the whole old or the
/// whole new content. Durable on return. The directory must exist. For files outside a store; inside one, use
/// [`Files::write`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = directory_of(path)?;
    Files::at(dir).at("open", dir)?.write(path, bytes)
}

/// Like [`write_file`], for a user's file outside the store. A new file gets mode 0666 less the umask; an
/// existing one keeps its mode and, as far as the caller may set it, its owner. A symbolic link to it is
/// kept.
pub fn write_user_file(path: &Path, bytes: &[u8]) -> Result<()> {
    match fs::metadata(path) {
        Ok(old) => {
            let path = fs::canonicalize(path).at("resolve", path)?;
            // At no time accessible to anybody who could not access the old file.
            replace(&path, bytes, Permissions::from_mode(old.mode() & 0o700), Some(&old))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            replace(path, bytes, Permissions::from_mode(0o666), None)
        }
        Err(e) => Err(e).at("read", path),
    }
}

fn directory_of(path: &Path) -> Result<&Path> {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .ok_or_else(|| StoreError::invalid(format!("{} has no parent directory", path.display())))
}

fn replace(path: &Path, bytes: &[u8], permissions: Permissions, like: Option<&Metadata>) -> Result<()> {
    let dir = directory_of(path)?;
    let mut temp = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .permissions(permissions)
        .tempfile_in(dir)
        .at("create a temporary file in", dir)?;
    fail::point("file.write").and_then(|()| temp.write_all(bytes)).at("write", temp.path())?;
    if let Some(old) = like {
        become_like(temp.as_file(), old).at("set owner and mode of", temp.path())?;
    }
    fail::point("file.sync").and_then(|()| temp.as_file().sync_all()).at("sync", temp.path())?;
    fail::point("file.rename").at("replace", path)?;
    let file = temp.persist(path).map_err(|error| error.error).at("replace", path)?;
    fail::point("file.sync-dir").at("sync", dir)?;
    fsync_name(dir, &file)
}

/// Gives a new file the owner and mode of the one it replaces. An owner that the caller may not set is
/// skipped: then the file belongs to the caller, as with any editor that replaces files.
pub fn become_like(new: &File, old: &Metadata) -> io::Result<()> {
    let now = new.metadata()?;
    for (uid, gid) in [(None, Some(old.gid())), (Some(old.uid()), None)] {
        if uid.is_none_or(|uid| uid == now.uid()) && gid.is_none_or(|gid| gid == now.gid()) {
            continue;
        }
        match fchown(new, uid, gid) {
            Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(e),
            _ => {}
        }
    }
    new.set_permissions(Permissions::from_mode(old.mode() & 0o777))
}

/// Removes unfinished files of dead processes from a directory, to which nobody else may be writing.
pub fn sweep_temporary(files: &Files, dir: &Path) -> Result<()> {
    for name in files.names(dir).at("list", dir)? {
        if name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes()) {
            let path = dir.join(name);
            files.remove(&path).at("remove", &path)?;
        }
    }
    Ok(())
}

/// Makes an open file's name in the directory `path` durable, outside a store.
pub fn fsync_name(path: &Path, file: &File) -> Result<()> {
    File::open(path).and_then(|dir| files::sync_name(&dir, file)).at("sync", path)
}

/// Makes the entries of the directory `path` durable, outside a store.
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
    fn a_users_file_has_the_mode_of_the_umask_and_keeps_one_that_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        let (plain, new) = (dir.path().join("plain"), dir.path().join("new"));
        // A new file gets the mode that the umask gives any file.
        fs::write(&plain, "").unwrap();
        write_user_file(&new, b"one").unwrap();
        assert_eq!(mode("new"), mode("plain"));
        std::os::unix::fs::symlink("new", dir.path().join("link")).unwrap();
        for kept in [0o640, 0o600, 0o755, 0o444] {
            fs::set_permissions(&new, Permissions::from_mode(kept)).unwrap();
            write_user_file(&dir.path().join("link"), b"two").unwrap();
            assert_eq!(mode("new"), kept);
        }
        assert!(dir.path().join("link").is_symlink());
        assert_eq!(fs::read(&new).unwrap(), b"two");
        write_file(&new, b"ours").unwrap();
        assert_eq!(mode("new"), 0o600);
        // Another owner, if we may set one.
        if nix::unistd::geteuid().is_root() {
            fchown(File::open(&new).unwrap(), Some(1234), Some(4321)).unwrap();
            write_user_file(&new, b"three").unwrap();
            let now = fs::metadata(&new).unwrap();
            assert_eq!((now.uid(), now.gid(), now.mode() & 0o777), (1234, 4321, 0o600));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn says_what_failed() {
        let error = write_file(Path::new("/nonexistent/x"), b"").unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
