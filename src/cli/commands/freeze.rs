use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Make an environment read-only for good; it must not be mounted
///
/// It can still be mounted and entered, read-only.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        engine.freeze(&env)?;
        if global.json() {
            ui::json(&json!({ "name": env.name, "env_id": env.env_id, "state": "Frozen" }))?;
        }
        Ok(())
    }
}
