use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, exit, menu};
use crate::engine::record::destroy::check_destroy;

/// Remove an environment with its snapshots and uncommitted changes
///
/// The next `karapace gc` frees what only this environment used. Programs that `export-app` added to the menu
/// are removed too. If snapshots have names, nothing is removed unless --snapshots is given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// Do not ask for confirmation
    #[arg(short, long)]
    yes: bool,
    /// Remove the environment even if snapshots have names
    #[arg(long)]
    snapshots: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let what = format!("{} (env_id {}) with {} snapshots", env.name, env.short_id(), env.snapshots.len());
        check_destroy(&env, self.snapshots)?;
        if !self.yes {
            match ui::confirm(&format!("Remove {what}?"))? {
                Some(true) => {}
                Some(false) => {
                    ui::remark("nothing was removed");
                    return Err(Failure::Status(exit::FAILURE));
                }
                None => {
                    ui::complain(&format!("karapace: this removes {what}: confirm with --yes"));
                    return Err(Failure::Status(exit::FAILURE));
                }
            }
        }
        engine.destroy(&env, self.snapshots)?;
        if let Some(menu) = menu() {
            engine.forget_apps(&env.name, &menu);
        }
        if global.json() {
            ui::json(&json!({ "name": env.name, "env_id": env.env_id, "destroyed": true }))?;
        }
        Ok(())
    }
}
