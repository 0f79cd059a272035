//! A temporary environment in which a build runs a package manager. Its lower view is the base image,
//! whatever the environment that is built will be. It is listed like any other until the build ends, and is
//! then removed, even after a crash.

use std::time::Duration;

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
use crate::engine::server::socket::Request;
use crate::engine::{Engine, Error, Result};

/// How long the commands of a killed build may take to end: they are being killed too.
const PATIENCE: Duration = Duration::from_secs(10);

/// The environment of one build. Dropping it removes the environment.
pub(super) struct Scratch {
    engine: Engine,
    /// Its record.
    pub env: Metadata,
    /// The tree that it started with.
    base: ObjectId,
    /// Never finished: dropping it removes the environment.
    _intent: WalEntry,
}

impl Scratch {
    /// Makes the environment. The caller holds the store's lock, shared, and may release it afterwards: the
    /// environment then refers to the base.
    pub fn begin(engine: &Engine, base: &Base) -> Result<Scratch> {
        let manifest = Manifest::for_image("the base of a build");
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let mut env =
            engine.new_metadata("build", &manifest, &Built { lock: &lock, base, dependency: None })?;
        let instance = env.instance;
        env.name = format!("build-{}", &instance.to_hex()[..12]);
        // An id that nothing else resolves to, so that no build takes this environment for the one it is to
        // build.
        env.env_id = blake3::hash(format!("build:{instance}").as_bytes()).to_hex().to_string();
        let intent = Wal::begin(engine.store(), Intent::Build { instance })?;
        engine.make_env_dir(&instance)?;
        env.save(engine.store())?;
        Ok(Scratch { engine: engine.clone(), env, base: base.root, _intent: intent })
    }

    /// The layer that its changes make, without the paths that `ignore` covers; `None` if nothing has
    /// changed. The caller holds the store's lock, shared.
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
            tracing::warn!("cannot end the build in {}: {error}", self.env.name);
        }
    }
}

impl Engine {
    /// Unmounts the environments of killed builds. The replay of intents then removes them.
    ///
    /// Does nothing if the replay would do nothing; the next start does both.
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
                Err(error) => tracing::debug!("cannot clean up a build that was killed: {error}"),
            }
        }
        Ok(())
    }

    fn end_build_mount(&self, env: &Metadata) -> Result<()> {
        if !sessions::end_within(self, &env.instance, PATIENCE) {
            return Err(Error::Running { env: env.name.clone() });
        }
        let recorded = self.recorded_mount(&env.instance)?;
        if self.live_mount(&env.instance)?.is_some() {
            self.unmount_and_wait(env, &Request::EndSessions)?;
        }
        let Some(mount) = recorded else { return Ok(()) };
        mount.clear_stale()?;
        match std::fs::remove_dir(&mount.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &mount.dir, e)),
            _ => Ok(()),
        }
    }
}
