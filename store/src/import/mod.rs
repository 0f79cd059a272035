//! Imports a root filesystem into the store: from a tar archive, a directory, or an image of layers.
//!
//! The result is a tree whose inode numbers follow the path order, so the same content gives the same tree
//! whatever its order in an archive. What is imported is untrusted: nothing is ever written outside the
//! store, and no symbolic link is followed outside the tree. File contents stream into one batch of objects
//! with one durability barrier at its end; only metadata is held in memory, at most 2 GiB of it.
//!
//! The kind of a source is detected from its content: a directory (`directory`, `host`, `mounts`,
//! `overlay`), an archive (`archive`; `stream` if it comes from a pipe), or an image (`image`).
//! `blob` is one file of an image, `blobs` finds its files, and `oci`, `copied` and `legacy` read its
//! documents. All of them fill a `builder`, which checks each name, lays layers over one another and writes
//! the tree. `compress` decompresses. [`upper`] reads an overlay's upper for those who apply it to a view.

mod archive;
mod blob;
mod blobs;
mod builder;
mod compress;
mod copied;
mod directory;
#[doc(hidden)]
pub mod fuzzing;
mod host;
mod image;
mod legacy;
mod mounts;
mod oci;
mod overlay;
mod sha;
mod stream;
#[cfg(test)]
mod tests;
mod told;
pub mod upper;
mod warnings;

use std::path::Path;
use std::sync::Arc;

pub use self::mounts::Mounts;

use self::builder::{Builder, MAX_METADATA};
use self::directory::Role;
use self::warnings::Warnings;
use crate::batch::Batch;
use crate::error::{IoContext, Result, StoreError};
use crate::id::ObjectId;
use crate::input;
use crate::open::Store;
use crate::progress::Progress;
use crate::root::Root;
use crate::tree::Trees;

pub use self::stream::import_stream;

/// A root filesystem has at least one of these at its top.
const ROOT_NAMES: [&str; 3] = ["bin", "etc", "usr"];

/// How many names at the top a warning lists.
const MAX_TOLD: usize = 5;

/// What an import added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportStats {
    /// Names imported, not counting the root.
    pub entries: u64,
    /// Bytes of file content read, not counting holes and further names of a file.
    pub bytes: u64,
    /// Objects that the store did not have before.
    pub objects_new: u64,
}

/// A finished import, durable in the store. Nothing refers to `root` yet.
#[derive(Debug)]
pub struct Imported {
    /// The root object of the tree.
    pub root: ObjectId,
    /// Counts of what was imported.
    pub stats: ImportStats,
    /// What could not be kept; shown to the user.
    pub warnings: Vec<String>,
}

/// Imports a root filesystem; its form is detected from its content: a tar archive (plain, gzip, xz or zstd),
/// a directory, an OCI image layout (a directory, or a tar archive of one), an archive from `docker save`, or
/// a directory from `skopeo copy` to `dir:`. All layers of an image become one tree. Mounts below a directory
/// are left out.
///
/// The caller must hold [`crate::lock::StoreLock::shared`] from before this call until something durable
/// refers to the root: otherwise a collection could delete it.
///
/// # Errors
/// [`crate::StoreError::Invalid`] for a broken, truncated or hostile source, naming the entry or the blob;
/// [`crate::StoreError::Io`] when something cannot be read, naming the path; [`crate::StoreError::Cancelled`]
/// when `progress` says so. The store is then as it was before.
pub fn import_path(store: &Arc<Store>, path: &Path, progress: &dyn Progress) -> Result<Imported> {
    import_mounted(store, path, Mounts::LeaveOut, progress)
}

