use karapace_store::gc::GcReport;
use karapace_store::inode::Timestamp;
use serde_json::json;
use std::time::Duration;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::record::retention::{Expiry, Keep, parse_age};
use crate::engine::upkeep::gc::collect;
use crate::engine::{Engine, Report};

/// Remove everything from the store that no environment uses
///
/// With --keep-last or --keep-within, first removes the other snapshots of every environment that is not
/// frozen or archived. Named snapshots and heads are always kept; with both options, a snapshot is kept if
/// either keeps it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Of each environment, keep the newest N snapshots
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// Keep snapshots that are no older than this: a number with m, h, d or w (12h, 7d, 4w)
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    keep_within: Option<Duration>,
}

impl Args {
    /// Whether the command removes nothing.
    pub fn only_reads(&self) -> bool {
        self.dry_run
    }

    fn collect(&self, engine: &Engine, bars: &Bars) -> Result<(Expiry, GcReport), Failure> {
        let keep = Keep { last: self.keep_last, within: self.keep_within };
        let expiry = if keep.last.is_some() || keep.within.is_some() {
            engine.expire(&keep, Timestamp::now(), self.dry_run, bars)?
        } else {
            Expiry::default()
        };
        let mut report = collect(engine, self.dry_run, bars)?;
        report.bytes += expiry.bytes;
        Ok((expiry, report))
    }

    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let bars = Bars::stoppable();
        let (expiry, report) = match global.engine_if_any()? {
            Some(engine) => self.collect(&engine, &bars)?,
            None => Default::default(),
        };
        if global.json() {
            ui::json(&json!({
                "dry_run": self.dry_run, "snapshots": expiry.snapshots, "objects": report.objects, "layers": report.layers,
                "bytes": report.bytes,
            }))?;
            return Ok(());
        }
        if !expiry.snapshots.is_empty() {
            let row = |s: &crate::engine::record::retention::Expired| {
                let time = s.created_at.split('.').next().unwrap_or_default().replace('T', " ");
                let message = s.message.as_deref().and_then(|m| m.lines().next()).unwrap_or_default();
                vec![s.env.clone(), s.hash[..12].to_owned(), time, message.to_owned()]
            };
            let rows: Vec<_> = expiry.snapshots.iter().map(row).collect();
            ui::table(&["ENVIRONMENT", "SNAPSHOT", "TIME (UTC)", "MESSAGE"], &rows)?;
        }
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        let snapshots = match expiry.snapshots.len() {
            0 => String::new(),
            n => format!("{n} snapshots, "),
        };
        let (objects, layers, size) = (report.objects, report.layers, ui::size(report.bytes));
        ui::line(&format!("{snapshots}{objects} objects and {layers} layers {verb}, {size}"))?;
        if self.dry_run && !expiry.snapshots.is_empty() {
            bars.note(
                "the counts leave out the objects and layers of these snapshots, the size includes them",
            );
        }
        Ok(())
    }
}
