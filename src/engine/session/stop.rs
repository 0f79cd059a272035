//! Ending everything that runs inside an environment.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use karapace_store::metadata::Metadata;

use crate::engine::instance::sessions;
use crate::engine::server::socket::{Answer, Reply, Request};
use crate::engine::{Engine, Error, Result};
use crate::runtime::{self, Namespaces};

/// How long the `enter` and `exec` processes outside may take to notice that their commands were killed.
const PATIENCE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(20);

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
            let end = Instant::now() + time;
            while sessions::running(self, &env.instance) && Instant::now() < end {
                std::thread::sleep(PAUSE);
            }
        }
        // Also ends sessions that start meanwhile, or were not inside yet when SIGTERM was sent.
        let end = Instant::now() + PATIENCE;
        while sessions::running(self, &env.instance) {
            if Instant::now() > end {
                return Err(self.serving_error(env, "has killed all commands, but they do not end"));
            }
            self.exchange(env, &Request::EndInside, &[])?;
            std::thread::sleep(PAUSE);
        }
        while self.live_mount(&env.instance)?.is_some_and(|mount| mount.session) {
            if Instant::now() > end {
                return Err(self.serving_error(env, "does not end the mount of the sessions"));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(was_running)
    }

    /// The namespaces of the existing inside.
    fn inside_of(&self, env: &Metadata) -> Result<Option<Namespaces>> {
        let reply = self.exchange(env, &Request::Enter { user: None }, &[])?;
        let (entrance, mut descriptors): (_, Vec<OwnedFd>) = match reply {
            Some(Reply { answer: Answer::Entrance(entrance), descriptors }) => (entrance, descriptors),
            Some(Reply { answer: Answer::Failed { errno, reason }, .. }) => {
                return Err(Error::Served { errno, reason });
            }
            _ => return Ok(None),
        };
        let kept = descriptors.split_off(entrance.ground.len().min(descriptors.len()));
        Ok(entrance.inside.and_then(|(_, names)| Namespaces::from_parts(&names, kept)))
    }
}
