use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::snapshots::snapshots;

/// List the snapshots of an environment, newest last
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let lines = snapshots(&env);
        if global.json() {
            ui::json(&lines)?;
            return Ok(());
        }
        let row = |line: &crate::engine::snapshots::SnapshotLine| {
            let time = line.created_at.split('.').next().unwrap_or_default().replace('T', " ");
            // A message may have several lines; a list shows the first.
            let message = line.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
            vec![
                if line.head { "*" } else { "" }.to_owned(),
                line.hash.clone(),
                line.name.clone().unwrap_or_else(|| "-".to_owned()),
                time,
                message.to_owned(),
            ]
        };
        ui::table(
            &["HEAD", "HASH", "NAME", "TIME (UTC)", "MESSAGE"],
            &lines.iter().map(row).collect::<Vec<_>>(),
        )?;
        Ok(())
    }
}
