use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Archive a frozen environment: it is kept, but can no longer be mounted or entered
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        engine.archive(&env)?;
        if global.json() {
            ui::json(&json!({ "name": env.name, "env_id": env.env_id, "state": "Archived" }))?;
        }
        Ok(())
    }
}
