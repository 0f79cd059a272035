//! Ending everything that runs inside an environment.

use std::time::Duration;

use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;

use crate::engine::instance::sessions;
use crate::engine::server::socket::{Answer, Reply, Request};
use crate::engine::{Engine, Error, Result};
use crate::runtime::{self, Namespaces};

/// How long the `enter` and `exec` processes outside may take to notice that their commands were killed.
const PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Sends SIGTERM to everything that runs in `env`, and kills what has not ended after `time`. A mount
    /// that was made for the sessions ends too; any other stays. Returns whether anything was running.
    ///
    /// # Errors
    /// [`Error::Serving`] if the commands or the mount have not ended 30 seconds after that.
    pub fn stop(&self, env: &Metadata, time: Duration) -> Result<bool> {
        let was_running = sessions::running(self, &env.instance);
        if was_running {
            if let Some(inside) = self.inside_of(env)? {
                runtime::signal_all(inside, libc::SIGTERM)?;
            }
            sessions::end_within(self, &env.instance, time);
        }
        // Also ends sessions that start meanwhile, or were not inside yet when SIGTERM was sent.
        let deadline = Deadline::after(PATIENCE);
        let ended = deadline.until(|| {
            if !sessions::running(self, &env.instance) {
                return Ok(Some(()));
            }
            self.exchange(env, &Request::EndInside, &[])?;
            Ok::<_, Error>(None)
        })?;
        if ended.is_none() {
            return Err(self.serving_error(env, "has killed all commands, but they do not end"));
        }
        let gone = deadline.until(|| {
            let mount = self.live_mount(&env.instance)?;
            Ok::<_, Error>((!mount.is_some_and(|mount| mount.session)).then_some(()))
        })?;
        if gone.is_none() {
            return Err(self.serving_error(env, "does not end the mount of the sessions"));
        }
        Ok(was_running)
    }

    /// The namespaces of the existing inside.
    fn inside_of(&self, env: &Metadata) -> Result<Option<Namespaces>> {
        let reply = self.exchange(env, &Request::Inside, &[])?;
        match reply {
            Some(Reply { answer: Answer::Inside { namespaces }, descriptors }) if !namespaces.is_empty() => {
                Ok(Namespaces::from_parts(&namespaces, descriptors))
            }
            Some(Reply { answer: Answer::Failed { errno, reason }, .. }) => {
                Err(Error::Served { errno, reason })
            }
            _ => Ok(None),
        }
    }
}
