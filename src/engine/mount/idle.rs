//! Refusing operations on an environment in use, and unmounting what a killed session left.

use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;

use crate::engine::instance::sessions;
use crate::engine::server::socket::Request;
use crate::engine::{Engine, Error, Result};

impl Engine {
    /// Checks that the environment is not in use. Unmounts it if only `mount --all` or a killed session
    /// mounted it.
    ///
    /// # Errors
    /// [`Error::Running`] if a session is inside, [`Error::Mounted`] or [`Error::MountedElsewhere`] if a user
    /// has mounted it.
    pub(in crate::engine) fn check_idle(&self, env: &Metadata) -> Result<()> {
        if sessions::running(self, &env.instance) {
            return Err(Error::Running { env: env.name.clone() });
        }
        self.end_orphaned_session(env)?;
        match self.live_mount(&env.instance)? {
            // `mount --all` mounted it and not a user, so nobody has to be asked to unmount it.
            Some(mount) if self.is_supervised(&mount)? => {
                self.unmount_and_wait(env, &Request::Unmount).map(drop)
            }
            Some(_) => Err(self.mounted_error(env)),
            None => Ok(()),
        }
    }

    /// Takes the lock of an environment that is not in use. A mount that `mount --all` is just making may
    /// become visible only when the lock is requested; it is ended as well.
    pub(in crate::engine) fn lock_idle(&self, env: &Metadata) -> Result<EnvLock> {
        self.check_idle(env)?;
        match self.lock_unmounted(env) {
            Err(Error::Mounted { .. }) => {
                self.check_idle(env)?;
                self.lock_unmounted(env)
            }
            other => other,
        }
    }

    /// Ends the mount that a killed session made for itself and left behind.
    pub(super) fn end_orphaned_session(&self, env: &Metadata) -> Result<()> {
        let orphaned = self.live_mount(&env.instance)?.is_some_and(|mount| mount.session)
            && !sessions::running(self, &env.instance);
        if orphaned {
            tracing::info!("unmounting {}, which a killed session left mounted", env.name);
            match self.unmount_and_wait(env, &Request::EndSessions) {
                // One has begun meanwhile.
                Ok(_) | Err(Error::Running { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
