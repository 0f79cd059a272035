//! Opening and creating a store.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, Uid, User, access};

use crate::atomic;
use crate::error::{IoContext as _, Result, StoreError};
use crate::layout::Layout;
use crate::object::Objects;

/// The format that this program reads and writes.
pub const FORMAT: u32 = 3;

/// An open store. Opening takes no lock.
#[derive(Debug)]
pub struct Store {
    objects: Objects,
    /// Whether locks are waited for.
    waits: AtomicBool,
    /// The file system that it lies on takes no writes.
    read_only: bool,
}

impl Store {
    /// Opens the store at `root`; creates it (directories 0700) where there is none. Of one that is there, directories that hold nothing
    /// which lasts are made again when they are missing. On a read-only file system it can be read.
    ///
    /// # Errors
    /// [`StoreError::Version`] when it has another format, [`StoreError::NotWhole`] when a part of it is gone that held something,
    /// [`StoreError::Owner`] when it is another user's.
    pub fn open(root: &Path) -> Result<Arc<Store>> {
        // Absolute, so that a later change of the working directory (a daemon's chdir to /) is harmless.
        let root = std::path::absolute(root).at("resolve", root)?;
        if root.metadata().is_ok_and(|there| !there.is_dir()) {
            let what =
                format!("{} is no directory: choose another place for the store (--store)", root.display());
            return Err(StoreError::Invalid(what));
        }
        let layout = Layout::new(&root);
        check_owner(&layout)?;
        let mut read_only = false;
        if check_version(&layout)? {
            read_only = is_read_only(&layout)?;
            complete(&layout, read_only)?;
        } else {
            create(&layout)?;
        }
        Ok(Arc::new(Store { objects: Objects::new(layout), waits: AtomicBool::new(true), read_only }))
    }

    /// Whether the store lies on a file system that takes no writes: then nothing changes it, and nothing is locked or pinned.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a lock that another process holds is waited for (as it is unless this is called) or is an error at once.
    pub fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// See [`Store::set_waits`].
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        self.objects.layout()
    }

    /// The objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }
}

/// Whether there is a store of our format; false when there is none at all.
fn check_version(layout: &Layout) -> Result<bool> {
    let path = layout.version();
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file.take(256).read_to_string(&mut text).at("read", &path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at("open", &path),
    };
    if text.trim() != FORMAT.to_string() {
        return Err(StoreError::Version { found: text.trim().to_owned(), supported: FORMAT, path });
    }
    Ok(true)
}

/// Refuses the store of another user where we may not write, and warns root, who may.
fn check_owner(layout: &Layout) -> Result<()> {
    let ours = nix::unistd::geteuid();
    let place = [layout.store_dir(), layout.root()];
    let Some((path, there)) = place.iter().find_map(|path| Some((*path, path.metadata().ok()?))) else {
        return Ok(());
    };
    if there.uid() == ours.as_raw() {
        return Ok(());
    }
    let owner = match User::from_uid(Uid::from_raw(there.uid())) {
        Ok(Some(user)) => user.name,
        _ => format!("user {}", there.uid()),
    };
    if !ours.is_root() && access(path, AccessFlags::W_OK | AccessFlags::X_OK) == Err(Errno::EACCES) {
        return Err(StoreError::Owner { path: path.to_owned(), owner });
    }
    if ours.is_root() {
        tracing::warn!(
            "{} belongs to {owner}, who cannot read what root makes in it: better run karapace as {owner}",
            path.display()
        );
    }
    Ok(())
}

