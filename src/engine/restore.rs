//! Going back to a snapshot.

use karapace_store::metadata::Metadata;

use super::instance::RestoreOutcome;
use super::{Engine, Result};

impl Engine {
    /// Makes `env` equal to a snapshot (see [`super::reference`]); uncommitted changes are committed first.
    pub fn restore(&self, env: &Metadata, reference: &str) -> Result<RestoreOutcome> {
        self.request_restore(env, reference)
    }
}
