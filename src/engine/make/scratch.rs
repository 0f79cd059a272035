//! An environment that exists for the time of a build, for a package manager to run in: with the base image
//! for its lower view, whatever is asked of the environment that is to be built. It is listed like any other
//! meanwhile, and goes when the build ends, however it ends.

use std::time::{Duration, Instant};

use karapace_store::error::StoreError;
use karapace_store::id::ObjectId;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::paths::Ignore;
use karapace_store::wal::{Intent, Wal, WalEntry, abandoned};

use super::create::{Base, Built};
use crate::description::locked::LockFile;
use crate::description::manifest::Manifest;
use crate::engine::instance::layering::Layer;
use crate::engine::instance::open::Instance;
use crate::engine::instance::sessions;
use crate::engine::mountpoint;
use crate::engine::{Engine, Error, Result};

/// How long the commands of a build that was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// The environment of one build. Dropped, it is gone.
pub(super) struct Scratch {
    engine: Engine,
    /// Its record.
    pub env: Metadata,
    /// The tree that it began with.
    base: ObjectId,
    /// Never finished: dropping it removes the environment.
    _intent: WalEntry,
}

impl Scratch {
    /// Makes it. Call with the store's lock held, shared; from then on the base is referred to, and the lock
    /// is not needed.
    pub fn begin(engine: &Engine, base: &Base) -> Result<Scratch> {
        let manifest = Manifest::for_image("the base of a build");
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let mut env =
            engine.new_metadata("build", &manifest, &Built { lock: &lock, base, dependency: None })?;
        let instance = env.instance;
        env.name = format!("build-{}", &instance.to_hex()[..12]);
        // Nothing else resolves to it, so that no build takes it for what it was to build.
        env.env_id = blake3::hash(format!("build:{instance}").as_bytes()).to_hex().to_string();
        let intent = Wal::begin(engine.store(), Intent::Build { instance })?;
        engine.make_env_dir(&instance)?;
        env.save(engine.store())?;
        Ok(Scratch { engine: engine.clone(), env, base: base.root, _intent: intent })
    }

    /// The layer that it has become, but for the paths that are `ignore`d; `None` when nothing is different.
    /// Call with the store's lock held, shared.
    pub fn layer(&self, ignore: &Ignore) -> Result<Option<Layer>> {
        let lock = self.engine.lock_unmounted(&self.env)?;
        let env = Metadata::load(self.engine.store(), &self.env.instance)?;
        let instance = Instance::open(&self.engine, env, lock, false)?;
        let layer = instance.layer_on(&self.base, ignore);
        instance.close()?;
        layer
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.engine.end_build_mount(&self.env) {
            tracing::warn!("ending the build in {}: {error}", self.env.name);
        }
    }
}

impl Engine {
    /// Unmounts what builds that were killed left mounted. Their environments are then undone like all that
    /// was left half-done.
    ///
    /// Nothing is done where the replay would do nothing: the next start does it.
    pub(in crate::engine) fn end_abandoned_builds(&self) -> Result<()> {
        if self.store().is_read_only() {
            return Ok(());
        }
        match StoreLock::try_shared(self.store()) {
            Ok(shared) => drop(shared),
            Err(StoreError::Locked { .. } | StoreError::OtherHost { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        for intent in abandoned(self.store())? {
            let Intent::Build { instance } = intent else { continue };
            match Metadata::load(self.store(), &instance) {
                Ok(env) => self.end_build_mount(&env)?,
                Err(error) => tracing::debug!("a build that was killed: {error}"),
            }
        }
        Ok(())
    }

    fn end_build_mount(&self, env: &Metadata) -> Result<()> {
        let start = Instant::now();
        while sessions::running(self, &env.instance) {
            if start.elapsed() > PATIENCE {
                return Err(Error::Running { env: env.name.clone() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let recorded = self.recorded_mount(&env.instance)?;
        if self.live_mount(&env.instance)?.is_some() {
            self.unmount_and_wait(env)?;
        }
        let Some(mount) = recorded else { return Ok(()) };
        mountpoint::clear_stale(&mount.dir)?;
        match std::fs::remove_dir(&mount.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &mount.dir, e)),
            _ => Ok(()),
        }
    }
}
