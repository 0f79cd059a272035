use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::Error;
use crate::engine::instance::reference;
use crate::engine::make::clone::CloneFrom;

/// Make a second environment that shares all data with the first
///
/// Takes no time and no space, whatever the size. The head of the new environment is the first one's head, or
/// the snapshot named after @; it lists that snapshot and its ancestors. Uncommitted changes are not
/// included, and a note says so, unless --commit is given. The new environment is writable even if the first
/// is frozen or archived.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix; with @ and a snapshot (hash, prefix, name, latest, base or ~k) that one
    #[arg(value_name = "ENV[@SNAPSHOT]")]
    env: String,
    /// Name of the new environment
    #[arg(long)]
    name: String,
    /// Commit the first one's changes first, so that the new one has them too
    #[arg(long)]
    commit: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let (env, snapshot) = reference::split(&self.env);
        let from = match (snapshot, self.commit) {
            (None, false) => CloneFrom::Head,
            (None, true) => CloneFrom::Commit,
            (Some(snapshot), false) => CloneFrom::Snapshot(snapshot),
            (Some(_), true) => {
                let reason = "--commit clones the environment as it is now: leave out the snapshot";
                return Err(Error::Invalid(reason.to_owned()).into());
            }
        };
        let origin = engine.find(env)?;
        let made = engine.clone_env(&origin, from, &self.name, &Bars::on_stderr())?;
        if global.json() {
            ui::json(&json!({
                "name": made.name, "env_id": made.env_id, "short_id": made.short_id(), "instance": made.instance.to_hex(),
                "head": made.head, "origin": origin.name,
            }))?;
            return Ok(());
        }
        ui::remark(&format!("{} is based on {:.12} of {}", made.name, made.head, origin.name));
        // Print the instance id: the env_id is the same for both.
        ui::line(&made.instance.to_hex())?;
        Ok(())
    }
}
