//! Destroying an environment.

use karapace_store::fail;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::wal::{Intent, Wal};

use crate::engine::At as _;
use crate::engine::{Engine, Error, Result};

impl Engine {
    /// Removes `env` with its snapshots and uncommitted changes. Its content stays in the store until gc.
    /// Named snapshots are removed only if `snapshots` is true.
    ///
    /// # Errors
    /// [`Error::Running`] and [`Error::Mounted`] while it is in use, [`Error::NamedSnapshots`] if it has
    /// named snapshots and `snapshots` is false.
    pub fn destroy(&self, env: &Metadata, snapshots: bool) -> Result<()> {
        check_destroy(env, snapshots)?;
        let lock = self.lock_idle(env)?;
        let _shared = StoreLock::shared(self.store())?;
        // A snapshot may have been named while we waited.
        check_destroy(&Metadata::load(self.store(), &env.instance)?, snapshots)?;
        if let Some(old) = self.recorded_mount(&env.instance)? {
            old.clear_stale()?;
        }
        let intent = Wal::begin(self.store(), Intent::Destroy { instance: env.instance })?;
        // From here on the environment is gone. After a crash, the next start removes its directory.
        Metadata::delete(self.store(), &env.instance)?;
        let dir = self.env_dir(&env.instance);
        let removed = fail::point("destroy.dir").and_then(|()| self.remove_env_dir(&dir, lock));
        removed.at("remove", &dir)?;
        intent.finish()?;
        Ok(())
    }
}

/// Refuses if `env` has named snapshots and `snapshots` is false.
///
/// # Errors
/// [`Error::NamedSnapshots`].
pub fn check_destroy(env: &Metadata, snapshots: bool) -> Result<()> {
    let names: Vec<String> = env.snapshots.iter().filter_map(|s| s.name.clone()).collect();
    if snapshots || names.is_empty() {
        return Ok(());
    }
    Err(Error::NamedSnapshots { env: env.name.clone(), names })
}
