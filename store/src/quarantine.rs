//! `quarantine/`: damaged files, set aside so that the same content can be stored again. Nothing refers to
//! them, but the sound parts of a quarantined object can still be read. No command deletes them.

use std::path::{Path, PathBuf};

use crate::error::{IoContext as _, Result};
use crate::inode::Timestamp;
use crate::object;
use crate::open::Store;
use crate::rfc3339;

/// The kind of a quarantined file, which determines its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Objects: contents, block lists, trees, roots.
    Objects,
    /// Layer records.
    Layers,
    /// Environment records.
    Environments,
    /// Checkpoints and journals.
    Uppers,
    /// Pins.
    Pins,
    /// Intents.
    Wal,
}

impl Kind {
    const fn dir(self) -> &'static str {
        match self {
            Self::Objects => object::SET_ASIDE,
            Self::Layers => "layers",
            Self::Environments => "environments",
            Self::Uppers => "uppers",
            Self::Pins => "pins",
            Self::Wal => "wal",
        }
    }
}

/// Moves a file to `quarantine/<date>/<kind>/<name>`, durably; returns its new path.
pub fn set_aside(store: &Store, kind: Kind, file: &Path, name: &str) -> Result<PathBuf> {
    let (to, files) = (place(store, kind, name)?, store.files());
    files.rename(file, &to).at("rename", file)?;
    let moved = files.open_object(&to).at("open", &to)?;
    to.parent().map_or(Ok(()), |dir| files.sync_name(dir, &moved)).at("sync", &to)?;
    file.parent().map_or(Ok(()), |dir| files.sync_dir(dir))?;
    Ok(to)
}

/// Copies a file to the quarantine instead, for one that is mended in place; returns the copy's path.
pub fn keep_copy(store: &Store, kind: Kind, file: &Path, name: &str) -> Result<PathBuf> {
    let to = place(store, kind, name)?;
    let bytes = store.files().read(file, u64::MAX).at("read", file)?;
    store.files().write(&to, &bytes)?;
    Ok(to)
}

/// The number of quarantined files.
pub(crate) fn count(store: &Store) -> Result<u64> {
    let top = store.layout().quarantine();
    let mut todo = if top.symlink_metadata().is_ok() { vec![top] } else { Vec::new() };
    let mut files = 0;
    while let Some(dir) = todo.pop() {
        for path in store.files().list(&dir)? {
            let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            if is_dir { todo.push(path) } else { files += 1 }
        }
    }
    Ok(files)
}

/// A free path for a quarantined file; makes its directory.
fn place(store: &Store, kind: Kind, name: &str) -> Result<PathBuf> {
    let date: String = rfc3339::format(Timestamp::now()).chars().take(10).collect();
    let dir = store.layout().quarantine().join(date).join(kind.dir());
    store.files().make_dirs(&dir).at("create", &dir)?;
    for made in dir.ancestors().skip(1).take(3) {
        store.files().sync_dir(made)?;
    }
    let free = |path: &PathBuf| path.symlink_metadata().is_err();
    let numbered = (1..).map(|n: u64| dir.join(format!("{name}.{n}")));
    Ok(std::iter::once(dir.join(name)).chain(numbered).find(free).unwrap_or_else(|| dir.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ObjectId;
    use std::fs;
    use std::io::Read as _;

    #[test]
    fn quarantined_files_are_kept_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let layout = store.layout();
        let id = ObjectId::of(b"name");
        let mut places = Vec::new();
        for bytes in [&b"one"[..], b"two"] {
            let path = layout.object(&id);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            places.push(set_aside(&store, Kind::Objects, &path, &id.to_hex()).unwrap());
            assert!(!path.exists());
        }
        assert_ne!(places[0], places[1]);
        let copied = keep_copy(&store, Kind::Uppers, &places[1], "journal").unwrap();
        assert!(copied.starts_with(layout.quarantine()) && places[1].exists());
        assert_eq!(count(&store).unwrap(), 3);
        let mut text = String::new();
        store.objects().open(&id).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one");
        assert!(!store.objects().contains(&id));
        assert!(store.objects().open(&ObjectId::of(b"other")).unwrap_err().is_missing());
    }
}
