//! A temporary environment: for a build, which runs a package manager in it, or for `run`. It is listed like
//! any other until the build or run ends, and is then removed, even after a crash.
//!
//! Its changes go to an overlay where one can be mounted. Its sessions share it, as long as the scratch
//! environment counts as one of them.

use std::fs::File;
use std::io;
use std::mem;
use std::time::Duration;

use karapace_store::error::StoreError;
use karapace_store::id::{InstanceId, ObjectId};
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::paths::Ignore;
use karapace_store::tree::Trees;
use karapace_store::wal::{Intent, Wal, WalEntry, abandoned};
use nix::unistd::syncfs;

use super::create::{Base, Built};
use crate::description::locked::LockFile;
use crate::description::manifest::Manifest;
use crate::engine::At as _;
use crate::engine::instance::layering::{self, Layer};
use crate::engine::instance::sessions;
use crate::engine::server::socket::Request;
use crate::engine::{Engine, Error, Report, Result};

/// How long the commands of a killed build or run may take to end: they are being killed too.
const PATIENCE: Duration = Duration::from_secs(10);

/// The environment of one build or run. Dropping it removes the environment.
pub(in crate::engine) struct Scratch {
    pub(super) engine: Engine,
    /// Its record.
    pub env: Metadata,
    /// The tree that it started with.
    base: ObjectId,
    changes: Changes,
    /// Dropping it removes the environment. `None` once that is to stay.
    intent: Option<WalEntry>,
}

/// Where the changes of a scratch environment go.
enum Changes {
    /// Into the environment.
    InPlace,
    /// To an overlay.
    OnOverlay(Native),
    /// They were on an overlay, which is being folded.
    Folding,
}

/// What a scratch environment with an overlay holds.
struct Native {
    /// Keeps the overlay mounted between two commands.
    session: sessions::Session,
    /// A descriptor of the upper directory, opened before anything was written: a sync through it reports
    /// every write error since, also one that another sync has seen.
    upper: File,
}

impl Scratch {
    /// Makes the environment for a build. The caller holds the store's lock, shared, and may release it
    /// afterwards: the environment then refers to the base.
    pub(super) fn on_base(engine: &Engine, base: &Base) -> Result<Scratch> {
        let manifest = Manifest::for_image("the base of a build");
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let built = Built { lock: &lock, base, dependency: None };
        Scratch::begin(engine, engine.new_metadata("build", &manifest, &built)?, base.root)
    }

    /// Makes the environment that `env` describes, which is to show the tree `base`; if that is not its head
    /// layer's, [`Engine::stand_on`] must follow. The name in the record is completed to one that no other
    /// environment has.
    pub(super) fn begin(engine: &Engine, mut env: Metadata, base: ObjectId) -> Result<Scratch> {
        let instance = env.instance;
        let kind = env.name;
        env.name = format!("{kind}-{}", &instance.to_hex()[..12]);
        // An id that nothing else resolves to, so that no build takes this environment for the one it is to
        // build.
        env.env_id = blake3::hash(format!("{kind}:{instance}").as_bytes()).to_hex().to_string();
        let intent = Wal::begin(engine.store(), Intent::Build { instance })?;
        engine.make_env_dir(&instance)?;
        env.save(engine.store())?;
        Ok(Scratch { engine: engine.clone(), env, base, changes: Changes::InPlace, intent: Some(intent) })
    }

    /// Prepares an overlay; from now on commands must use it ([`Scratch::has_overlay`]). False if the base
    /// cannot have one.
    pub fn begin_overlay(&mut self) -> Result<bool> {
        let trees = Trees::new(self.engine.store().clone());
        let instance = &self.env.instance;
        let Some(upper) = self.engine.prepare_overlay(instance, &*trees.root(&self.base)?)? else {
            // What is there now would be used.
            self.engine.remove_overlay(instance)?;
            return Ok(false);
        };
        let session = sessions::Session::join(&self.engine, instance)?;
        self.changes = Changes::OnOverlay(Native { session, upper });
        Ok(true)
    }

    /// Gives the overlay up, with what it holds.
    pub fn end_overlay(&mut self) -> Result<()> {
        self.changes = Changes::InPlace;
        self.engine.end_build(&self.env)
    }

    /// Whether its changes go to an overlay.
    pub fn has_overlay(&self) -> bool {
        matches!(self.changes, Changes::OnOverlay(_))
    }

    /// Why an installation that has failed may succeed without an overlay. `is_refused`: a command has
    /// named an error that overlayfs causes.
    pub fn hindered(&self, error: &Error, is_refused: bool) -> Option<String> {
        match (&self.changes, error) {
            (Changes::OnOverlay(_), Error::Install { .. }) if is_refused => {
                Some("overlayfs does not allow all that the packages' scripts do".to_owned())
            }
            (Changes::Folding, error) if !matches!(error, Error::Store(StoreError::Cancelled)) => {
                Some(format!("what overlayfs has left cannot be used ({error})"))
            }
            _ => None,
        }
    }

