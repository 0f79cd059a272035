//! Freezing and archiving.

use karapace_store::inode::Timestamp;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{EnvState, Metadata};

use crate::description::lifecycle;
use crate::engine::{Engine, Result};

impl Engine {
    /// Freezes `env`, which must not be mounted. From then on nothing in it changes; it can be mounted and
    /// entered read-only.
    pub fn freeze(&self, env: &Metadata) -> Result<()> {
        self.change_state(env, EnvState::Frozen)
    }

    /// Archives `env`, which must not be mounted. From then on it is kept, and cannot be entered.
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
