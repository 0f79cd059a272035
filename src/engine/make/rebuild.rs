//! Rebuilding: replaces an environment by a new one built from the same manifest.

use std::path::Path;

use karapace_store::fail;
use karapace_store::inode::Timestamp;
use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;
use karapace_store::wal::{Intent, Wal};

use super::build::{BuildOptions, Plan, Resolution, Resolved};
use crate::description::lifecycle;
use crate::engine::At as _;
use crate::engine::instance::open::{CommitOutcome, Instance, Wait};
use crate::engine::{Engine, Error, Report, Result};

/// The result of a rebuild.
pub struct RebuildOutcome {
    /// The new environment.
    pub metadata: Metadata,
    /// The env_id of the old environment.
    pub before: String,
    /// The snapshot of what was uncommitted, if anything was.
    pub saved: Option<CommitOutcome>,
}

impl Engine {
    /// Builds what the manifest at `path` describes, and replaces the environment that was built from it
    /// before: the one with the requested name, or else the one that the lock file pins. Name and snapshots
    /// stay, and uncommitted changes become one more snapshot. The old environment stays until the new one is
    /// complete.
    ///
    /// # Errors
    /// Refuses an environment that is mounted, entered, frozen or archived, before anything is built.
    pub fn rebuild(
        &self,
        path: &Path,
        options: &BuildOptions,
        report: &dyn Report,
    ) -> Result<RebuildOutcome> {
        let plan = self.plan(path, options, report)?;
        let old = self.to_rebuild(&plan, options.name.as_deref())?;
        self.check_rebuildable(&old)?;
        let resolved = match self.resolve(&plan, options, report, &|_| Ok(None))? {
            Resolution::New(resolved) => resolved,
            Resolution::Exists(env, _) => return Err(Error::NameTaken { name: env.name }),
        };
        self.check_rebuildable(&Metadata::load(self.store(), &old.instance)?)?;
        let lock = self.lock_unmounted(&old)?;
        // Commit and replacement happen under one lock, so everything written until then is in the snapshot.
        let instance = Instance::open(self, Metadata::load(self.store(), &old.instance)?, lock, false)?;
        let message = format!("before rebuild of {}", instance.metadata().name);
        let saved = instance.commit(&[], None, Some(&message), Wait::Long)?;
        let old = instance.metadata();
        let lock = instance.into_lock()?;
        plan.write_lock(&resolved.lock)?;
        let metadata = self.replace(&old, lock, &plan, &resolved)?;
        Ok(RebuildOutcome { metadata, before: old.env_id, saved: Some(saved).filter(|saved| saved.created) })
    }

    fn to_rebuild(&self, plan: &Plan, name: Option<&str>) -> Result<Metadata> {
        if let Some(name) = name {
            return self.find(name);
        }
        let unknown = |why: String| Error::Invalid(format!("{why}: name the environment with --name"));
        let Some(lock) = &plan.pinned else {
            return Err(unknown(format!("there is no lock file {}", plan.lock_path.display())));
        };
        let mut same: Vec<Metadata> = Metadata::list(self.store())?.into_iter().flatten().collect();
        same.retain(|env| env.env_id == lock.env_id);
        match same.len() {
            1 => Ok(same.remove(0)),
            0 => Err(unknown(format!("no environment matches the lock file {}", plan.lock_path.display()))),
            _ => {
                let names: Vec<String> = same.into_iter().map(|env| env.name).collect();
                Err(unknown(format!("{} were built from this manifest", names.join(", "))))
            }
        }
    }

    fn check_rebuildable(&self, env: &Metadata) -> Result<()> {
        lifecycle::check_rebuild(env.state)?;
        self.check_idle(env)
    }

    /// Replaces `old` by a new environment. `lock` is the lock of `old`; the caller holds the store's lock,
    /// shared.
    fn replace(&self, old: &Metadata, lock: EnvLock, plan: &Plan, resolved: &Resolved) -> Result<Metadata> {
        let mut metadata = self.new_metadata(&old.name, &plan.manifest, &resolved.built())?;
        metadata.snapshots.clone_from(&old.snapshots);
        metadata.created_at = old.created_at;
        metadata.updated_at = Timestamp::now();
        if let Some(mount) = self.recorded_mount(&old.instance)? {
            mount.clear_stale()?;
        }
        let intent = Intent::Replace { instance: metadata.instance, old: old.instance };
        let intent = Wal::begin(self.store(), intent)?;
        let (dir, old_dir) = (self.env_dir(&metadata.instance), self.env_dir(&old.instance));
        let step = |name: &'static str, dir: &Path| fail::point(name).at("replace", dir);
        step("replace.begun", &dir)?;
        self.make_env_dir(&metadata.instance)?;
        let names = self.lock_names()?;
        self.check_name_free(&metadata.name, Some(&old.instance))?;
        step("replace.record", &dir)?;
        // From here on the new environment counts. After a crash, the next start removes the old one.
        metadata.save(self.store())?;
        step("replace.old", &old_dir)?;
        Metadata::delete(self.store(), &old.instance)?;
        drop(names);
        let removed = fail::point("replace.dir").and_then(|()| self.remove_env_dir(&old_dir, lock));
        removed.at("remove", &old_dir)?;
        intent.finish()?;
        Ok(metadata)
    }
}
