//! Making a snapshot.

use karapace_store::metadata::Metadata;

use super::instance::{CommitOutcome, check_snapshot_name};
use super::{Engine, Result};

impl Engine {
    /// Makes a snapshot of what `env` is now, durable on return.
    pub fn commit(&self, env: &Metadata, name: Option<&str>, message: Option<&str>) -> Result<CommitOutcome> {
        name.map(check_snapshot_name).transpose()?;
        self.request_commit(env, name, message)
    }
}
