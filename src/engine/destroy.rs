//! Ending an environment.

use karapace_store::fail;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::wal::{Intent, Wal};

use super::{Engine, Error, Result, mountpoint};

impl Engine {
    /// Removes `env` with its snapshots and uncommitted changes. Its content stays in the store until gc.
    ///
    /// # Errors
    /// [`Error::Running`] and [`Error::Mounted`] while it is in use.
    pub fn destroy(&self, env: &Metadata) -> Result<()> {
        self.check_idle(env)?;
        let lock = self.lock_unmounted(env)?;
        let _shared = StoreLock::shared(self.store())?;
        if let Some(old) = self.recorded_mount(&env.instance)? {
            mountpoint::clear_stale(&old.dir)?;
        }
        let intent = Wal::begin(self.store(), Intent::Destroy { instance: env.instance })?;
        // From here on it is gone; a crash leaves a directory that the next start removes.
        Metadata::delete(self.store(), &env.instance)?;
        let dir = self.env_dir(&env.instance);
        let removed = fail::point("destroy.dir").and_then(|()| std::fs::remove_dir_all(&dir));
        removed.map_err(|e| Error::io("remove", &dir, e))?;
        drop(lock);
        intent.finish()?;
        Ok(())
    }
}
