use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::instance::snapshots::snapshots;

/// List the snapshots of an environment, newest last, or remove some
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Sub>,
    /// Name, env_id or unique prefix
    #[arg(required = true)]
    env: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Sub {
    Rm(Rm),
}

/// Remove snapshots
///
/// Other snapshots are not affected, even those made on top of a removed one. The next gc frees what only the
/// removed ones used. The environment's head cannot be removed.
#[derive(Debug, clap::Args)]
struct Rm {
    /// Name, env_id or unique prefix
    env: String,
    /// Hash, unique prefix of 4 or more digits, name, latest, or ~k for the k-th parent of head
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

impl Rm {
    fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let outcome = engine.remove_snapshots(&env, &self.snapshots)?;
        if global.json() {
            ui::json(&outcome)?;
            return Ok(());
        }
        outcome.removed.iter().try_for_each(|hash| ui::line(&hash.to_hex()))?;
        Ok(())
    }
}

impl Args {
    /// Whether it only lists.
    pub fn only_reads(&self) -> bool {
        self.command.is_none()
    }

    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if let Some(Sub::Rm(rm)) = &self.command {
            return rm.run(global);
        }
        let engine = global.engine()?;
        let env = engine.find(self.env.as_deref().unwrap_or_default())?;
        let lines = snapshots(&env);
        if global.json() {
            ui::json(&lines)?;
            return Ok(());
        }
        if global.quiet() {
            lines.iter().try_for_each(|line| ui::line(&line.hash))?;
            return Ok(());
        }
        let row = |line: &crate::engine::instance::snapshots::SnapshotLine| {
            let time = line.created_at.split('.').next().unwrap_or_default().replace('T', " ");
            // A message may have several lines; a list shows the first.
            let message = line.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
            vec![
                if line.head { "*" } else { "" }.to_owned(),
                line.hash.clone(),
                if line.names.is_empty() { "-".to_owned() } else { line.names.join(", ") },
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