fn is_read_only(layout: &Layout) -> Result<bool> {
    let dir = layout.store_dir();
    Ok(statvfs(dir).at("stat the file system of", dir)?.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether something is in a directory; not where there is none.
fn has_entries(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("list", dir),
    }
}

/// What a store's directories hold that lasts. Each says something about whether the others can have been empty.
fn lasting(layout: &Layout) -> [PathBuf; 4] {
    [layout.metadata(), layout.layers(), layout.objects().to_owned(), layout.envs()]
}

/// Makes again what is missing of a store and held nothing that lasts.
///
/// An environment's record refers to layers, objects and its upper: where there are records, these were there. Where the records
/// themselves are missing, anything else that is there tells of them.
fn complete(layout: &Layout, read_only: bool) -> Result<()> {
    let lasting = lasting(layout);
    let missing: Vec<&PathBuf> = lasting.iter().filter(|dir| is_missing(dir)).collect();
    let no_records = missing.contains(&&layout.metadata());
    for dir in &missing {
        let witnesses = if no_records { &lasting[1..] } else { &lasting[..1] };
        for witness in witnesses {
            if has_entries(witness)? {
                let reason = format!(
                    "{} is not empty, so something was lost. Put back the directory from a backup; without one, `mkdir {}` lets \
                     `karapace verify-store` say what is left",
                    witness.display(),
                    dir.display()
                );
                return Err(StoreError::NotWhole { path: dir.to_path_buf(), reason });
            }
        }
    }
    let passing = [layout.staging(), layout.wal(), layout.pins(), layout.images()];
    for dir in lasting.iter().chain(&passing).filter(|dir| !read_only && is_missing(dir)) {
        tracing::warn!("{} was missing and has been made again", dir.display());
        make_dir(dir)?;
    }
    Ok(())
}

/// A directory that cannot be looked at is for whoever needs it to report.
fn is_missing(dir: &Path) -> bool {
    dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).at("create", dir)
}

/// Makes the directories, then the version file: what has a version is whole.
fn create(layout: &Layout) -> Result<()> {
    let lasting = lasting(layout);
    for dir in &lasting {
        // Another process may have made the store, and used it, since we looked.
        if has_entries(dir)? && !check_version(layout)? {
            let reason = format!(
                "{} is not empty: this is not a whole store. If it is one of format {FORMAT}, write {FORMAT} into that file; else \
                 choose another directory (--store)",
                dir.display()
            );
            return Err(StoreError::NotWhole { path: layout.version(), reason });
        }
    }
    make_dir(layout.store_dir())?;
    for dir in lasting.iter().chain(&[layout.staging(), layout.wal(), layout.pins(), layout.images()]) {
        make_dir(dir)?;
    }
    atomic::write_file(&layout.version(), format!("{FORMAT}\n").as_bytes())?;
    atomic::fsync_dir(layout.root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn creates_private_directories_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let store = Store::open(&root).unwrap();
        let mode = fs::metadata(store.layout().objects()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(fs::read_to_string(root.join("store/version")).unwrap(), "3\n");
        Store::open(&root).unwrap();
    }

    #[test]
    fn refuses_another_format_and_a_store_without_version() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap();
        let version = dir.path().join("store/version");
        fs::write(&version, "2").unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Version { supported: 3, .. })));
        fs::remove_file(&version).unwrap();
        fs::create_dir(dir.path().join("store/objects/00")).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::NotWhole { .. })));
    }

    #[test]
    fn versions_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap();
        let version = dir.path().join("store/version");
        for (text, expected) in [
            ("4\n", "a newer karapace"),
            ("2", "use the karapace that wrote it"),
            ("", "is damaged"),
            ("\0\0", "damaged"),
        ] {
            fs::write(&version, text).unwrap();
            let error = Store::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("store/version"), "{text:?}: {error}");
            assert_eq!(fs::read_to_string(&version).unwrap(), text, "nothing changed");
        }
    }

    #[test]
    fn a_missing_directory_is_made_again_or_missed() {
        let all = [
            "store/metadata",
            "store/layers",
            "store/objects",
            "env",
            "store/staging",
            "store/wal",
            "store/pins",
            "images",
        ];
        // Whether the store had an environment, and which directories' loss is then an error.
        for (used, missed) in [(false, &[][..]), (true, &all[..4])] {
            for gone in all {
                let dir = tempfile::tempdir().unwrap();
                Store::open(dir.path()).unwrap();
                if used {
                    for (at, name) in all.iter().zip(["record", "layer", "00", "instance"]) {
                        fs::create_dir(dir.path().join(at).join(name)).unwrap();
                    }
                }
                fs::remove_dir_all(dir.path().join(gone)).unwrap();
                let opened = Store::open(dir.path());
                if missed.contains(&gone) {
                    let error = opened.unwrap_err();
                    assert!(matches!(error, StoreError::NotWhole { .. }), "{error}");
                    assert!(error.to_string().contains(gone), "{error}");
                    assert!(!dir.path().join(gone).exists(), "{gone} was made");
                } else {
                    opened.unwrap();
                    assert!(dir.path().join(gone).is_dir(), "{gone}");
                }
            }
        }
    }

    #[test]
    fn a_file_is_no_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("is no directory"), "{error}");
    }
}
