//! Freezing and archiving.

use karapace_store::inode::Timestamp;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{EnvState, Metadata};

use crate::description::lifecycle;
use crate::engine::{Engine, Result};

impl Engine {
    /// From now on nothing changes in `env`; it can be mounted and entered read-only. Unmounted environments
    /// only.
    pub fn freeze(&self, env: &Metadata) -> Result<()> {
        self.change_state(env, EnvState::Frozen)
    }

    /// From now on `env` is kept and not entered. Unmounted environments only.
    pub fn archive(&self, env: &Metadata) -> Result<()> {
        self.change_state(env, EnvState::Archived)
    }

    fn change_state(&self, env: &Metadata, to: EnvState) -> Result<()> {
        lifecycle::check(env.state, to)?;
        let _lock = self.lock_idle(env)?;
        let _shared = StoreLock::shared(self.store())?;
        let mut current = Metadata::load(self.store(), &env.instance)?;
        lifecycle::check(current.state, to)?;
        current.state = to;
        current.updated_at = Timestamp::now();
        current.save(self.store())?;
        Ok(())
    }
}
