//! Bringing a root filesystem into the store: from a tar archive or from a directory.
//!
//! The result is a tree whose inode numbers follow the path order, so the same content gives the same tree whatever
//! order an archive has it in. Nothing is ever written outside the store, and no symbolic link is followed: the archive or directory
//! is untrusted. File bodies stream into one batch of objects with one durability barrier at its end; only metadata is held in memory.

mod archive;
mod builder;
mod compress;
mod directory;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::error::{IoContext, Result};
use crate::id::ObjectId;
use crate::object::Batch;
use crate::open::Store;

/// The most warnings that are kept word by word.
const MAX_WARNINGS: usize = 100;

/// Is told how an operation comes along, from whatever thread does the work.
pub trait Progress: Sync {
    /// `bytes` more of the source were read (of an archive: as it is stored, compressed) and `entries` more were taken in.
    fn add(&self, bytes: u64, entries: u64);
}

/// For callers that show no progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn add(&self, _bytes: u64, _entries: u64) {}
}

/// What an import took in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportStats {
    /// Names taken in, the root not among them.
    pub entries: u64,
    /// Bytes of file content read, holes and further names of a file not counted.
    pub bytes: u64,
    /// Objects that the store did not have before.
    pub objects_new: u64,
}

/// An import that is durable in the store. Nothing refers to `root` yet.
#[derive(Debug)]
pub struct Imported {
    /// The root object of the tree.
    pub root: ObjectId,
    /// What was taken in.
    pub stats: ImportStats,
    /// What could not be kept, for the user.
    pub warnings: Vec<String>,
}

/// Imports a tar archive (plain, gzip, xz or zstd, told apart by content) or a directory.
///
/// The caller holds [`crate::lock::StoreLock::shared`] from before this call until something durable refers to the root: a
/// collection in between would take it.
///
/// # Errors
/// [`crate::StoreError::Invalid`] for an archive that is broken, truncated or hostile, naming the entry;
/// [`crate::StoreError::Io`] for what cannot be read, naming the path. The store is as it was before.
pub fn import_path(store: &Arc<Store>, path: &Path, progress: &dyn Progress) -> Result<Imported> {
    let file = File::open(path).at("open", path)?;
    if file.metadata().at("read", path)?.is_dir() {
        return directory::import(store, path, file.into(), progress);
    }
    archive::import(store, file, &path.display().to_string(), progress)
}

/// Imports an archive from a stream, such as a download. Otherwise like [`import_path`].
///
/// # Errors
/// As [`import_path`].
pub fn import_reader(
    store: &Arc<Store>,
    reader: impl Read + Send,
    progress: &dyn Progress,
) -> Result<Imported> {
    archive::import(store, reader, "the stream", progress)
}

/// Collects warnings; beyond a number they are only counted.
#[derive(Default)]
struct Warnings {
    kept: Vec<String>,
    more: u64,
}

impl Warnings {
    fn push(&mut self, warning: String) {
        if self.kept.len() < MAX_WARNINGS {
            self.kept.push(warning);
        } else {
            self.more += 1;
        }
    }

    fn into_vec(mut self) -> Vec<String> {
        if self.more > 0 {
            self.kept.push(format!("and {} more of that kind", self.more));
        }
        self.kept
    }
}

/// Writes the tree and makes everything durable.
fn finish(builder: builder::Builder, mut batch: Batch, bytes: u64, warnings: Warnings) -> Result<Imported> {
    let (root, entries) = builder.write(&mut batch)?;
    let written = batch.commit()?;
    let stats = ImportStats { entries, bytes, objects_new: written.objects };
    Ok(Imported { root, stats, warnings: warnings.into_vec() })
}
