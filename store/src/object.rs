//! Objects: immutable blobs, each in a file named by the blake3 hash of its bytes.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::error::{IoContext as _, Result, StoreError};
use crate::files::{Files, freed};
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

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
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
    pub fn promised(&self, id: &ObjectId) -> Option<u64> {
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

    /// Lists the directories that hold objects, and anything else beside them, sorted.
    ///
    /// # Errors
    /// When the objects' directory cannot be listed.
    pub(crate) fn shards(&self) -> Result<Vec<PathBuf>> {
        self.files.list(self.layout.objects())
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

/// Reads the whole of `file` and verifies that it is the object `id`. Fails with [`StoreError::Corrupt`] when
/// it is longer than `max` bytes or has another hash.
pub(crate) fn read_verified(mut file: File, path: PathBuf, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
    let length = file.metadata().at("stat", &path)?.len();
    if length > max {
        return Err(StoreError::corrupt(
            "object",
            id,
            format!("it has {length} bytes where {max} are the most"),
        ));
    }
    // One byte more than expected, so that end of file is reached without growing the buffer.
    let mut bytes = Vec::with_capacity(length as usize + 1);
    (&mut file).take(max + 1).read_to_end(&mut bytes).at("read", &path)?;
    if ObjectId::of(&bytes) != *id {
        return Err(StoreError::corrupt("object", id, "its bytes do not have this hash"));
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
