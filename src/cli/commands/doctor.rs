use std::process::{Command, Stdio};

use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, exit};
use crate::engine::doctor::{Check, Outcome, examine, try_user_namespace};

/// Check this machine for what Karapace needs, and say how to fix what is missing
///
/// The exit status is 1 if something is missing that mounting or entering needs. Changes nothing; works
/// without a store, too.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// This is a process that is to try one thing and end
    #[arg(long, hide = true)]
    try_user_namespace: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.try_user_namespace {
            return Ok(try_user_namespace()?);
        }
        let checks = examine(&global.store_root()?, &try_in_a_process);
        let failed = checks.iter().filter(|check| check.outcome == Outcome::Failed).count();
        if global.json() {
            ui::json(&json!({ "ok": failed == 0, "checks": checks }))?;
        } else {
            tell(&checks)?;
        }
        if failed == 0 { Ok(()) } else { Err(Failure::Status(exit::FAILURE)) }
    }
}

fn tell(checks: &[Check]) -> Result<(), Failure> {
    let row = |check: &Check| {
        let outcome = match check.outcome {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED",
        };
        vec![outcome.to_owned(), check.name.to_owned(), check.found.clone()]
    };
    ui::table(&["CHECK", "WHAT", "FOUND"], &checks.iter().map(row).collect::<Vec<_>>())?;
    let mends: Vec<_> = checks.iter().filter_map(|check| Some((check.name, check.mend.as_ref()?))).collect();
    if !mends.is_empty() {
        ui::line("")?;
        ui::line("What to do:")?;
    }
    for (name, mend) in mends {
        ui::line(&format!("  {name}: {mend}"))?;
    }
    Ok(())
}

/// Tries it in a process of its own, because a process cannot leave a user namespace again.
fn try_in_a_process() -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    command.args(["doctor", "--try-user-namespace"]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("karapace: ").to_owned())
}
