//! Opening and creating a store.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
}

impl Store {
    /// Opens the store at `root`; creates it (directories 0700) where there is none.
    ///
    /// Fails with [`StoreError::Version`] when it has another format, and with [`StoreError::Invalid`] when
    /// `root` holds a `store` directory with objects but no version.
    pub fn open(root: &Path) -> Result<Arc<Store>> {
        // Absolute, so that a later change of the working directory (a daemon's chdir to /) is harmless.
        let root = std::path::absolute(root).at("resolve", root)?;
        let layout = Layout::new(&root);
        if !check_version(&layout)? {
            create(&layout)?;
        }
        Ok(Arc::new(Store { objects: Objects::new(layout), waits: AtomicBool::new(true) }))
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

/// Makes the directories, then the version file: what has a version is whole.
fn create(layout: &Layout) -> Result<()> {
    let objects = layout.objects();
    if fs::read_dir(objects).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(StoreError::invalid(format!(
            "{} holds objects but {} is missing: this is not a whole store; restore that file or choose another directory (--store)",
            objects.display(),
            layout.version().display()
        )));
    }
    for dir in [
        layout.store_dir().to_owned(),
        objects.to_owned(),
        layout.layers(),
        layout.metadata(),
        layout.staging(),
        layout.wal(),
        layout.pins(),
        layout.envs(),
        layout.images(),
    ] {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).at("create", &dir)?;
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
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Invalid(_))));
    }
}
