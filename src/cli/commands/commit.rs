use std::ffi::OsString;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Make a snapshot of an environment
///
/// If nothing has changed, makes no snapshot and prints the head's hash.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// Name for the snapshot
    #[arg(long)]
    name: Option<String>,
    /// A description of the snapshot
    #[arg(short, long)]
    message: Option<String>,
    /// Only these paths, from the environment's root, and the targets of their links; the rest stays
    /// uncommitted
    #[arg(last = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let outcome =
            engine.commit(&env, &ui::bytes(&self.paths), self.name.as_deref(), self.message.as_deref())?;
        if outcome.created {
            engine.durability_remarks(false)?.iter().for_each(|said| ui::remark(said));
        }
        if global.json() {
            ui::json(&outcome)?;
            return Ok(());
        }
        if outcome.created {
            let (added, modified, deleted) = (outcome.added, outcome.modified, outcome.deleted);
            ui::remark(&format!("{added} added, {modified} modified, {deleted} deleted"));
        } else {
            ui::remark("nothing has changed");
        }
        ui::line(&outcome.hash.to_hex())?;
        Ok(())
    }
}
