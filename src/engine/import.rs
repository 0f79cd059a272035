//! An environment from an image, with no manifest.

use std::path::Path;

use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;

use super::create::{check_name_early, path_text};
use super::{Engine, Report, Result};
use crate::image::Image;
use crate::lockfile::LockFile;
use crate::manifest::Manifest;

/// What an import made.
pub struct ImportOutcome {
    /// The environment.
    pub metadata: Metadata,
    /// Names taken in.
    pub entries: u64,
    /// Bytes of file content taken in.
    pub bytes: u64,
}

impl Engine {
    /// Imports a root filesystem (archive, directory, or the http address of an archive) as the environment `name`.
    pub fn import(
        &self,
        image: &str,
        name: &str,
        offline: bool,
        report: &dyn Report,
    ) -> Result<ImportOutcome> {
        check_name_early(self, name)?;
        // On a command line a word that is there as a file is a file, whatever else it might name.
        let here = Path::new(image);
        let image = if here.exists() { path_text(here)? } else { image.to_owned() };
        let path =
            Image::parse(&image, Path::new(""))?.fetch(&self.store().layout().images(), offline, report)?;
        let _shared = StoreLock::shared(self.store())?;
        let base = self.import_base(&path, report)?;
        let manifest = Manifest::for_image(&image);
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let metadata = self.create(name, &manifest, &lock, &base)?;
        Ok(ImportOutcome { metadata, entries: base.entries, bytes: base.bytes })
    }
}
