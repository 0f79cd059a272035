//! Renaming an environment.

use karapace_store::inode::Timestamp;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;

use crate::engine::{Engine, Result};

impl Engine {
    /// Renames `env`. It must not be mounted, because mount points are named after environments.
    ///
    /// # Errors
    /// [`Error::NameTaken`](crate::engine::Error::NameTaken);
    /// [`Error::Running`](crate::engine::Error::Running) and
    /// [`Error::Mounted`](crate::engine::Error::Mounted) while it is in use.
    pub fn rename(&self, env: &Metadata, name: &str) -> Result<()> {
        // Refuses early, before waiting for another command. The check below is the one that counts.
        self.check_name_free(name, Some(&env.instance))?;
        let _lock = self.lock_idle(env)?;
        let _shared = StoreLock::shared(self.store())?;
        let _names = self.lock_names()?;
        self.check_name_free(name, Some(&env.instance))?;
        let mut current = Metadata::load(self.store(), &env.instance)?;
        current.name = name.to_owned();
        current.updated_at = Timestamp::now();
        current.save(self.store())?;
        Ok(())
    }
}
