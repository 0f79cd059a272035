//! Opening and creating a store.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::durability::FileSystem;
use crate::error::{IoContext as _, Result, StoreError};
use crate::files::{Files, user_name};
use crate::layout::Layout;
use crate::object::Objects;

/// The format that this program reads and writes.
pub const FORMAT: u32 = 3;

/// What is made where there is no store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Store,
    Nothing,
}

/// An open store. Opening takes no lock.
#[derive(Debug)]
pub struct Store {
    objects: Objects,
    /// Whether locks are waited for.
    waits: AtomicBool,
    /// The file system that it lies on takes no writes, or it is another user's.
    read_only: bool,
    /// It is another user's.
    foreign: bool,
    /// What it lies on; looked at once, when somebody asks.
    file_systems: OnceLock<Vec<FileSystem>>,
}

impl Store {
    /// Opens the store at `root`; creates it (directories 0700) where there is none. Of one that is there,
    /// directories that hold nothing which lasts are made again when they are missing. On a read-only file
    /// system it can be read.
    ///
    /// # Errors
    /// [`StoreError::Version`] when it has another format, [`StoreError::NotWhole`] when a part of it is gone
    /// that held something, [`StoreError::Owner`] when it is another user's, [`StoreError::Writable`] when
    /// others can write to it.
    pub fn open(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Store, false)
    }

    /// As [`Store::open`], of a store that is there.
    ///
    /// # Errors
    /// As [`Store::open`], and [`StoreError::NoStore`] where there is none; then nothing was changed.
    pub fn open_existing(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Nothing, false)
    }

    /// Opens the store at `root`, where one is, whosever it is. Another user's can be read only, and nothing
    /// that its owner's processes hold is waited for.
    ///
    /// # Errors
    /// As [`Store::open_existing`], but for those of the owner.
    pub fn open_foreign(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Nothing, true)
    }

    fn open_of(root: &Path, begin: Begin, any_owner: bool) -> Result<Arc<Store>> {
        // Absolute, so that a later change of the working directory (a daemon's chdir to /) is harmless.
        let root = std::path::absolute(root).at("resolve", root)?;
        if root.metadata().is_ok_and(|there| !there.is_dir()) {
            let what =
                format!("{} is no directory: choose another place for the store (--store)", root.display());
            return Err(StoreError::Invalid(what));
        }
        let layout = Layout::new(&root);
        let mut files = match Files::at(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if begin == Begin::Nothing {
                    return Err(StoreError::NoStore { path: root, is_there: false });
                }
                // Those above it, too: a directory that others write to is no place for it.
                DirBuilder::new().recursive(true).mode(0o700).create(&root).at("create", &root)?;
                Files::at(&root)
            }
            other => other,
        }
        .at("open", &root)?;
        let foreign = files.owner() != nix::unistd::geteuid().as_raw();
        if foreign && !any_owner {
            return Err(StoreError::Owner { path: root, owner: user_name(files.owner()) });
        }
        if foreign {
            files = Files::for_reading(&root).at("open", &root)?;
        }
        check_directories(&files, &layout, foreign)?;
        let read_only = foreign || is_read_only(&files, &layout)?;
        if check_version(&files, &layout)? {
            complete(&files, &layout, read_only)?;
        } else {
            check_empty(&files, &layout)?;
            if begin == Begin::Nothing {
                return Err(StoreError::NoStore { path: root, is_there: true });
            }
            create(&files, &layout)?;
        }
        let waits = AtomicBool::new(!foreign);
        Ok(Arc::new(Store {
            objects: Objects::new(layout, files),
            waits,
            read_only,
            foreign,
            file_systems: OnceLock::new(),
        }))
    }

    /// Its files that are no objects.
    pub fn files(&self) -> &Files {
        self.objects.files()
    }

    /// Whether the store is another user's.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether the store lies on a file system that takes no writes, or is another user's: then we change
    /// nothing in it, and pin nothing.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The file systems that it lies on: first that of the objects and records, then, where it is another
    /// one, that of the environments' changes.
    ///
    /// # Errors
    /// When one cannot be looked at.
    pub fn file_systems(&self) -> Result<&[FileSystem]> {
        if let Some(known) = self.file_systems.get() {
            return Ok(known);
        }
        let mut found = Vec::new();
        for dir in [self.layout().objects().to_owned(), self.layout().envs()] {
            let open = self.files().open_dir(&dir).at("open", &dir)?;
            let under = FileSystem::of(&open).at("look at the file system of", &dir)?;
            if !found.contains(&under) {
                found.push(under);
            }
        }
        Ok(self.file_systems.get_or_init(|| found))
    }

    /// Whether a lock that another process holds is waited for (as it is unless this is called) or is an
    /// error at once.
    pub fn set_waits(&self, waits: bool) {
        // Its owner could make us wait for ever.
        self.waits.store(waits && !self.foreign, Ordering::Relaxed);
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
fn check_version(files: &Files, layout: &Layout) -> Result<bool> {
    let path = layout.version();
    let text = match files.read(&path, 256) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).at("read", &path),
    };
    if text.trim() != FORMAT.to_string() {
        return Err(StoreError::Version { found: text.trim().to_owned(), supported: FORMAT, path });
    }
    Ok(true)
}

