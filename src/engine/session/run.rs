//! Running a command in a temporary environment.

use karapace_store::metadata::Metadata;
use nix::sys::signal::{SigSet, Signal};

use super::enter::EnterOptions;
use crate::engine::make::throw_away::ThrowAway;
use crate::engine::server::socket::Request;
use crate::engine::{Engine, Error, Report, Result};
use crate::runtime::{Ended, RuntimeError};

/// What a temporary environment is a copy of.
pub enum Origin<'a> {
    /// An environment, as it is now or at this snapshot.
    Environment(&'a Metadata, Option<&'a str>),
    /// An image, as `import` takes it.
    Image(&'a str),
}

impl Engine {
    /// Runs a command in a temporary copy of an environment or image, to its end; nothing else that runs in
    /// the copy outlives it. With `keep`, the copy then becomes the environment of that name, which is
    /// returned; otherwise it is gone. Its changes go to an overlay where one can be mounted.
    ///
    /// # Errors
    /// Those of [`Engine::enter`]. Nothing is kept then.
    pub fn run(
        &self,
        origin: &Origin<'_>,
        options: &EnterOptions,
        keep: Option<&str>,
        report: &dyn Report,
    ) -> Result<(Ended, Option<Metadata>)> {
        if let Some(name) = keep {
            // Before anything runs.
            self.check_name_free(name, None)?;
        }
        let mut copy = match origin {
            Origin::Environment(env, snapshot) => self.throw_away(env, *snapshot)?,
            Origin::Image(image) => self.throw_away_image(image, report)?,
        };
        let hostname = match origin {
            Origin::Environment(env, _) => Some(env.name.clone()),
            Origin::Image(_) => None,
        };
        let ended = self.run_in(&mut copy, &EnterOptions { hostname, ..options.clone() })?;
        // The first one ended the command; one more must not cost what it did, nor leave the copy.
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT]);
        let held = signals.thread_block();
        let kept = match keep {
            Some(name) => copy.keep(name, report).map(Some),
            None => {
                drop(copy);
                Ok(None)
            }
        };
        if held.is_ok()
            && let Err(errno) = signals.thread_unblock()
        {
            tracing::debug!("signals stay blocked: {errno}");
        }
        Ok((ended, kept?))
    }

    fn run_in(&self, copy: &mut ThrowAway, options: &EnterOptions) -> Result<Ended> {
        if !copy.scratch.begin_overlay()? {
            tracing::info!(
                "not with overlayfs: the root directory or the store's file system does not suit it"
            );
            return self.run_to_end(&copy.scratch.env, options);
        }
        match self.run_to_end(&copy.scratch.env, options) {
            Err(Error::Runtime(RuntimeError::NoOverlay { reason })) => {
                tracing::info!("not with overlayfs: {reason}");
                copy.scratch.end_overlay()?;
                self.run_to_end(&copy.scratch.env, options)
            }
            ended => ended,
        }
    }

    /// Runs a command, and ends everything else inside after it.
    fn run_to_end(&self, env: &Metadata, options: &EnterOptions) -> Result<Ended> {
        let ended = self.enter(env, options);
        if let Err(error) = self.exchange(env, &Request::EndInside, &[]) {
            tracing::warn!("cannot end what is left in {}: {error}", env.name);
        }
        ended
    }
}
