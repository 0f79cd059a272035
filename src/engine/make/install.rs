//! Installing packages: runs the package manager in a scratch environment ([`session`]), and makes a layer
//! of the result.

mod session;

use std::path::Path;

use karapace_store::inode::Timestamp;
use karapace_store::layer::{LayerKind, LayerRecord};
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{Dependency, Metadata};
use karapace_store::paths::Ignore;
use karapace_store::tree::{StoredTree, Trees};
use nix::unistd::geteuid;

use self::session::Session;
use super::create::Base;
use super::log::BuildLog;
use super::scratch::Scratch;
use crate::description::locked::{LockFile, LockedPackage};
use crate::description::manifest::Manifest;
use crate::description::packages::Manager;
use crate::engine::instance::stored::{content, follow, read_up_to};
use crate::engine::{Engine, Error, Report, Result};
use crate::runtime::ranges;

/// Files that name the distribution; the first that exists is used.
const OS_RELEASES: [&[u8]; 2] = [b"/etc/os-release", b"/usr/lib/os-release"];

/// Largest os-release that is read, in bytes.
const MAX_OS_RELEASE: u64 = 64 << 10;

/// Packages to install.
pub(super) struct Packages<'a> {
    /// The manifest that asks for them.
    pub manifest: &'a Manifest,
    /// The versions that the lock file pins.
    pub pins: &'a [LockedPackage],
    /// Install the pinned versions or fail.
    pub locked: bool,
}

/// The result of an installation.
pub(super) struct Installed {
    /// The packages of `[system]` with their exact versions.
    pub packages: Vec<LockedPackage>,
    /// Their layer; `None` if the base had them all.
    pub dependency: Option<Dependency>,
    /// Keeps the layer until an environment refers to it.
    pub scratch: Scratch,
}

impl Engine {
    /// The layer of the packages that `lock` pins on its base, if an environment has one. `Some(None)`: the
    /// base has them all.
    pub(super) fn find_dependency(&self, base: &Base, lock: &LockFile) -> Result<Option<Option<Dependency>>> {
        let wanted = (&lock.resolved_packages, &lock.resolved_apps);
        for env in Metadata::list(self.store())?.into_iter().flatten().filter(|e| e.base_layer == base.hash) {
            let Ok(other) = LockFile::parse(&env.lock, Path::new("recorded in the store")) else { continue };
            let is_whole = env.dependency.is_none_or(|d| LayerRecord::read(self.store(), &d.record).is_ok());
            if other.env_id == env.env_id
                && (&other.resolved_packages, &other.resolved_apps) == wanted
                && is_whole
            {
                return Ok(Some(env.dependency));
            }
        }
        Ok(None)
    }

    /// Installs packages on `base`. `shared` is the store's lock; it is released meanwhile, because other
    /// commands may need it, and taken again for the result.
    pub(super) fn install(
        &self,
        base: &Base,
        packages: &Packages<'_>,
        shared: StoreLock,
        report: &dyn Report,
    ) -> Result<(Installed, StoreLock)> {
        let manager = self.detect_manager(base, &packages.manifest.base.image)?;
        check_ids()?;
        let mut log = BuildLog::begin(self.store().files(), &self.store().build_logs(), report)?;
        report.begin("installing", None);
        let done = self.install_logged(base, manager, packages, shared, &mut log);
        report.end();
        match done {
            Ok(done) => {
                log.remove()?;
                Ok(done)
            }
            Err(error) => {
                report.note(&format!("nothing was built; the log is {}", log.path().display()));
                Err(error)
            }
        }
    }

    fn install_logged(
        &self,
        base: &Base,
        manager: Manager,
        packages: &Packages<'_>,
        shared: StoreLock,
        log: &mut BuildLog<'_>,
    ) -> Result<(Installed, StoreLock)> {
        let mut scratch = Scratch::on_base(self, base)?;
        drop(shared);
        Session { engine: self, scratch: &mut scratch, manager, log }.use_overlay()?;
        let mut done = self.install_in(&mut scratch, manager, packages, base, log);
        let hindered = done.as_ref().err().and_then(|error| scratch.hindered(error, log.is_refused()));
        if let Some(why) = hindered {
            log.note(&format!("{why}: installing again, more slowly, without it"))?;
            drop(scratch);
            let shared = StoreLock::shared(self.store())?;
            scratch = Scratch::on_base(self, base)?;
            drop(shared);
            done = self.install_in(&mut scratch, manager, packages, base, log);
        }
        let (packages, dependency, shared) = done?;
        Ok((Installed { packages, dependency, scratch }, shared))
    }

    /// Returns the packages of `[system]`, their layer, and the store's lock.
    fn install_in(
        &self,
        scratch: &mut Scratch,
        manager: Manager,
        packages: &Packages<'_>,
        base: &Base,
        log: &mut BuildLog<'_>,
    ) -> Result<(Vec<LockedPackage>, Option<Dependency>, StoreLock)> {
        let versions = Session { engine: self, scratch, manager, log }.install(packages)?;
        let shared = StoreLock::shared(self.store())?;
        let ignored = manager.left_behind().map(str::to_owned);
        let ignored = Ignore::new(ignored.chain(packages.manifest.snapshot.ignore.iter().cloned()));
        let dependency = self.write_dependency(base, scratch, &ignored, log.report())?;
        let packages = &packages.manifest.system.packages;
        let packages = versions.into_iter().filter(|one| packages.contains(&one.name)).collect();
        Ok((packages, dependency, shared))
    }

    /// The package manager in the tree of a base image.
    fn detect_manager(&self, base: &Base, image: &str) -> Result<Manager> {
        let trees = Trees::new(self.store().clone());
        let root = trees.root(&base.root)?;
        let tree = StoredTree::new(&trees, &root);
        let mut os_release = Vec::new();
        for path in OS_RELEASES {
            if let Some(file) = content(&follow(&tree, path)?) {
                os_release = read_up_to(&trees, file, file.size.min(MAX_OS_RELEASE))?;
                break;
            }
        }
        // A program that cannot be looked up counts as missing.
        let has = |path: &str| {
            follow(&tree, path.as_bytes())
                .is_ok_and(|found| found.is_some_and(|inode| inode.mode & 0o111 != 0))
        };
        Manager::detect(&String::from_utf8_lossy(&os_release), has)
            .ok_or_else(|| Error::NoPackageManager { image: image.to_owned() })
    }

    /// Records the scratch environment's state as a layer on the base.
    fn write_dependency(
        &self,
        base: &Base,
        scratch: &mut Scratch,
        ignored: &Ignore,
        report: &dyn Report,
    ) -> Result<Option<Dependency>> {
        let Some(layer) = scratch.layer(ignored, report)? else { return Ok(None) };
        let hash = karapace_store::id::LayerHash::from_bytes(*layer.tar_hash.as_bytes());
        let record = LayerRecord {
            hash,
            kind: LayerKind::Dependency,
            parent: Some(base.hash),
            object_refs: vec![layer.id],
            read_only: true,
            tar_hash: layer.tar_hash,
            tree: layer.id,
            created_at: Timestamp::now(),
            message: None,
        };
        let record = LayerRecord::write(self.store(), &record)?;
        Ok(Some(Dependency { layer: hash, record }))
    }
}

/// Refuses an ordinary user without a range of ids: packages bring users and groups of their own.
fn check_ids() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    ranges::available().map(drop).map_err(|reason| {
        let cure = reason.cure();
        Error::Invalid(format!(
            "packages need users and groups of their own, but only one id is available: {reason}; as root, run `{cure}` (with a \
             range that no other user has), or build as root"
        ))
    })
}