/// Refuses a store that somebody else can change: who does decides what is read and written through it.
fn check_directories(files: &Files, layout: &Layout, foreign: bool) -> Result<()> {
    // Gives whether others get into it, who have got as far as `reached` says.
    let look = |dir: &Path, reached: bool| -> Result<bool> {
        let Some(mode) = mode_of(files, dir)? else { return Ok(false) };
        // Who looks into another's store is not made safer by keeping third ones from it.
        if reached && mode & 0o022 != 0 && !foreign {
            return Err(StoreError::Writable { path: dir.to_owned(), mode });
        }
        Ok(reached && mode & 0o011 != 0)
    };
    let reached = look(layout.root(), true)?;
    for dir in [layout.envs(), layout.images(), layout.logs(), layout.quarantine()] {
        look(&dir, reached)?;
    }
    let reached = look(layout.store_dir(), reached)?;
    for dir in private_directories(layout).iter().filter(|dir| dir.parent() == Some(layout.store_dir())) {
        look(dir, reached)?;
    }
    Ok(())
}

/// The mode of a directory of the store's owner; `None` where there is nothing.
fn mode_of(files: &Files, dir: &Path) -> Result<Option<u32>> {
    match files.open_dir(dir).and_then(|dir| dir.metadata()) {
        Ok(metadata) => Ok(Some(metadata.permissions().mode() & 0o7777)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // For whoever needs it to report.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error).at("open", dir),
    }
}

/// The directories of a store that are the owner's alone.
pub(crate) fn private_directories(layout: &Layout) -> Vec<PathBuf> {
    let mut dirs = vec![layout.store_dir().to_owned(), layout.objects().to_owned()];
    dirs.extend([layout.layers(), layout.metadata(), layout.staging(), layout.wal(), layout.pins()]);
    dirs.extend([layout.envs(), layout.images()]);
    dirs
}

fn is_read_only(files: &Files, layout: &Layout) -> Result<bool> {
    let root = layout.root();
    let dir = files.open_dir(root).at("open", root)?;
    Ok(fstatvfs(&dir).at("stat the file system of", root)?.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether something is in a directory; not where there is none.
fn has_entries(files: &Files, dir: &Path) -> Result<bool> {
    match files.names(dir) {
        Ok(names) => Ok(!names.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("list", dir),
    }
}

/// What a store's directories hold that lasts. Each says something about whether the others can have been
/// empty.
fn lasting(layout: &Layout) -> [PathBuf; 4] {
    [layout.metadata(), layout.layers(), layout.objects().to_owned(), layout.envs()]
}

/// Makes again what is missing of a store and held nothing that lasts.
///
/// An environment's record refers to layers, objects and its upper: where there are records, these were
/// there. Where the records themselves are missing, anything else that is there tells of them.
fn complete(files: &Files, layout: &Layout, read_only: bool) -> Result<()> {
    let lasting = lasting(layout);
    let missing: Vec<&PathBuf> = lasting.iter().filter(|dir| is_missing(dir)).collect();
    let no_records = missing.contains(&&layout.metadata());
    for dir in &missing {
        let witnesses = if no_records { &lasting[1..] } else { &lasting[..1] };
        for witness in witnesses {
            if has_entries(files, witness)? {
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
        files.make_dirs(dir).at("create", dir)?;
    }
    Ok(())
}

/// A directory that cannot be looked at is for whoever needs it to report.
fn is_missing(dir: &Path) -> bool {
    dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Refuses what has no version and holds something that lasts: a store that has lost its version.
fn check_empty(files: &Files, layout: &Layout) -> Result<()> {
    let lasting = lasting(layout);
    for dir in &lasting {
        // Another process may have made the store, and used it, since we looked.
        if has_entries(files, dir)? && !check_version(files, layout)? {
            let reason = format!(
                "{} is not empty: this is not a whole store. If it is one of format {FORMAT}, write {FORMAT} into that file; else \
                 choose another directory (--store)",
                dir.display()
            );
            return Err(StoreError::NotWhole { path: layout.version(), reason });
        }
    }
    Ok(())
}

/// Makes the directories, then the version file: what has a version is whole.
fn create(files: &Files, layout: &Layout) -> Result<()> {
    for dir in private_directories(layout) {
        files.make_dirs(&dir).at("create", &dir)?;
    }
    files.write(&layout.version(), format!("{FORMAT}\n").as_bytes())?;
    files.sync_dir(layout.root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
    fn a_store_that_is_to_be_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        for open in [Store::open_existing, Store::open_foreign] {
            let error = open(&root).unwrap_err();
            assert!(matches!(&error, StoreError::NoStore { is_there: false, .. }), "{error}");
            assert!(error.to_string().contains(&root.display().to_string()), "{error}");
            assert!(!dir.path().join("a").exists());
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(&error, StoreError::NoStore { is_there: true, .. }), "{error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        Store::open(&root).unwrap();
        Store::open_existing(&root).unwrap();
        // One that has lost its version is told as what it is.
        fs::remove_file(root.join("store/version")).unwrap();
        fs::create_dir(root.join("env/something")).unwrap();
        assert!(matches!(Store::open_existing(&root), Err(StoreError::NotWhole { .. })));
    }

    #[test]
    fn a_file_is_no_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("is no directory"), "{error}");
    }
}
