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
use crate::id::InstanceId;
use crate::layout::Layout;
use crate::object::Objects;

/// The format that this program reads and writes.
pub const FORMAT: u32 = 3;

/// Whether to create a store where there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    Store,
    Nothing,
}

/// An open store. Opening takes no lock.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    files: Files,
    objects: Objects,
    /// Whether to wait for locks.
    waits: AtomicBool,
    /// Whether its file system is mounted read-only, or the store belongs to another user.
    read_only: bool,
    /// Whether it belongs to another user.
    foreign: bool,
    /// The file systems it lies on; determined once, on first use.
    file_systems: OnceLock<Vec<FileSystem>>,
}

impl Store {
    /// Opens the store at `root`, or creates it (directories 0700) if there is none. In an existing store,
    /// missing directories that hold only transient data are made again. A store on a read-only file system
    /// can be read.
    ///
    /// # Errors
    /// [`StoreError::Version`] when it has another format, [`StoreError::NotWhole`] when a directory that
    /// held lasting data is missing, [`StoreError::Owner`] when it belongs to another user,
    /// [`StoreError::Writable`] when other users can write to it.
    pub fn open(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Store, false)
    }

    /// Like [`Store::open`], but never creates a store.
    ///
    /// # Errors
    /// Those of [`Store::open`], and [`StoreError::NoStore`] where there is none; then nothing was changed.
    pub fn open_existing(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Nothing, false)
    }

    /// Opens an existing store at `root`, whoever owns it. Another user's store is opened read-only, and
    /// locks that its owner's processes hold are never waited for.
    ///
    /// # Errors
    /// Those of [`Store::open_existing`], except the ones about the owner.
    pub fn open_foreign(root: &Path) -> Result<Arc<Store>> {
        Store::open_of(root, Begin::Nothing, true)
    }

    fn open_of(root: &Path, begin: Begin, any_owner: bool) -> Result<Arc<Store>> {
        // Absolute, so that a later change of the working directory (a daemon's chdir to /) is harmless.
        let root = std::path::absolute(root).at("resolve", root)?;
        if root.metadata().is_ok_and(|there| !there.is_dir()) {
            let what =
                format!("{} is not a directory: choose another path for the store (--store)", root.display());
            return Err(StoreError::Invalid(what));
        }
        let layout = Layout::new(&root);
        let mut files = match Files::at(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if begin == Begin::Nothing {
                    return Err(StoreError::NoStore { path: root, is_there: false });
                }
                // Missing parents are made 0700 as well: others must not be able to write to them.
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
            objects: Objects::new(layout.clone(), files.clone()),
            layout,
            files,
            waits,
            read_only,
            foreign,
            file_systems: OnceLock::new(),
        }))
    }

    /// The store's files other than objects.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Whether the store is another user's.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Whether the store lies on a read-only file system or belongs to another user. Then nothing in it is
    /// changed, and nothing is pinned.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The file systems it lies on: first that of objects and records, then, if it differs, that of the
    /// environments' changes.
    ///
    /// # Errors
    /// When a directory cannot be opened or its file system cannot be determined.
    pub fn file_systems(&self) -> Result<&[FileSystem]> {
        if let Some(known) = self.file_systems.get() {
            return Ok(known);
        }
        let mut found = Vec::new();
        for dir in [self.objects.dir().to_owned(), self.layout.envs()] {
            let open = self.files().open_dir(&dir).at("open", &dir)?;
            let under = FileSystem::of(&open).at("look at the file system of", &dir)?;
            if !found.contains(&under) {
                found.push(under);
            }
        }
        Ok(self.file_systems.get_or_init(|| found))
    }

    /// Sets whether to wait for a lock that another process holds (the default) or to fail at once. A foreign
    /// store never waits.
    pub fn set_waits(&self, waits: bool) {
        // The owner could make us wait forever.
        self.waits.store(waits && !self.foreign, Ordering::Relaxed);
    }

    /// See [`Store::set_waits`].
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Where the store's files lie.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether there is a store at `root`, of any format.
    pub fn is_at(root: &Path) -> bool {
        Layout::new(root).version().exists()
    }

    /// The store's root directory, absolute.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The directory of what environments share: its file system has to have room for new objects.
    pub fn shared_dir(&self) -> &Path {
        self.layout.store_dir()
    }

    /// The directory of an environment: its lock, its upper, and the files of its server. It need not exist.
    pub fn env_dir(&self, instance: &InstanceId) -> PathBuf {
        self.layout.env_dir(instance)
    }

    /// The directory of an environment's upper, below [`Store::env_dir`]. It need not exist.
    pub fn upper_dir(&self, instance: &InstanceId) -> PathBuf {
        self.layout.upper(instance)
    }

    /// The directory in which downloaded images are kept.
    pub fn image_cache(&self) -> PathBuf {
        self.layout.images()
    }

    /// The directory of the logs of builds. It is made by the first build.
    pub fn build_logs(&self) -> PathBuf {
        self.layout.logs()
    }

    /// The file that names the process which mounts every environment. It is locked while there is
    /// one, and may remain afterwards.
    pub fn supervisor_file(&self) -> PathBuf {
        self.layout.mount_all()
    }

    /// The log of that process.
    pub fn supervisor_log(&self) -> PathBuf {
        self.layout.mount_all_log()
    }

    /// The store's objects.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }
}

