//! Building an environment from a manifest.

use std::path::{Path, PathBuf};

use karapace_store::atomic;
use karapace_store::import::Mounts;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{Dependency, Metadata, check_name};

use super::create::{Base, Built};
use super::install::Packages;
use super::scratch::Scratch;
use crate::description::locked::{LockFile, LockedPackage};
use crate::description::lockfile::LockError;
use crate::description::manifest::Manifest;
use crate::description::pin;
use crate::engine::At as _;
use crate::engine::{Engine, Error, Report, Result};
use crate::image::{Image, Origin};
use crate::runtime;

/// Options of a build.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// Name of the environment. Without one, an existing environment with the same identity is returned
    /// whatever its name, and a new one is named by its short id.
    pub name: Option<String>,
    /// Build exactly what the lock file pins, or fail.
    pub locked: bool,
    /// Use the image that was downloaded before, without asking its server, and install nothing.
    pub offline: bool,
    /// Refuse an image whose content the manifest does not pin.
    pub require_pinned_image: bool,
    /// Install the newest versions of packages, even if the lock file pins others.
    pub update: bool,
}

/// The result of a build.
pub struct BuildOutcome {
    /// The environment.
    pub metadata: Metadata,
    /// Whether it was made now; false if it existed.
    pub created: bool,
    /// The lock file.
    pub lock_path: PathBuf,
}

/// A manifest and its lock file.
pub(super) struct Plan {
    path: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
    /// Path of the lock file.
    pub lock_path: PathBuf,
    /// The lock file's content, if there is one.
    pub pinned: Option<LockFile>,
    /// The environment that has the requested name, with its lock: the build must result in this one, or
    /// fail.
    holder: Option<(Box<Metadata>, LockFile)>,
}

/// What a manifest resolved to, in the store. Only the values held here keep it from being collected.
pub(super) struct Resolved {
    pub lock: LockFile,
    pub base: Base,
    pub dependency: Option<Dependency>,
    /// Keeps newly made layers.
    _scratch: Option<Scratch>,
    _shared: StoreLock,
}

impl Resolved {
    /// The parts of a new environment.
    pub fn built(&self) -> Built<'_> {
        Built { lock: &self.lock, base: &self.base, dependency: self.dependency }
    }
}

/// What to do once the base is known.
pub(super) enum Resolution {
    /// An environment with that identity exists, with this lock.
    Exists(Box<Metadata>, Box<LockFile>),
    /// The environment must be made.
    New(Box<Resolved>),
}

impl Engine {
    /// Builds the environment that the manifest at `path` describes, and writes its lock file beside it.
    /// Returns an existing environment if it is what would be built.
    ///
    /// # Errors
    /// [`Error::OtherBuild`] or [`Error::NameTaken`] if another environment has the name.
    pub fn build(&self, path: &Path, options: &BuildOptions, report: &dyn Report) -> Result<BuildOutcome> {
        let mut plan = self.plan(path, options, report)?;
        if let Some(name) = &options.name {
            plan.holder = self.holder(name, &plan)?;
        }
        let existing = |lock: &LockFile| self.existing(&lock.env_id, options.name.as_deref(), &plan);
        let resolved = match self.resolve(&plan, options, report, &existing)? {
            Resolution::New(resolved) => resolved,
            Resolution::Exists(metadata, lock) => {
                plan.write_lock(&lock)?;
                return Ok(BuildOutcome { metadata: *metadata, created: false, lock_path: plan.lock_path });
            }
        };
        let name = options.name.clone().unwrap_or_else(|| resolved.lock.short_id.clone());
        self.check_name_free(&name, None)?;
        // Write the lock file first: if that fails, nothing has been built.
        plan.write_lock(&resolved.lock)?;
        let metadata = self.create(&name, &plan.manifest, &resolved.built())?;
        Ok(BuildOutcome { metadata, created: true, lock_path: plan.lock_path })
    }

