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

/// Below `quarantine/<date>/`, the directory of objects that were set aside.
pub(crate) const SET_ASIDE: &str = "objects";

/// The published objects of a store, and those that somebody else has for it.
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

    /// The whole object, verified against its name. Fails with [`StoreError::Missing`] when absent and with
    /// [`StoreError::Corrupt`] when it is longer than `max` bytes or not what its name says.
    pub fn read(&self, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
        let path = self.layout.object(id);
        read_verified(self.open(id)?, path, id, max)
    }

    /// From now on `supply` is asked for what is not there. The first one counts.
    pub fn supply_from(&self, supply: Arc<dyn Supply>) {
        self.supply.get_or_init(|| supply);
    }

    /// The size in bytes of an object that is not there and was promised ([`Supply::promised`]).
    pub fn promised(&self, id: &ObjectId) -> Option<u64> {
        self.supply.get().and_then(|supply| supply.promised(id))
    }

    /// Whether the object is not there, and was promised.
    pub(crate) fn is_elsewhere(&self, id: &ObjectId) -> bool {
        self.promised(id).is_some() && !self.contains(id)
    }

    /// Opens the object for reading; its bytes are not verified. One that is not there comes from the supply.
    /// One that was set aside for its damage, and that nobody else has, is opened where it is now: what of it
    /// is sound can still be read by who verifies.
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

    /// An object in the quarantine, open; the latest where it was set aside several times.
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

    /// The directories that hold objects, and whatever else lies beside them.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(crate) fn shards(&self) -> Result<Vec<PathBuf>> {
        self.files.list(self.layout.objects())
    }

    /// The space that the removal of the object would free, in bytes; none where it is not there.
    pub fn on_disk(&self, id: &ObjectId) -> Result<u64> {
        let path = self.layout.object(id);
        match path.symlink_metadata() {
            Ok(metadata) => Ok(freed(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).at("read", &path),
        }
    }

    /// Whether the object is there. An error of the file system counts as absent: whatever is done next meets
    /// it.
    pub fn contains(&self, id: &ObjectId) -> bool {
        self.layout.object(id).symlink_metadata().is_ok()
    }

    /// Whether the object is there; if so its change time is now, which keeps a collection that has begun
    /// from taking it. To be called, with the store's lock held, for every object that is found instead of
    /// written.
    ///
    /// # Errors
    /// When it is there and its times cannot be set: it belongs to another user.
    pub fn refresh(&self, id: &ObjectId) -> Result<bool> {
        self.files.refresh(&self.layout.object(id))
    }

    /// The object's length in bytes, also of one that is promised.
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

/// Reads `file` whole and checks that it is the object `id`.
pub(crate) fn read_verified(mut file: File, path: PathBuf, id: &ObjectId, max: u64) -> Result<Vec<u8>> {
    let length = file.metadata().at("stat", &path)?.len();
    if length > max {
        return Err(StoreError::corrupt(
            "object",
            id,
            format!("it has {length} bytes where {max} are the most"),
        ));
    }
    // One more than expected, so that the end is met without growing.
    let mut bytes = Vec::with_capacity(length as usize + 1);
    (&mut file).take(max + 1).read_to_end(&mut bytes).at("read", &path)?;
    if ObjectId::of(&bytes) != *id {
        return Err(StoreError::corrupt("object", id, "its bytes do not have this hash"));
    }
    Ok(bytes)
}

/// Reads at `offset` until `buf` is full or the file ends; returns how much.
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
