//! Objects: immutable blobs, each in a file named by the blake3 hash of its bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{IoContext as _, Result, StoreError};
use crate::files::{self, Files, freed};
use crate::id::ObjectId;
use crate::layout::Layout;
use crate::supply::Supply;

/// The directory below `quarantine/<date>/` that holds the objects set aside.
pub(crate) const SET_ASIDE: &str = "objects";

/// The published objects of a store, and those that its [`Supply`] can provide.
#[derive(Clone, Debug)]
pub struct Objects {
    layout: Layout,
    files: Files,
    supply: Arc<OnceLock<Arc<dyn Supply>>>,
}

impl Objects {
    pub(crate) fn new(layout: Layout, files: Files) -> Self {
        Self { layout, files, supply: Arc::default() }
    }

    /// Reads the whole object and verifies it against its name.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when it is absent, [`StoreError::Corrupt`] when it is longer than `max` bytes
    /// or its hash is not `id`.
    pub fn read(&self, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
        let path = self.layout.object(id);
        read_verified(self.open(id)?, path, id, max)
    }

    /// Sets the supply that is asked for absent objects. Only the first call has an effect.
    pub fn supply_from(&self, supply: Arc<dyn Supply>) {
        self.supply.get_or_init(|| supply);
    }

    /// The size in bytes of an absent object that the supply promises ([`Supply::promised`]).
    pub(crate) fn promised(&self, id: &ObjectId) -> Option<u64> {
        self.supply.get().and_then(|supply| supply.promised(id))
    }

    /// Whether the object is absent here but promised.
    pub(crate) fn is_elsewhere(&self, id: &ObjectId) -> bool {
        self.promised(id).is_some() && !self.contains(id)
    }

    /// Opens the object for reading, without verifying its bytes. An absent object is asked of the supply. If
    /// the supply has none either, but the object was quarantined as damaged, the quarantined file is opened,
    /// so that verification can still read its sound parts.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when the object is in none of these places; also any error of the supply.
    pub fn open(&self, id: &ObjectId) -> Result<File> {
        let path = self.layout.object(id);
        match self.files.open_object(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.at("open", &path),
        }
        if let Some(file) = self.supply.get().map_or(Ok(None), |supply| supply.open(id))? {
            return Ok(file);
        }
        self.set_aside(id)?.ok_or_else(|| StoreError::missing("object", id))
    }

    /// Opens a quarantined object; the latest copy, if it was set aside several times.
    fn set_aside(&self, id: &ObjectId) -> Result<Option<File>> {
        let top = self.layout.quarantine();
        if top.symlink_metadata().is_err() {
            return Ok(None);
        }
        for date in self.files.list(&top)?.into_iter().rev() {
            let path = date.join(SET_ASIDE).join(id.to_hex());
            match self.files.open_object(&path) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                other => return other.at("open", &path).map(Some),
            }
        }
        Ok(None)
    }

    /// Walks the objects that are here, one directory at a time: whatever looks at every object begins with
    /// this. Promised objects are not among them.
    ///
    /// # Errors
    /// When the objects' directory cannot be listed; each item fails when its directory cannot be.
    pub(crate) fn shards(&self) -> Result<Shards<'_>> {
        let is_dir = |path: &PathBuf| path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let (dirs, strays) = self.files.list_if_there(self.dir())?.into_iter().partition::<Vec<_>, _>(is_dir);
        Ok(Shards { files: &self.files, dirs: dirs.into_iter(), strays })
    }

    /// The directory that holds all objects.
    pub(crate) fn dir(&self) -> &Path {
        self.layout.objects()
    }

    /// The directory of the objects whose id begins with this byte.
    pub(crate) fn shard(&self, byte: u8) -> PathBuf {
        self.layout.shard(byte)
    }

    /// The file of an object, present or not: to publish it, to repair it, or to name it in a message.
    pub(crate) fn path(&self, id: &ObjectId) -> PathBuf {
        self.layout.object(id)
    }

    /// The disk space in bytes that removing the object frees; 0 if it is absent or has another hard link.
    pub fn on_disk(&self, id: &ObjectId) -> Result<u64> {
        let path = self.layout.object(id);
        match path.symlink_metadata() {
            Ok(metadata) => Ok(freed(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).at("read", &path),
        }
    }

    /// Whether the object is present. A file system error counts as absent; the next operation reports it.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.layout.object(id).symlink_metadata().is_ok()
    }

    /// Whether the object is present. If it is, sets its change time to now, so that a collection that has
    /// already begun does not remove it. Must be called, with the store's lock held, for every object that is
    /// found instead of written.
    ///
    /// # Errors
    /// When the object is present and its times cannot be set, because it belongs to another user.
    pub fn refresh(&self, id: &ObjectId) -> Result<bool> {
        self.files.refresh(&self.layout.object(id))
    }

    /// The object's length in bytes, also for a promised object.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when the object is neither present nor promised.
    pub fn size(&self, id: &ObjectId) -> Result<u64> {
        let path = self.layout.object(id);
        match path.symlink_metadata() {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.promised(id).ok_or_else(|| StoreError::missing("object", id))
            }
            Err(error) => Err(error).at("stat", &path),
        }
    }
}

/// The directories of objects, and what they hold.
pub(crate) struct Shards<'a> {
    files: &'a Files,
    dirs: std::vec::IntoIter<PathBuf>,
    /// Anything beside the directories.
    pub strays: Vec<PathBuf>,
}

/// One directory of objects, as it was when it was listed.
pub(crate) struct Shard {
    pub dir: PathBuf,
    /// The objects with their files, sorted by id.
    pub objects: Vec<(ObjectId, PathBuf)>,
    /// Anything else in it.
    pub strays: Vec<PathBuf>,
}

impl Iterator for Shards<'_> {
    type Item = Result<Shard>;

    fn next(&mut self) -> Option<Self::Item> {
        let dir = self.dirs.next()?;
        Some(self.files.list_if_there(&dir).map(|paths| {
            let (mut objects, mut strays) = (Vec::with_capacity(paths.len()), Vec::new());
            for path in paths {
                match object_id(&path) {
                    Some(id) => objects.push((id, path)),
                    None => strays.push(path),
                }
            }
            Shard { dir, objects, strays }
        }))
    }
}

/// The object id that a path in the objects' directory stands for: its directory's name followed by its own.
fn object_id(path: &Path) -> Option<ObjectId> {
    let (prefix, rest) = (files::name(path.parent()?)?, files::name(path)?);
    (prefix.len() == 2).then(|| format!("{prefix}{rest}").parse().ok()).flatten()
}

/// Reads the whole of `file` and verifies that it is the object `id`. Fails with [`StoreError::Corrupt`] when
/// it is longer than `max` bytes or has another hash.
pub(crate) fn read_verified(mut file: File, path: PathBuf, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
    let length = file.metadata().at("stat", &path)?.len();
    if length > max {
        return Err(StoreError::corrupt(
            "object",
            id,
            format!("it has {length} bytes, more than the limit of {max}"),
        ));
    }
    // One byte more than expected, so that end of file is reached without growing the buffer.
    let mut bytes = Vec::with_capacity(length as usize + 1);
    (&mut file).take(max + 1).read_to_end(&mut bytes).at("read", &path)?;
    if ObjectId::of(&bytes) != *id {
        return Err(StoreError::corrupt("object", id, "its bytes do not match its name"));
    }
    Ok(bytes)
}

/// Reads at `offset` until `buf` is full or the file ends; returns the number of bytes read.
pub(crate) fn read_full_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let wanted = buf.len();
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => break,
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wanted - buf.len())
}
