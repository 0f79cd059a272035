//! Pinning a manifest's image to its present content.

use std::path::{Path, PathBuf};

use karapace_store::{atomic, input};

use super::build::BuildOptions;
use crate::description::locked::LockFile;
use crate::description::lockfile::LockError;
use crate::description::manifest::{MANIFEST_MAX, Manifest};
use crate::description::pin;
use crate::engine::At as _;
use crate::engine::{Engine, Report, Result};

/// The result of pinning.
pub struct PinOutcome {
    /// The image as the manifest names it now.
    pub image: String,
    /// Whether the manifest was changed.
    pub changed: bool,
    /// The lock file, if it was written.
    pub lock: Option<PathBuf>,
}

/// Whether the manifest at `path` pins its image, and the image as written there.
pub fn is_pinned(path: &Path) -> Result<(bool, String)> {
    let image = Manifest::read(path)?.base.image;
    Ok((pin::is_pinned(&image), image))
}

impl Engine {
    /// Rewrites `base.image` in the manifest at `path` so that it names the image's present content. Nothing
    /// else in the file changes. With `write_lock`, also updates the lock file.
    pub fn pin(
        &self,
        path: &Path,
        write_lock: bool,
        offline: bool,
        report: &dyn Report,
    ) -> Result<PinOutcome> {
        let options = BuildOptions { offline, ..BuildOptions::default() };
        let mut plan = self.plan(path, &options, report)?;
        let text = input::read_text(path, MANIFEST_MAX).at("read", path)?;
        let old = std::mem::take(&mut plan.manifest.base.image);
        // An earlier pin does not matter.
        pin::bare(&old).clone_into(&mut plan.manifest.base.image);
        let (base, origin, _shared) = self.base_of(&plan, offline, report)?;
        let image = match origin {
            Some(origin) => pin::downloaded(&origin.url, &origin.sha256),
            None => pin::local(&plan.manifest.base.image, &base.digest),
        };
        let new = Manifest::with_image(&text, path, &image)?;
        let manifest = Manifest::parse(&new, path)?;
        let lock = if write_lock {
            Some(self.pinned_lock(&manifest, &base.digest, plan.pinned.as_ref(), &plan.lock_path)?)
        } else {
            None
        };
        let changed = new != text;
        if changed {
            let path = std::path::absolute(path).at("resolve", path)?;
            atomic::write_user_file(&path, new.as_bytes())?;
        }
        if let Some(lock) = &lock {
            plan.write_lock(lock)?;
        }
        Ok(PinOutcome { image, changed, lock: lock.map(|_| plan.lock_path) })
    }

    /// The lock file for a manifest whose image has this content. Keeps the pinned packages.
    ///
    /// # Errors
    /// [`Error::Lock`] if there are packages and no old lock file, or one for other content.
    fn pinned_lock(
        &self,
        manifest: &Manifest,
        digest: &str,
        old: Option<&LockFile>,
        path: &Path,
    ) -> Result<LockFile> {
        let packages = match old {
            Some(old) if old.base_image_digest == digest => old.resolved_packages.clone(),
            _ if manifest.system.packages.is_empty() => Vec::new(),
            Some(old) => {
                let drift = format!(
                    "the content of the image is {digest}, but the lock file has {}",
                    old.base_image_digest
                );
                return Err(LockError::Drift { drift: vec![drift] }.into());
            }
            None => return Err(LockError::Absent { path: path.to_owned() }.into()),
        };
        let lock = LockFile::resolve(manifest, digest, packages);
        lock.verify_manifest_intent(manifest)?;
        Ok(lock)
    }
}
