//! Importing an environment from an image, without a manifest.

use std::path::Path;

use karapace_store::import::{Mounts, import_stream, import_upper};
use karapace_store::layer::LayerRecord;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::paths::Ignore;
use karapace_store::tree::Trees;

use super::clone::copy;
use super::create::{Base, Built, check_name_early, path_text};
use crate::description::locked::LockFile;
use crate::description::manifest::Manifest;
use crate::engine::instance::commit::record_snapshot;
use crate::engine::instance::{layering, reference};
use crate::engine::{Engine, Error, Report, Result};
use crate::image::{Image, Pipe};

/// The result of an import.
pub struct ImportOutcome {
    /// The environment.
    pub metadata: Metadata,
    /// Number of entries imported.
    pub entries: u64,
    /// Bytes of file content imported.
    pub bytes: u64,
}

impl Engine {
    /// Imports a root filesystem as the environment `name`. `image` is an archive, a directory, an image, the
    /// http address of an archive, a FIFO, or `-` for standard input. `mounts`: what to do with mounts below
    /// a directory.
    pub fn import(
        &self,
        image: &str,
        name: &str,
        offline: bool,
        mounts: Mounts,
        report: &dyn Report,
    ) -> Result<ImportOutcome> {
        check_name_early(self, name)?;
        let (base, image, _shared) = match Pipe::open(image)? {
            Some(_) if mounts == Mounts::TakeIn => return Err(no_directory(image)),
            Some(pipe) => {
                let shared = StoreLock::shared(self.store())?;
                let base = self.base_of_import(None, report, || {
                    import_stream(self.store(), pipe.reader(report), pipe.name(), report)
                })?;
                (base, image.to_owned(), shared)
            }
            None => self.import_named(image, offline, mounts, report)?,
        };
        let manifest = Manifest::for_image(&image);
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let metadata = self.create(name, &manifest, &Built { lock: &lock, base: &base, dependency: None })?;
        Ok(ImportOutcome { metadata, entries: base.entries, bytes: base.bytes })
    }

    /// Imports the image that a word of a command line names. Returns it with its absolute name, and the
    /// store's lock.
    pub(super) fn import_named(
        &self,
        image: &str,
        offline: bool,
        mounts: Mounts,
        report: &dyn Report,
    ) -> Result<(Base, String, StoreLock)> {
        // A word that names an existing file means that file, whatever else it could mean.
        let here = Path::new(image);
        let image = if here.exists() { path_text(here)? } else { image.to_owned() };
        let images = self.store().image_cache();
        let path = Image::parse(&image, Path::new(""))?.fetch(&images, offline, report)?.path;
        if mounts == Mounts::TakeIn && !path.is_dir() {
            return Err(no_directory(&image));
        }
        let shared = StoreLock::shared(self.store())?;
        Ok((self.import_base(&path, mounts, report)?, image, shared))
    }

    /// Imports the upper directory of an overlay whose lower directory was a snapshot of `env` (by default
    /// its head), as the environment `name`: what `env` was, with a snapshot of what the mounted overlay
    /// showed.
    pub fn import_upper(
        &self,
        upper: &Path,
        env: &Metadata,
        reference: Option<&str>,
        name: &str,
        mounts: Mounts,
        report: &dyn Report,
    ) -> Result<ImportOutcome> {
        check_name_early(self, name)?;
        let _shared = StoreLock::shared(self.store())?;
        // Read again under the lock: from here on nothing of it can be collected.
        let env = Metadata::load(self.store(), &env.instance)?;
        let onto = reference::resolve(&env, reference.unwrap_or("head"))?;
        let lower = LayerRecord::read(self.store(), &onto.record)?.tree;
        let trees = Trees::new(self.store().clone());
        let root = trees.root(&lower)?;
        report.heed_interruptions();
        report.begin("importing", None);
        let imported = import_upper(&trees, &root, upper, mounts, report);
        report.end();
        let imported = imported?;
        for warning in &imported.warnings {
            report.note(warning);
        }
        let mut made = copy(&env, &onto, name)?;
        let next_ino = trees.root(&imported.root)?.next_ino;
        let ends = (&lower, imported.root);
        if let Some(layer) = layering::between(&trees, ends, &Ignore::default(), next_ino)? {
            let message = format!("import of {}", upper.display());
            let parent = (&*env.env_id, onto.hash);
            let entry = record_snapshot(self.store(), parent, &layer, (None, Some(&message)))?;
            (made.head, made.head_record) = (entry.hash, entry.record);
            made.snapshots.push(entry);
        }
        let metadata = self.add_environment(made)?;
        let (entries, bytes) = (imported.stats.entries, imported.stats.bytes);
        Ok(ImportOutcome { metadata, entries, bytes })
    }
}

fn no_directory(image: &str) -> Error {
    Error::Invalid(format!(
        "{image} is not a directory, so nothing is mounted below it: leave out --cross-mounts"
    ))
}
