use std::ffi::OsString;

use karapace_fs::control::Times;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Make an environment equal to one of its snapshots
///
/// Uncommitted changes are committed first, so that nothing is lost. With paths after `--`, only these are
/// restored, as uncommitted changes; files that change get the current time, so that make and cargo rebuild
/// what depends on them. Without paths, files get the modification times of the snapshot.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// Hash, unique prefix of 4 or more digits, name, head, latest, base, or ~k for the k-th parent of head
    snapshot: String,
    /// Set the modification time of what changes to the current time (the default with paths)
    #[arg(long, conflicts_with = "keep_times")]
    touch: bool,
    /// Keep the modification times of the snapshot (the default without paths)
    #[arg(long)]
    keep_times: bool,
    /// Only these paths, from the environment's root, and the targets of their links
    #[arg(last = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let times = match (self.touch, self.keep_times) {
            (true, _) => Some(Times::Present),
            (_, true) => Some(Times::Kept),
            _ => None,
        };
        let outcome = engine.restore(&env, &self.snapshot, &ui::bytes(&self.paths), times)?;
        if global.json() {
            ui::json(&outcome)?;
            return Ok(());
        }
        if let Some(saved) = outcome.saved {
            ui::remark(&format!("uncommitted changes are in snapshot {saved}"));
        }
        if let Some(changed) = outcome.changed {
            ui::remark(&format!("{changed} paths changed"));
        }
        ui::line(&outcome.hash.to_hex())?;
        Ok(())
    }
}
