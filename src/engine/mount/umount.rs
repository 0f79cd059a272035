//! Ending mounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;

use super::holders::{Holder, holders, named, users};
use crate::engine::instance::sessions;
use crate::engine::mountpoint;
use crate::engine::mountpoint::SOURCE;
use crate::engine::server::access::UNKNOWN_ANSWER;
use crate::engine::server::client::Client;
use crate::engine::server::info::MountInfo;
use crate::engine::server::socket::{Answer, Request};
use crate::engine::{Engine, Error, Result};

/// How long the serving process may take to write its checkpoint after the mount is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the wait looks for processes that keep the mount alive.
const LOOK: Duration = Duration::from_secs(1);

impl Engine {
    /// Unmounts an environment, or the directory `target` on which an environment or a snapshot is mounted.
    /// Returns the directory, once the serving process is done.
    ///
    /// # Errors
    /// [`Error::NotMounted`], [`Error::DirBusy`] if a snapshot's mount is in use, and those of
    /// [`Engine::umount_env`].
    pub fn umount(&self, target: &str) -> Result<PathBuf> {
        match self.mount_named(target)? {
            (Some(env), _) => self.umount_env(&env),
            (None, dir) => match mountpoint::unmount(&dir, false) {
                Err(Error::DirBusy { dir, .. }) => Err(busy(dir)),
                unmounted => unmounted.map(|()| dir),
            },
        }
    }

    /// The environment that a command line names, and its mount point if one is recorded. If the environment
    /// is `None`, a snapshot is mounted on the directory.
    pub(super) fn mount_named(&self, target: &str) -> Result<(Option<Metadata>, PathBuf)> {
        if !target.contains('/') {
            match self.find(target) {
                Ok(env) => {
                    let mount = self.recorded_mount(&env.instance)?;
                    return Ok((Some(env), mount.map_or_else(PathBuf::new, |mount| mount.dir)));
                }
                Err(error) if fs::symlink_metadata(target).is_err() => return Err(error),
                Err(_) => {}
            }
        }
        let dir = mountpoint::absolute(Path::new(target))?;
        for env in Metadata::list(self.store())?.into_iter().flatten() {
            if self.recorded_mount(&env.instance)?.is_some_and(|mount| mount.dir == dir) {
                return Ok((Some(env), dir));
            }
        }
        match mountpoint::fuse_source(&dir)? {
            Some(source) if source.starts_with(SOURCE) => Ok((None, dir)),
            _ => Err(Error::NotMounted { what: target.to_owned() }),
        }
    }

    /// Unmounts an environment and waits until its lock is free, unless sessions go on in a mount of their
    /// own. Returns its mount point.
    ///
    /// # Errors
    /// [`Error::Running`] if a session uses that mount, [`Error::NotMounted`], [`Error::Held`], and
    /// [`Error::Served`] if the serving process refuses.
    pub fn umount_env(&self, env: &Metadata) -> Result<PathBuf> {
        let is_apart = || {
            Ok::<_, Error>(self.recorded_mount(&env.instance)?.is_some_and(|m| m.is_apart_from_sessions()))
        };
        if sessions::running(self, &env.instance) && !is_apart()? {
            return Err(Error::Running { env: env.name.clone() });
        }
        self.unmount_and_wait(env, &Request::Unmount)
    }

    /// Has a mount ended by `request`, and waits until the environment's lock is free, unless the process
    /// goes on for another mount.
    pub(in crate::engine) fn unmount_and_wait(&self, env: &Metadata, request: &Request) -> Result<PathBuf> {
        let mount = self.recorded_mount(&env.instance)?;
        let (Some(client), Some(mount)) =
            (Client::connect(self.store().files(), &self.env_dir(&env.instance))?, &mount)
        else {
            return self.clear_dead(env, mount);
        };
        match self.ask(env, client, request)? {
            // No answer means that the process has ended, and its mount with it.
            None | Some(Answer::Unmounted | Answer::Ending) => {}
            Some(Answer::Failed { errno: libc::EBUSY, .. }) => {
                return Err(self.busy_error(env, mount, request));
            }
            Some(Answer::Failed { errno, reason }) => return Err(Error::Served { errno, reason }),
            _ => return Err(self.serving_error(env, UNKNOWN_ANSWER)),
        }
        self.wait_for_end(env, mount)?;
        // In case the process was killed.
        mountpoint::clear_stale(&mount.dir)?;
        Ok(mount.dir.clone())
    }

    /// Why the server found a mount busy: a session uses it, or something on the host.
    fn busy_error(&self, env: &Metadata, mount: &MountInfo, request: &Request) -> Error {
        let is_apart = || {
            let now = self.recorded_mount(&env.instance);
            now.is_ok_and(|now| now.is_some_and(|now| now.is_apart_from_sessions()))
        };
        let of_sessions = *request == Request::EndSessions || mount.session;
        if sessions::running(self, &env.instance) && (of_sessions || !is_apart()) {
            return Error::Running { env: env.name.clone() };
        }
        busy(mount.dir.clone())
    }

    /// Waits until the process that served the mount is done, or goes on for sessions. The mount is already
    /// gone here.
    ///
    /// # Errors
    /// [`Error::Held`] if processes still have the mount in another mount namespace, or have files open on
    /// it.
    fn wait_for_end(&self, env: &Metadata, mount: &MountInfo) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        let mut next_look = LOOK;
        let mut before: Vec<Holder> = Vec::new();
        while EnvLock::holder(self.store(), &env.instance)?.is_some() {
            let is_for_host =
                || Ok::<_, Error>(self.recorded_mount(&env.instance)?.is_some_and(|now| !now.session));
            if sessions::running(self, &env.instance) || (mount.session && is_for_host()?) {
                return Ok(());
            }
            if deadline.has_passed() {
                return Err(self.serving_error(env, "has unmounted, but does not end"));
            }
            if deadline.waited() > next_look {
                next_look += LOOK;
                let mut found = mount.device.map(holders).unwrap_or_default();
                found.retain(|holder| holder.pid != mount.pid);
                // A process that is just ending is gone at the next look.
                let stay: Vec<Holder> =
                    found.iter().filter(|holder| before.contains(holder)).cloned().collect();
                if !stay.is_empty() {
                    return Err(Error::Held { env: env.name.clone(), holders: named(&stay) });
                }
                before = found;
            }
            deadline.pause();
        }
        Ok(())
    }

    /// For an environment that nobody serves: clears the mount points that a killed process may have left.
    fn clear_dead(&self, env: &Metadata, mount: Option<MountInfo>) -> Result<PathBuf> {
        match mount {
            Some(mount) if mountpoint::is_stale(&mount.dir) => {
                mount.clear_stale()?;
                Ok(mount.dir)
            }
            _ => Err(Error::NotMounted { what: env.name.clone() }),
        }
    }
}

/// The error for a mount that is in use, with what uses it.
fn busy(dir: PathBuf) -> Error {
    let users = users(&dir).unwrap_or_else(|error| {
        tracing::debug!("cannot look for what uses {}: {error}", dir.display());
        String::new()
    });
    Error::DirBusy { dir, users }
}
