//! Access to an environment: through its serving process, or by opening it in this process.

use std::time::{Duration, Instant};

use karapace_store::error::StoreError;
use karapace_store::lock::{self, EnvLock};
use karapace_store::metadata::Metadata;

use super::client::Client;
use super::socket::{Answer, Request};
use crate::engine::instance::diff::Changed;
use crate::engine::instance::layering::Times;
use crate::engine::instance::open::{
    CommitOutcome, Instance, RestoreOutcome, Status, Wait, check_snapshot_name,
};
use crate::engine::instance::snapshots::RemoveOutcome;
use crate::engine::text::PathText;
use crate::engine::{Engine, Error, Result};

/// How long another command may hold the environment before we give up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long to pause between attempts.
const PAUSE: Duration = Duration::from_millis(20);

impl Engine {
    /// Makes a snapshot of `env`, or of its chosen paths. It is durable on return.
    pub fn commit(
        &self,
        env: &Metadata,
        paths: &[Vec<u8>],
        name: Option<&str>,
        message: Option<&str>,
    ) -> Result<CommitOutcome> {
        name.map(check_snapshot_name).transpose()?;
        let (name, message) = (name.map(str::to_owned), message.map(str::to_owned));
        let request = Request::Commit { name, message, paths: texts(paths) };
        match self.request(env, &request)? {
            Answer::Commit(outcome) => Ok(outcome),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// Makes `env` equal to a snapshot (see [`reference`](crate::engine::instance::reference)), or restores
    /// the chosen paths from it. Changes that this would overwrite are committed first. `times`: by default a
    /// whole restore keeps the snapshot's times, and chosen paths get the present time.
    pub fn restore(
        &self,
        env: &Metadata,
        reference: &str,
        paths: &[Vec<u8>],
        times: Option<Times>,
    ) -> Result<RestoreOutcome> {
        let request = Request::Restore { reference: reference.to_owned(), paths: texts(paths), times };
        match self.request(env, &request)? {
            Answer::Restore(outcome) => Ok(outcome),
            other => Err(self.unexpected(env, &other)),
        }
    }

    /// Removes snapshots of `env`, all or none. The next collection removes what only they referred to.
    pub fn remove_snapshots(&self, env: &Metadata, references: &[String]) -> Result<RemoveOutcome> {
        match self.request(env, &Request::RemoveSnapshots { references: references.to_vec() })? {
            Answer::Removed(outcome) => Ok(outcome),
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
        match self.request(env, &Request::Diff { since: since.map(str::to_owned) })? {
            Answer::Diff(changes) => Ok(changes),
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
        match self.request(env, &Request::Status)? {
            Answer::Status(status) => Ok(status),
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

    fn request(&self, env: &Metadata, request: &Request) -> Result<Answer> {
        let mut wait = Waiting::begin();
        let before = Metadata::load(self.store(), &env.instance)?;
        loop {
            let answer = match Client::connect(self.store().files(), &self.env_dir(&env.instance))? {
                Some(client) => match self.ask(env, client, request)? {
                    Some(answer) => answer,
                    None => self.unanswered(&before, request, &mut wait)?,
                },
                None => match self.try_lock(env, &mut wait)? {
                    Some(lock) => {
                        // Read again under the lock: another command may have changed it meanwhile.
                        let env = Metadata::load(self.store(), &env.instance)?;
                        let reads = matches!(request, Request::Diff { .. } | Request::Status);
                        let instance = Instance::open(self, env, lock, reads)?;
                        let answer = perform(&instance, request);
                        let closed = instance.close();
                        let answer = answer?;
                        closed?;
                        return Ok(answer);
                    }
                    None => continue,
                },
            };
            match answer {
                Answer::Failed { errno, reason } => return Err(Error::Served { errno, reason }),
                Answer::Ending if wait.start.elapsed() > PATIENCE => {
                    return Err(self.serving_error(env, "is ending and does not come to an end"));
                }
                Answer::Ending => std::thread::sleep(PAUSE),
                answer => return Ok(answer),
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
        asked.map_err(|error| self.serving_error(env, &format!("could not be asked ({error})")))
    }

    /// Handles a request that got no answer. Repeats it, once, if it only reads or if the record shows that
    /// nothing was done. A restore is not repeated: `~1` may mean another snapshot by now.
    fn unanswered(&self, before: &Metadata, request: &Request, wait: &mut Waiting) -> Result<Answer> {
        let now = Metadata::load(self.store(), &before.instance)?;
        let same = (&now.snapshots, now.head_record) == (&before.snapshots, before.head_record);
        let again = match request {
            Request::Diff { .. } | Request::Status => true,
            Request::Commit { .. } | Request::RemoveSnapshots { .. } => same,
            _ => false,
        };
        if again && !wait.unanswered {
            wait.unanswered = true;
            return Ok(Answer::Ending);
        }
        let made = now.snapshots.iter().find(|snapshot| !before.snapshots.contains(snapshot));
        let what = match (request, made) {
            (Request::Commit { .. }, Some(made)) => {
                format!("ended before it answered, but had made the snapshot {:.12}", made.hash)
            }
            _ => "ended before it answered; what it acknowledged is kept".to_owned(),
        };
        Err(self.serving_error(before, &what))
    }

    /// Returns the lock, or `None` after a short pause if another command holds it.
    fn try_lock(&self, env: &Metadata, wait: &mut Waiting) -> Result<Option<EnvLock>> {
        match EnvLock::try_acquire(self.store(), &env.instance) {
            Ok(lock) => Ok(Some(lock)),
            Err(StoreError::Locked { holder, .. })
                if self.store().waits() && wait.start.elapsed() < PATIENCE =>
            {
                wait.say(&env.name, &holder);
                std::thread::sleep(PAUSE);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn unexpected(&self, env: &Metadata, answer: &Answer) -> Error {
        tracing::debug!(?answer, "unexpected answer");
        self.serving_error(env, "gave an answer that this version does not know")
    }
}

/// A wait for a process that holds the environment.
struct Waiting {
    start: Instant,
    said: bool,
    /// A request has already gone without an answer.
    unanswered: bool,
}

impl Waiting {
    fn begin() -> Waiting {
        Waiting { start: Instant::now(), said: false, unanswered: false }
    }

    /// If the wait has become long, logs once which process holds the environment.
    fn say(&mut self, env: &str, holder: &str) {
        if !self.said && self.start.elapsed() > lock::PATIENCE {
            self.said = true;
            tracing::warn!("waiting for environment {env}: {holder} holds it");
        }
    }
}

/// Performs a request on an open environment, except requests about the mount itself.
pub(in crate::engine) fn perform(instance: &Instance, request: &Request) -> Result<Answer> {
    Ok(match request {
        Request::Commit { name, message, paths } => {
            Answer::Commit(instance.commit(&bytes(paths), name.as_deref(), message.as_deref(), Wait::Long)?)
        }
        Request::Restore { reference, paths, times } => {
            Answer::Restore(instance.restore(reference, &bytes(paths), *times, Wait::Long)?)
        }
        Request::RemoveSnapshots { references } => {
            Answer::Removed(instance.remove_snapshots(references, Wait::Long)?)
        }
        Request::Diff { since } => {
            let changes = instance.diff(since.as_deref())?;
            Answer::Diff(changes.into_iter().map(|d| Changed::new(d.kind, d.path)).collect())
        }
        Request::Status => Answer::Status(instance.status()),
        Request::Unmount | Request::Enter { .. } | Request::Hold { .. } | Request::EndInside => {
            return Err(Error::Invalid("nothing is mounted here".to_owned()));
        }
    })
}

fn texts(paths: &[Vec<u8>]) -> Vec<PathText> {
    paths.iter().cloned().map(PathText).collect()
}

fn bytes(paths: &[PathText]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.0.clone()).collect()
}
