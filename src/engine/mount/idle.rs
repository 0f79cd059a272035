//! What may not be done to an environment in use, and what a killed session left mounted.

use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;

use crate::engine::instance::sessions;
use crate::engine::{Engine, Error, Result};

impl Engine {
    /// Refuses what may not be done to an environment in use.
    pub(in crate::engine) fn check_idle(&self, env: &Metadata) -> Result<()> {
        if sessions::running(self, &env.instance) {
            return Err(Error::Running { env: env.name.clone() });
        }
        self.end_orphaned_session(env)?;
        match self.live_mount(&env.instance)? {
            // Who mounted it was no user, who would have to unmount it.
            Some(mount) if self.is_supervised(&mount)? => self.unmount_and_wait(env).map(|_| ()),
            Some(_) => Err(self.mounted_error(env)),
            None => Ok(()),
        }
    }

    /// Takes the lock of an environment that is not in use. A mount that somebody's `mount --all` just makes
    /// may show only when the lock is asked for: it is ended as well.
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

    /// Unmounts what a killed session left mounted for itself.
    pub(super) fn end_orphaned_session(&self, env: &Metadata) -> Result<()> {
        let orphaned = self.live_mount(&env.instance)?.is_some_and(|mount| mount.session)
            && !sessions::running(self, &env.instance);
        if orphaned {
            tracing::info!("unmounting what a killed session of {} left", env.name);
            self.unmount_and_wait(env)?;
        }
        Ok(())
    }
}