/// Whether there is a store of our format; false when there is no version file.
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

/// Refuses a store that other users can change: they would decide what is read and written through it.
fn check_directories(files: &Files, layout: &Layout, foreign: bool) -> Result<()> {
    // Returns whether other users can enter `dir`, given whether they can reach it (`reached`).
    let look = |dir: &Path, reached: bool| -> Result<bool> {
        let Some(mode) = mode_of(files, dir)? else { return Ok(false) };
        // In another user's store, keeping third users out protects nothing.
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

/// The mode of a directory of the store's owner; `None` when it is absent or cannot be accessed.
fn mode_of(files: &Files, dir: &Path) -> Result<Option<u32>> {
    match files.open_dir(dir).and_then(|dir| dir.metadata()) {
        Ok(metadata) => Ok(Some(metadata.permissions().mode() & 0o7777)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Whatever needs the directory reports this.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error).at("open", dir),
    }
}

/// The directories of a store that only its owner may access.
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

/// Whether a directory has entries; false when it does not exist.
fn has_entries(files: &Files, dir: &Path) -> Result<bool> {
    match files.names(dir) {
        Ok(names) => Ok(!names.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("list", dir),
    }
}

/// The directories that hold lasting data. Each is evidence of whether another can have been empty.
fn lasting(layout: &Layout) -> [PathBuf; 4] {
    [layout.metadata(), layout.layers(), layout.objects().to_owned(), layout.envs()]
}

/// Makes missing directories again, if they held no lasting data.
///
/// An environment's record refers to layers, objects and its upper: if there are records, these directories
/// existed. If the records themselves are missing, anything in the other directories is evidence that there
/// were some.
fn complete(files: &Files, layout: &Layout, read_only: bool) -> Result<()> {
    let lasting = lasting(layout);
    let missing: Vec<&PathBuf> = lasting.iter().filter(|dir| is_missing(dir)).collect();
    let no_records = missing.contains(&&layout.metadata());
    for dir in &missing {
        let witnesses = if no_records { &lasting[1..] } else { &lasting[..1] };
        for witness in witnesses {
            if has_entries(files, witness)? {
                let reason = format!(
                    "{} is not empty, so data was lost. Restore the directory from a backup; without one, `mkdir {}` and then \
                     `karapace verify-store` shows what is left",
                    witness.display(),
                    dir.display()
                );
                return Err(StoreError::NotWhole { path: dir.to_path_buf(), reason });
            }
        }
    }
    let passing = [layout.staging(), layout.wal(), layout.pins(), layout.images()];
    for dir in lasting.iter().chain(&passing).filter(|dir| !read_only && is_missing(dir)) {
        tracing::warn!("{} was missing and was created again", dir.display());
        files.make_dirs(dir).at("create", dir)?;
    }
    Ok(())
}

/// False for a directory that cannot be accessed; whatever needs it reports that.
fn is_missing(dir: &Path) -> bool {
    dir.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Refuses a directory that has lasting data but no version file: a store that lost its version.
fn check_empty(files: &Files, layout: &Layout) -> Result<()> {
    let lasting = lasting(layout);
    for dir in &lasting {
        // Another process may have made and used the store since the version was checked.
        if has_entries(files, dir)? && !check_version(files, layout)? {
            let reason = format!(
                "{} is not empty, so this is an incomplete store. If its format is {FORMAT}, write {FORMAT} into that file; \
                 otherwise choose another directory (--store)",
                dir.display()
            );
            return Err(StoreError::NotWhole { path: layout.version(), reason });
        }
    }
    Ok(())
}

/// Makes the directories, then the version file: a store with a version file is complete.
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
        let mode = fs::metadata(store.objects().dir()).unwrap().permissions().mode();
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
            ("4\n", "the newer karapace"),
            ("2", "use the older karapace that wrote it"),
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
        // Whether the store had an environment, and the directories whose loss is then an error.
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
    fn a_store_that_must_exist_is_not_created() {
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
        // A store that lost its version file is reported as such.
        fs::remove_file(root.join("store/version")).unwrap();
        fs::create_dir(root.join("env/something")).unwrap();
        assert!(matches!(Store::open_existing(&root), Err(StoreError::NotWhole { .. })));
    }

    #[test]
    fn a_file_is_not_a_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = Store::open(file.path()).unwrap_err().to_string();
        assert!(error.contains("is not a directory"), "{error}");
    }
}