    /// Reads a manifest and its lock file, and checks everything that does not need the image.
    pub(super) fn plan(&self, path: &Path, options: &BuildOptions, report: &dyn Report) -> Result<Plan> {
        let manifest = Manifest::read(path)?;
        let caller = runtime::Caller {
            instance: "",
            manifest_dir: manifest.directory.as_deref(),
            variable: &|name| std::env::var_os(name),
        };
        let warnings = runtime::check_mounts(&manifest.mounts, &caller)
            .map_err(|e| Error::Invalid(format!("{}: {e}", path.display())))?;
        warnings.iter().for_each(|warning| report.note(warning));
        if options.require_pinned_image && !pin::is_pinned(&manifest.base.image) {
            return Err(Error::Unpinned { path: path.to_owned(), image: manifest.base.image });
        }
        let lock_path = path.with_extension("lock");
        let pinned = LockFile::read(&lock_path)?;
        if options.locked {
            let pinned = pinned.as_ref().ok_or_else(|| LockError::Absent { path: lock_path.clone() })?;
            pinned.verify_integrity()?;
            pinned.verify_manifest_intent(&manifest)?;
        }
        Ok(Plan { path: path.to_owned(), manifest, lock_path, pinned, holder: None })
    }

    /// Imports the base into the store and installs the packages on it. `existing` looks for an environment
    /// that is already what would be built.
    pub(super) fn resolve(
        &self,
        plan: &Plan,
        options: &BuildOptions,
        report: &dyn Report,
        existing: &dyn Fn(&LockFile) -> Result<Option<Metadata>>,
    ) -> Result<Resolution> {
        let (base, _, shared) = self.base_of(plan, options.offline, report)?;
        plan.compare_base(&base, options.locked, report)?;
        let manifest = &plan.manifest;
        let pins = if options.update { Vec::new() } else { plan.pins(&base) };
        let has_packages = !manifest.system.packages.is_empty() || !manifest.gui.apps.is_empty();
        let is_known = !has_packages || (!options.update && plan.pins_all(&base));
        let new = |lock, base, dependency, scratch, shared| {
            Resolution::New(Box::new(Resolved { lock, base, dependency, _scratch: scratch, _shared: shared }))
        };
        if is_known {
            let lock = LockFile::resolve(manifest, &base.digest, pins.clone());
            if let Some(metadata) = existing(&lock)? {
                return Ok(Resolution::Exists(Box::new(metadata), Box::new(lock)));
            }
            let found = if has_packages { self.find_dependency(&base, &lock)? } else { Some(None) };
            if let Some(dependency) = found {
                return Ok(new(lock, base, dependency, None, shared));
            }
        }
        if let Some((metadata, lock)) = plan.holder_for(&base, &pins)?
            && !options.update
        {
            return Ok(Resolution::Exists(metadata, Box::new(lock)));
        }
        if options.offline {
            let path = plan.path.clone();
            return Err(Error::OfflinePackages { path });
        }
        let packages = Packages { manifest, pins: &pins, locked: options.locked };
        let (installed, shared) = self.install(&base, &packages, shared, report)?;
        let lock = LockFile::resolve(manifest, &base.digest, installed.packages);
        if let Some(metadata) = existing(&lock)? {
            return Ok(Resolution::Exists(Box::new(metadata), Box::new(lock)));
        }
        Ok(new(lock, base, installed.dependency, Some(installed.scratch), shared))
    }

    /// Imports the base image of a manifest. Returns it with the address that it was downloaded from, if any,
    /// and the store's lock.
    pub(super) fn base_of(
        &self,
        plan: &Plan,
        offline: bool,
        report: &dyn Report,
    ) -> Result<(Base, Option<Origin>, StoreLock)> {
        let base_dir = plan.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (image, pinned) = pin::split(&plan.manifest.base.image);
        let fetched = Image::parse(image, base_dir)?;
        let fetched = fetched.fetch(&self.store().image_cache(), offline, report)?;
        let shared = StoreLock::shared(self.store())?;
        let base = self.import_base(&fetched.path, Mounts::LeaveOut, report)?;
        match pinned {
            Some(pinned) if pinned != base.digest => Err(Error::OtherContent {
                path: plan.path.clone(),
                image: image.to_owned(),
                pinned: pinned.to_owned(),
                found: base.digest,
            }),
            _ => Ok((base, fetched.origin, shared)),
        }
    }

