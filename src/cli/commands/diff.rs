use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::cli::writer::{self, Line};
use crate::engine::instance::diff::Changed;

/// Show what was added (A), modified (M) and deleted (D)
///
/// Without a snapshot: since the head. With one: since that one. With two: between them.
///
/// A path that is not plain text, or begins with a quote, is quoted as git does it: "/a\nb", with \n, \t, \",
/// \\ and the like, and other bytes in octal (\033).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// From this snapshot
    #[arg(conflicts_with = "base")]
    from: Option<String>,
    /// To this snapshot. Default: the environment as it is now
    to: Option<String>,
    /// Since the base layer
    #[arg(long)]
    base: bool,
    /// End each entry with a NUL instead of a newline, and print paths unquoted
    #[arg(short = 'z', long, conflicts_with = "json")]
    null: bool,
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
        if self.null {
            let entry = |change: &Changed| {
                [format!("{} ", change.kind.letter()).as_bytes(), &change.path.0, b"\0"].concat()
            };
            return Ok(writer::raw(&changes.iter().flat_map(entry).collect::<Vec<u8>>())?);
        }
        writer::print(changes.iter().map(|change| {
            let letter = change.kind.letter().to_string();
            Line::default().styled(ui::change(change.kind), &letter).text(" ").path(&change.path.0)
        }))?;
        Ok(())
    }
}
