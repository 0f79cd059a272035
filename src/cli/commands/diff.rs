use std::io::Write;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Show what was added (A), modified (M) and deleted (D)
///
/// Without a snapshot: since the last one. With one: since that. With two: between them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// From this snapshot
    #[arg(conflicts_with = "base")]
    from: Option<String>,
    /// To this snapshot, instead of what the environment is now
    to: Option<String>,
    /// Since the base layer
    #[arg(long)]
    base: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let from = if self.base { Some("base") } else { self.from.as_deref() };
        let changes = match (from, &self.to) {
            (Some(from), Some(to)) => engine.diff_between(&env, from, to)?,
            (Some(from), None) => engine.diff_since(&env, from)?,
            (None, _) => engine.diff(&env)?,
        };
        if global.json() {
            ui::json(&changes)?;
            return Ok(());
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for change in &changes {
            write!(out, "{} ", ui::change(change.kind))?;
            out.write_all(&ui::path_line(&change.path.0))?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        Ok(())
    }
}