/// Like [`import_path`]; `mounts` says what to do with mounts below a directory.
///
/// # Errors
/// Those of [`import_path`].
pub fn import_mounted(
    store: &Arc<Store>,
    path: &Path,
    mounts: Mounts,
    progress: &dyn Progress,
) -> Result<Imported> {
    let file = input::open(path).at("import", path)?;
    Intake::of(store, progress, |intake| {
        if !file.metadata().at("read", path)?.is_dir() {
            return image::in_archive(intake, &Arc::new(file), &path.display().to_string());
        }
        match image::in_directory(intake, &file, path)? {
            Some(builder) => Ok(builder),
            None => {
                let builder = directory::import(intake, path, file.into(), Role::Whole, mounts)?;
                intake.doubt(&builder, &path.display().to_string());
                Ok(builder)
            }
        }
    })
}

/// Imports the upper directory of an overlay, as overlayfs or fuse-overlayfs wrote it, over the tree that was
/// its lower. The result is what the mounted overlay showed. Unchanged inodes of `lower` keep their numbers
/// and objects.
///
/// # Errors
/// Those of [`import_path`]; also when the upper refers to something that `lower` does not have (a renamed
/// directory, the data of a file of which only the metadata was copied up), naming the path.
pub fn import_upper(
    trees: &Trees,
    lower: &Root,
    path: &Path,
    mounts: Mounts,
    progress: &dyn Progress,
) -> Result<Imported> {
    let file = input::open(path).at("import", path)?;
    if !file.metadata().at("read", path)?.is_dir() {
        let path = path.display();
        return Err(StoreError::Invalid(format!(
            "cannot import {path}: an overlay's upper must be a directory"
        )));
    }
    Intake::of(trees.store(), progress, |intake| {
        let mut tree = Builder::from_tree(trees, lower, MAX_METADATA)?;
        let upper = directory::import(intake, path, file.into(), Role::Upper, mounts)?;
        tree.cover(upper)?;
        Ok(tree)
    })
}

/// An import in progress.
struct Intake<'a> {
    store: &'a Arc<Store>,
    batch: Batch,
    warnings: Warnings,
    progress: &'a dyn Progress,
    /// Bytes of file content.
    bytes: u64,
}

impl<'a> Intake<'a> {
    /// Imports the tree that `take_in` builds.
    fn of(
        store: &'a Arc<Store>,
        progress: &'a dyn Progress,
        take_in: impl FnOnce(&mut Intake<'a>) -> Result<Builder>,
    ) -> Result<Imported> {
        let warnings = Warnings::default();
        let mut intake = Intake { store, batch: Batch::new(store)?, warnings, progress, bytes: 0 };
        let taken = take_in(&mut intake);
        // Code that was cancelled halfway may have reported that as a fault of the source.
        if progress.is_cancelled() {
            return Err(StoreError::Cancelled);
        }
        intake.finish(taken?)
    }

    /// Warns if what was imported hardly looks like a root filesystem: a part of an image, or a directory
    /// above the root filesystem.
    fn doubt(&mut self, builder: &Builder, source: &str) {
        let top = builder.names_below(&[]);
        let is_root = |names: &[String]| names.iter().any(|name| ROOT_NAMES.contains(&name.as_str()));
        if is_root(&top) {
            return;
        }
        let inside = top.iter().find(|name| is_root(&builder.names_below(&[name])));
        let advice = match inside {
            Some(inside) => format!("{inside}/ in it looks like one: import only that"),
            None => {
                "if it is an image, give the complete image (docker save, skopeo copy … oci:DIR)".to_owned()
            }
        };
        let mut told =
            top.iter().take(MAX_TOLD).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        match top.len().saturating_sub(MAX_TOLD) {
            0 if top.is_empty() => told.push_str("nothing"),
            0 => {}
            more => told.push_str(&format!(" and {more} more")),
        }
        self.warnings.push(format!(
            "{source} was imported as a root filesystem, but has no bin, etc or usr at its top, only {told}; {advice}"
        ));
    }

    /// Writes the tree and makes everything durable.
    fn finish(mut self, builder: Builder) -> Result<Imported> {
        let (root, entries) = builder.write(&mut self.batch)?;
        let written = self.batch.commit()?;
        let stats = ImportStats { entries, bytes: self.bytes, objects_new: written.objects };
        Ok(Imported { root, stats, warnings: self.warnings.into_vec() })
    }
}
