use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Unmount an environment
///
/// Everything written is kept. Also clears a mount point that a killed server left behind.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Environment (name, env_id or unique prefix), or the directory it is mounted on
    #[arg(value_name = "ENV|DIR", required_unless_present = "all")]
    target: Option<String>,
    /// Unmount all environments, and end `karapace mount --all`
    #[arg(long, conflicts_with = "target")]
    all: bool,
    /// For a mount that hangs or is in use: abort everything that waits for it, and end its server and what
    /// runs inside. Nothing that was written is lost
    #[arg(long, conflicts_with = "all")]
    force: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.all {
            return super::mount_all::umount_all(global);
        }
        let target = self.target.as_deref().unwrap_or_default();
        if self.force {
            let forced = global.engine()?.umount_by_force(target)?;
            forced.done.iter().for_each(|done| ui::remark(done));
            if global.json() {
                ui::json(&json!({ "dir": forced.dir.display().to_string(), "done": forced.done }))?;
            }
            return Ok(());
        }
        let dir = global.engine()?.umount(target)?;
        if global.json() {
            ui::json(&json!({ "dir": dir.display().to_string() }))?;
        }
        Ok(())
    }
}
