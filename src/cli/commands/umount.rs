use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Unmount an environment
///
/// Everything written stays with the environment. Also clears a mount point that a killed process left behind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Environment (name, env_id or unique prefix), or the directory it is mounted on
    #[arg(value_name = "ENV|DIR", required_unless_present = "all")]
    target: Option<String>,
    /// Unmount all environments, and end `karapace mount --all`
    #[arg(long, conflicts_with = "target")]
    all: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.all {
            return super::mount_all::umount_all(global);
        }
        let dir = global.engine()?.umount(self.target.as_deref().unwrap_or_default())?;
        if global.json() {
            ui::json(&json!({ "dir": dir.display().to_string() }))?;
        }
        Ok(())
    }
}
