use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, menu};

/// Rename an environment that is not mounted
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// The new name
    name: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        engine.rename(&env, &self.name)?;
        if let Some(menu) = menu() {
            engine.rename_apps(&env.name, &self.name, &menu);
        }
        if global.json() {
            ui::json(&json!({ "env_id": env.env_id, "name": self.name }))?;
        }
        Ok(())
    }
}