    /// The layer that its changes make, without the paths that `ignore` covers; `None` if nothing has
    /// changed. No command may run in it afterwards. The caller holds the store's lock, shared.
    pub fn layer(&mut self, ignore: &Ignore, report: &dyn Report) -> Result<Option<Layer>> {
        let shown = self.tree(report)?;
        let trees = Trees::new(self.engine.store().clone());
        layering::between(&trees, (&self.base, shown), ignore, trees.root(&shown)?.next_ino)
    }

    /// The tree of what it shows. No command may run in it afterwards. The caller holds the store's lock,
    /// shared.
    fn tree(&mut self, report: &dyn Report) -> Result<ObjectId> {
        self.fold(report)?;
        Ok(self.engine.shown(&self.env)?.1)
    }

    /// Lets it stay, as the environment `name` with this identity; under its own name if that is taken by
    /// now. It is durable on return. No command may run in it any more. The caller holds the store's lock,
    /// shared.
    pub(super) fn keep(mut self, name: &str, env_id: &str, report: &dyn Report) -> Result<Metadata> {
        self.fold(report)?;
        // Nothing serves it under its old name.
        let _lock = self.engine.lock_unmounted(&self.env)?;
        let names = self.engine.lock_names()?;
        let mut env = Metadata::load(self.engine.store(), &self.env.instance)?;
        env.env_id = env_id.to_owned();
        match self.engine.check_name_free(name, None) {
            Ok(()) => env.name = name.to_owned(),
            Err(error) => report.note(&format!("{error}; what was done is kept as {}", env.name)),
        }
        env.save(self.engine.store())?;
        drop(names);
        self.intent.take().map_or(Ok(()), WalEntry::finish)?;
        Ok(env)
    }

    /// Makes what is in its overlay part of it. No command may run in it afterwards. The caller holds the
    /// store's lock, shared.
    fn fold(&mut self, report: &dyn Report) -> Result<()> {
        let native = match mem::replace(&mut self.changes, Changes::Folding) {
            Changes::OnOverlay(native) => native,
            other => {
                self.changes = other;
                return Ok(());
            }
        };
        let Native { session, upper } = native;
        // Only a server that lives knows that the last process of the inside has ended.
        if self.engine.live_mount(&self.env.instance)?.is_none() {
            return Err(Error::Invalid(format!("the server of {} has ended", self.env.name)));
        }
        // While this is the last session, the server does not end the mount by itself.
        session.leave(|| self.engine.end_build_mount(&self.env))?;
        self.engine.end_build_mount(&self.env)?;
        let _lock = self.engine.lock_unmounted(&self.env)?;
        let notes = self.engine.fold_overlay(&self.env, &self.base, report)?;
        // What was lost must not count.
        syncfs(&upper).map_err(io::Error::from).at("sync the file system of", self.engine.root())?;
        self.engine.drop_overlay(&self.env.instance)?;
        self.changes = Changes::InPlace;
        notes.iter().for_each(|note| report.note(note));
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.changes = Changes::InPlace;
        let Some(intent) = self.intent.take() else { return };
        // While something uses it, its record is needed to end that.
        if let Err(error) = self.engine.end_build(&self.env) {
            tracing::warn!("{} is not removed yet, a later command tries again: {error}", self.env.name);
            intent.leave();
        }
    }
}

impl Engine {
    /// Unmounts the environments of killed builds, and returns those that nothing uses any more, for the
    /// replay of intents to remove. The others are left for the next start.
    ///
    /// Does nothing if the replay would do nothing; the next start does both.
    pub(in crate::engine) fn end_abandoned_builds(&self) -> Result<Vec<InstanceId>> {
        if self.store().is_read_only() {
            return Ok(Vec::new());
        }
        match StoreLock::try_shared(self.store()) {
            Ok(shared) => drop(shared),
            Err(StoreError::Locked { .. } | StoreError::OtherHost { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let mut ended = Vec::new();
        for intent in abandoned(self.store())? {
            let Intent::Build { instance } = intent else { continue };
            let done = match Metadata::load(self.store(), &instance) {
                Ok(env) => self.end_build(&env),
                Err(error) if error.is_missing() => self.remove_overlay(&instance),
                Err(error) => Err(error.into()),
            };
            match done {
                Ok(()) => ended.push(instance),
                Err(error) => tracing::warn!("cannot clean up after a build that was killed: {error}"),
            }
        }
        Ok(ended)
    }

    fn end_build(&self, env: &Metadata) -> Result<()> {
        match self.end_build_mount(env) {
            // The server was faster.
            Err(Error::NotMounted { .. }) => {}
            other => other?,
        }
        self.remove_overlay(&env.instance)
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
