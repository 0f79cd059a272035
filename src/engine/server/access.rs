//! Access to an environment: through its serving process, or by opening it in this process.

use std::time::Duration;

use karapace_fs::control::{Command, Times};
use karapace_fs::path_text::PathText;
use karapace_store::error::StoreError;
use karapace_store::id::ObjectId;
use karapace_store::lock::{self, EnvLock};
use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;

use super::client::Client;
use super::perform::{Outcome, perform};
use super::socket::{Answer, Request};
use crate::engine::instance::diff::Changed;
use crate::engine::instance::open::{CommitOutcome, Instance, RestoreOutcome, Status, Wait};
use crate::engine::instance::reference::LayerRef;
use crate::engine::instance::snapshots::RemoveOutcome;
use crate::engine::{Engine, Error, Result};

/// How long another command may hold the environment before we give up: longer than a commit of many changes
/// takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a process did whose answer does not belong to the request.
pub(in crate::engine) const UNKNOWN_ANSWER: &str = "gave an answer that this version does not understand";

impl Engine {
    /// Makes a snapshot of `env`, or of its chosen paths. It is durable on return.
    pub fn commit(
        &self,
        env: &Metadata,
        paths: &[Vec<u8>],
        name: Option<&str>,
        message: Option<&str>,
    ) -> Result<CommitOutcome> {
        let (name, message) = (name.map(str::to_owned), message.map(str::to_owned));
        match self.perform(env, Command::Commit { name, message, paths: texts(paths) })? {
            Outcome::Commit(outcome) => Ok(outcome),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// Makes `env` equal to a snapshot (see [`reference`](crate::engine::instance::reference)), or restores
    /// the chosen paths from it. Changes that this would overwrite are committed first. `times`: by default a
    /// whole restore keeps the snapshot's times, and chosen paths get the current time.
    pub fn restore(
        &self,
        env: &Metadata,
        reference: &str,
        paths: &[Vec<u8>],
        times: Option<Times>,
    ) -> Result<RestoreOutcome> {
        let command = Command::Restore { reference: reference.to_owned(), paths: texts(paths), times };
        match self.perform(env, command)? {
            Outcome::Restore(outcome) => Ok(outcome),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// Removes snapshots of `env`, all or none. The next collection removes what only they referred to.
    pub fn remove_snapshots(&self, env: &Metadata, references: &[String]) -> Result<RemoveOutcome> {
        match self.perform(env, Command::RemoveSnapshots { references: references.to_vec() })? {
            Outcome::Removed(outcome) => Ok(outcome),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// The uncommitted changes of `env`.
    pub fn diff(&self, env: &Metadata) -> Result<Vec<Changed>> {
        self.differing(env, None)
    }

    /// The paths at which the view of `env` differs from the layer `since`.
    pub fn diff_since(&self, env: &Metadata, since: &str) -> Result<Vec<Changed>> {
        self.differing(env, Some(since))
    }

    fn differing(&self, env: &Metadata, since: Option<&str>) -> Result<Vec<Changed>> {
        match self.perform(env, Command::Diff { since: since.map(str::to_owned) })? {
            Outcome::Diff(changes) => Ok(changes),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// How many paths of `env` are uncommitted. Cheap if nothing was touched.
    pub(in crate::engine) fn count_uncommitted(&self, env: &Metadata) -> Result<usize> {
        // A touched path may be unchanged: a session makes mount points and removes them again.
        match self.request_status(env)?.dirty_files {
            0 => Ok(0),
            _ => Ok(self.diff(env)?.len()),
        }
    }

    /// The figures of the upper, from the server or from this process.
    pub(in crate::engine) fn request_status(&self, env: &Metadata) -> Result<Status> {
        match self.perform(env, Command::Status)? {
            Outcome::Status(status) => Ok(status),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// The head of `env`, and the tree of everything that `env` shows now. The caller holds the store's
    /// lock, shared, while nothing else keeps that tree.
    pub(in crate::engine) fn shown(&self, env: &Metadata) -> Result<(LayerRef, ObjectId)> {
        match self.perform(env, Command::Store)? {
            Outcome::Stored { layer, record, root } => Ok((LayerRef { hash: layer, record }, root)),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// Takes the lock of an environment that is not served. Waits for other commands.
    ///
    /// # Errors
    /// [`Error::Mounted`], [`Error::MountedElsewhere`] or [`Error::Running`] if a process serves it.
    pub(in crate::engine) fn lock_unmounted(&self, env: &Metadata) -> Result<EnvLock> {
        let mut wait = Waiting::begin();
        loop {
            if Client::connect(self.store().files(), &self.env_dir(&env.instance))?.is_some() {
                return Err(self.mounted_error(env));
            }
            if let Some(lock) = self.try_lock(env, &mut wait)? {
                return Ok(lock);
            }
        }
    }

    /// Performs a command on `env`: asks its server or, if there is none, opens `env` in this process.
    pub(in crate::engine) fn perform(&self, env: &Metadata, command: Command) -> Result<Outcome> {
        // Before waiting for anybody.
        command.check().map_err(Error::Invalid)?;
        let mut wait = Waiting::begin();
        let before = Metadata::load(self.store(), &env.instance)?;
        loop {
            let answer = match Client::connect(self.store().files(), &self.env_dir(&env.instance))? {
                Some(client) => match self.ask(env, client, &Request::Command(command.clone()))? {
                    Some(answer) => answer,
                    None => self.unanswered(&before, &command, &mut wait)?,
                },
                None => match self.try_lock(env, &mut wait)? {
                    Some(lock) => {
                        // Read again under the lock: another command may have changed it meanwhile.
                        let env = Metadata::load(self.store(), &env.instance)?;
                        let instance = Instance::open(self, env, lock, command.only_reads())?;
                        let outcome = perform(&instance, &command, Wait::Long);
                        let closed = instance.close();
                        let outcome = outcome?;
                        closed?;
                        return Ok(outcome);
                    }
                    None => continue,
                },
            };
            match answer {
                Answer::Done(outcome) => return Ok(outcome),
                Answer::Failed { errno, reason } => return Err(Error::Served { errno, reason }),
                Answer::Ending if wait.deadline.has_passed() => {
                    return Err(self.serving_error(env, "is ending, but does not finish"));
                }
                Answer::Ending => wait.deadline.pause(),
                other => {
                    tracing::debug!(?other, "unexpected answer");
                    return Err(self.serving_error(env, UNKNOWN_ANSWER));
                }
            }
        }
    }

    /// Asks the serving process. `None`: it ended without an answer, and may have done what it was asked to
    /// do.
    pub(in crate::engine) fn ask(
        &self,
        env: &Metadata,
        client: Client,
        request: &Request,
    ) -> Result<Option<Answer>> {
        let asked = client.request(request);
        asked.map_err(|error| self.serving_error(env, &format!("gave no usable answer ({error})")))
    }

    /// Handles a command that got no answer. Repeats it, once, if it only reads, if the record shows that
    /// nothing was done, or if it may be done twice, as gc. A restore is not repeated: `~1` may mean another
    /// snapshot by now.
    fn unanswered(&self, before: &Metadata, command: &Command, wait: &mut Waiting) -> Result<Answer> {
        let now = Metadata::load(self.store(), &before.instance)?;
        let same = (&now.snapshots, now.head_record) == (&before.snapshots, before.head_record);
        let again = match command {
            Command::Commit { .. } | Command::RemoveSnapshots { .. } | Command::DropName { .. } => same,
            Command::Gc { .. } | Command::Store => true,
            command => command.only_reads(),
        };
        if again && !wait.unanswered {
            wait.unanswered = true;
            return Ok(Answer::Ending);
        }
        let made = now.snapshots.iter().find(|snapshot| !before.snapshots.contains(snapshot));
        let what = match (command, made) {
            (Command::Commit { .. }, Some(made)) => {
                format!("ended before it answered, but made the snapshot {:.12}", made.hash)
            }
            _ => "ended before it answered; everything that it acknowledged is kept".to_owned(),
        };
        Err(self.serving_error(before, &what))
    }

    /// Returns the lock, or `None` after a short pause if another command holds it.
    fn try_lock(&self, env: &Metadata, wait: &mut Waiting) -> Result<Option<EnvLock>> {
        match EnvLock::try_acquire(self.store(), &env.instance) {
            Ok(lock) => Ok(Some(lock)),
            Err(StoreError::Locked { holder, .. }) if self.store().waits() && !wait.deadline.has_passed() => {
                wait.say(&env.name, &holder);
                wait.deadline.pause();
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unexpected(&self, env: &Metadata, outcome: &Outcome) -> Error {
        tracing::debug!(?outcome, "unexpected outcome");
        self.serving_error(env, UNKNOWN_ANSWER)
    }
}

/// A wait for a process that holds the environment.
struct Waiting {
    deadline: Deadline,
    said: bool,
    /// A request has already gone without an answer.
    unanswered: bool,
}

impl Waiting {
    fn begin() -> Waiting {
        Waiting { deadline: Deadline::after(PATIENCE), said: false, unanswered: false }
    }

    /// If the wait has become long, logs once which process holds the environment.
    fn say(&mut self, env: &str, holder: &str) {
        if !self.said && self.deadline.waited() > lock::PATIENCE {
            self.said = true;
            tracing::warn!("waiting for environment {env}: {holder} holds it");
        }
    }
}

fn texts(paths: &[Vec<u8>]) -> Vec<PathText> {
    paths.iter().cloned().map(PathText).collect()
}
