//! Listing environments.

use karapace_store::error::StoreError;
use karapace_store::metadata::Metadata;

use super::inspect::Summary;
use crate::engine::{Engine, Result};

impl Engine {
    /// All environments by name, and the errors of the records that cannot be read.
    pub fn list(&self) -> Result<(Vec<Summary>, Vec<StoreError>)> {
        let (mut environments, mut unreadable) = (Vec::new(), Vec::new());
        for loaded in Metadata::list(self.store())? {
            match loaded {
                Ok(env) => environments.push(self.summary(&env)),
                Err(error) => unreadable.push(error),
            }
        }
        Ok((environments, unreadable))
    }
}
