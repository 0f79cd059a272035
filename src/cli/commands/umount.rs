use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Unmount an environment
///
/// Everything written stays with the environment. Also clears a mount point that a killed process left behind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Environment (name, env_id or unique prefix), or the directory it is mounted on
    #[arg(value_name = "ENV|DIR")]
    target: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let dir = global.engine()?.umount(&self.target)?;
        if global.json() {
            ui::json(&json!({ "dir": dir.display().to_string() }))?;
        }
        Ok(())
    }
}
