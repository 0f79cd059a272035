//! An environment from a manifest.

use std::path::{Path, PathBuf};

use karapace_store::atomic;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;

use super::create::check_name_early;
use super::{Engine, Error, Report, Result};
use crate::image::Image;
use crate::lockfile::{LockError, LockFile};
use crate::manifest::{Backend, Manifest};
use crate::runtime;

/// How to build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Name of the environment. Without one, an environment of the same identity is given back whatever its name, and a new one
    /// is named by its short id.
    pub name: Option<String>,
    /// Build what the lock file pins, or fail.
    pub locked: bool,
    /// Use the image that was downloaded before, unasked.
    pub offline: bool,
}

/// What a build gave.
pub struct BuildOutcome {
    /// The environment.
    pub metadata: Metadata,
    /// Whether it was made now; false when it existed.
    pub created: bool,
    /// The lock file.
    pub lock_path: PathBuf,
}

impl Engine {
    /// Builds the environment that the manifest at `path` describes, and writes its lock file beside it.
    pub fn build(&self, path: &Path, options: &BuildOptions, report: &dyn Report) -> Result<BuildOutcome> {
        let manifest = Manifest::read(path)?;
        check_supported(&manifest, path)?;
        runtime::check_places(&manifest.mounts)
            .map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?;
        for key in not_applied(&manifest) {
            report.note(&format!("{key} is recorded and not applied yet: that comes with a later version"));
        }
        let lock_path = path.with_extension("lock");
        let pinned = LockFile::read(&lock_path)?;
        if options.locked {
            let pinned = pinned.as_ref().ok_or_else(|| LockError::Absent { path: lock_path.clone() })?;
            pinned.verify_integrity()?;
            pinned.verify_manifest_intent(&manifest)?;
        }
        if let Some(name) = &options.name {
            karapace_store::metadata::check_name(name)?;
        }
        let base_dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let image = Image::parse(&manifest.base.image, base_dir)?;
        let image = image.fetch(&self.store().layout().images(), options.offline, report)?.path;
        let _shared = StoreLock::shared(self.store())?;
        let base = self.import_base(&image, report)?;
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        if let Some(pinned) = pinned.as_ref().filter(|p| p.base_image_digest != lock.base_image_digest) {
            let change = format!(
                "the content of {} is now {}, the lock has {}",
                lock.base_image, lock.base_image_digest, pinned.base_image_digest
            );
            if options.locked {
                return Err(LockError::Drift { drift: vec![change] }.into());
            }
            report.note(&format!("{change}; the lock file is written anew"));
        }
        let existing = self.existing(&lock.env_id, options.name.as_deref())?;
        let name = options.name.clone().unwrap_or_else(|| lock.short_id.clone());
        if existing.is_none() {
            check_name_early(self, &name)?;
        }
        // The lock file first: if it cannot be written, nothing was built.
        if pinned.as_ref() != Some(&lock) {
            let path = std::path::absolute(&lock_path).map_err(|e| Error::io("resolve", &lock_path, e))?;
            atomic::write_file(&path, lock.to_toml().as_bytes())?;
        }
        let (metadata, created) = match existing {
            Some(metadata) => (metadata, false),
            None => (self.create(&name, &manifest, &lock, &base)?, true),
        };
        Ok(BuildOutcome { metadata, created, lock_path })
    }

    /// The environment of this identity: the one of the wanted name, or without one the oldest.
    fn existing(&self, env_id: &str, name: Option<&str>) -> Result<Option<Metadata>> {
        let mut same: Vec<Metadata> = Metadata::list(self.store())?
            .into_iter()
            .flatten()
            .filter(|m| m.env_id == env_id && name.is_none_or(|name| m.name == name))
            .collect();
        same.sort_by_key(|m| m.created_at);
        Ok(same.into_iter().next())
    }
}

/// What would change the content of the environment and cannot be done yet is refused.
fn check_supported(manifest: &Manifest, path: &Path) -> Result<()> {
    let lists = [("system.packages", &manifest.system.packages), ("gui.apps", &manifest.gui.apps)];
    match lists.iter().find(|(_, list)| !list.is_empty()) {
        Some((key, list)) => {
            Err(Error::NotYet { path: path.to_owned(), what: format!("{key} ({})", list.join(", ")) })
        }
        None => Ok(()),
    }
}

/// What is part of the identity and is not applied yet when the environment is entered, by key.
fn not_applied(manifest: &Manifest) -> Vec<&'static str> {
    let limits = &manifest.runtime.resource_limits;
    let keys = [
        ("hardware.gpu", manifest.hardware.gpu),
        ("hardware.audio", manifest.hardware.audio),
        ("runtime.backend", manifest.runtime.backend != Backend::Namespace),
        ("runtime.resource_limits", limits.cpu_shares.is_some() || limits.memory_limit_mb.is_some()),
    ];
    keys.iter().filter(|(_, asked)| *asked).map(|(key, _)| *key).collect()
}
