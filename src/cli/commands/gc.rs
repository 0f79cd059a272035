use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::gc::collect;

/// Remove from the store what no environment uses
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let report = collect(&global.engine()?, self.dry_run, &Bars::stoppable())?;
        if global.json() {
            ui::json(&json!({
                "dry_run": self.dry_run, "objects": report.objects, "layers": report.layers, "bytes": report.bytes,
            }))?;
            return Ok(());
        }
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        let (objects, layers, size) = (report.objects, report.layers, ui::size(report.bytes));
        ui::line(&format!("{objects} objects and {layers} layers {verb}, {size}"))?;
        Ok(())
    }
}