    /// The environment with this name, and its lock.
    ///
    /// # Errors
    /// [`Error::OtherBuild`] if it cannot be what the manifest describes, whatever the image and the package
    /// versions are.
    fn holder(&self, name: &str, plan: &Plan) -> Result<Option<(Box<Metadata>, LockFile)>> {
        check_name(name)?;
        let mut all = Metadata::list(self.store())?.into_iter().flatten();
        let Some(metadata) = all.find(|env| env.name == name) else { return Ok(None) };
        let Ok(lock) = LockFile::parse(&metadata.lock, Path::new("recorded in the store")) else {
            return Err(plan.other_build(name));
        };
        let packages: Vec<&String> = lock.resolved_packages.iter().map(|package| &package.name).collect();
        let same = LockFile::resolve(&plan.manifest, &lock.base_image_digest, lock.resolved_packages.clone());
        if packages != plan.manifest.system.packages.iter().collect::<Vec<_>>()
            || same.env_id != metadata.env_id
        {
            return Err(plan.other_build(name));
        }
        Ok(Some((Box::new(metadata), lock)))
    }

    /// The environment with this identity: the one with the requested name, or the oldest if no name is
    /// given.
    fn existing(&self, env_id: &str, name: Option<&str>, plan: &Plan) -> Result<Option<Metadata>> {
        let mut same: Vec<Metadata> = Metadata::list(self.store())?
            .into_iter()
            .flatten()
            .filter(|m| m.env_id == env_id && name.is_none_or(|name| m.name == name))
            .collect();
        same.sort_by_key(|m| m.created_at);
        let found = same.into_iter().next();
        match name {
            Some(name) if found.is_none() && !Metadata::name_is_free(self.store(), name, None)? => {
                Err(plan.other_build(name))
            }
            _ => Ok(found),
        }
    }
}

impl Plan {
    /// The lock file's packages that the manifest still asks for. Empty if the lock file is damaged or for
    /// another base.
    fn pins(&self, base: &Base) -> Vec<LockedPackage> {
        let is_whole =
            |lock: &&LockFile| lock.base_image_digest == base.digest && lock.verify_integrity().is_ok();
        let Some(lock) = self.pinned.as_ref().filter(is_whole) else {
            return Vec::new();
        };
        let asked = |pin: &&LockedPackage| self.manifest.system.packages.contains(&pin.name);
        lock.resolved_packages.iter().filter(asked).cloned().collect()
    }

    /// The environment that has the requested name. Fails if it cannot be what is built on this base with
    /// these pins.
    fn holder_for(&self, base: &Base, pins: &[LockedPackage]) -> Result<Option<(Box<Metadata>, LockFile)>> {
        let Some((metadata, lock)) = &self.holder else { return Ok(None) };
        if lock.base_image_digest != base.digest
            || !pins.iter().all(|pin| lock.resolved_packages.contains(pin))
        {
            return Err(self.other_build(&metadata.name));
        }
        Ok(Some((metadata.clone(), lock.clone())))
    }

    fn other_build(&self, name: &str) -> Error {
        Error::OtherBuild { name: name.to_owned(), path: self.path.clone() }
    }

    /// Whether the lock file pins every package, so that no version has to be looked up.
    fn pins_all(&self, base: &Base) -> bool {
        let same_apps = self.pinned.as_ref().is_some_and(|lock| lock.resolved_apps == self.manifest.gui.apps);
        same_apps && self.pins(base).len() == self.manifest.system.packages.len()
    }

    /// Compares the base with the lock file's.
    fn compare_base(&self, base: &Base, locked: bool, report: &dyn Report) -> Result<()> {
        let Some(pinned) = self.pinned.as_ref().filter(|lock| lock.base_image_digest != base.digest) else {
            return Ok(());
        };
        let change = format!(
            "the content of {} is now {}, but the lock file has {}",
            self.manifest.base.image, base.digest, pinned.base_image_digest
        );
        if locked {
            return Err(LockError::Drift { drift: vec![change] }.into());
        }
        report.note(&format!("{change}; the lock file is updated"));
        Ok(())
    }

    /// Writes the lock file unless it is unchanged.
    pub(super) fn write_lock(&self, lock: &LockFile) -> Result<()> {
        if self.pinned.as_ref() == Some(lock) {
            return Ok(());
        }
        let path = std::path::absolute(&self.lock_path).at("resolve", &self.lock_path)?;
        Ok(atomic::write_user_file(&path, lock.to_toml().as_bytes())?)
    }
}
