use karapace_store::integrity::{Finding, Verified};
use serde_json::json;

use crate::cli::ui::{self, Bars, Failure};
use crate::cli::{Global, exit};
use crate::engine::upkeep::verify::{Repaired, verify, verify_and_repair};

/// Read the whole store and check everything in it
///
/// Prints each finding, and which environments and snapshots it affects. The exit status is 3 if any finding
/// is damage. Mounts and other commands continue meanwhile; gc waits. Without --repair nothing is changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Repair what can be repaired, move the rest of what is damaged to quarantine/, and check again. Nothing
    /// is deleted
    ///
    /// A single flipped bit is flipped back if a hash proves which one it is. Block lists are rebuilt from
    /// the data. Content of a base is read from its image again if that is still available. Anything else
    /// that is damaged is moved to quarantine/ in the store, so that the next import or commit of the same
    /// content stores it again.
    #[arg(long)]
    repair: bool,
}

impl Args {
    /// Whether the command repairs nothing.
    pub fn only_reads(&self) -> bool {
        !self.repair
    }

    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let bars = Bars::on_stderr();
        let result = match (global.engine_if_any()?, self.repair) {
            (Some(engine), true) => verify_and_repair(&engine, &bars)?,
            (Some(engine), false) => Repaired::from(verify(&engine, &bars)?),
            (None, _) => Repaired::from(Verified::default()),
        };
        let damage = result.after.findings.iter().filter(|finding| finding.is_damage()).count();
        match global.json() {
            true => print_json(&result, damage)?,
            false => print(&result, damage)?,
        }
        if damage == 0 { Ok(()) } else { Err(Failure::Status(exit::STORE)) }
    }
}

fn print(result: &Repaired, damage: usize) -> Result<(), Failure> {
    for action in &result.actions {
        ui::line(&format!("repair: {}", action.message))?;
    }
    for finding in &result.after.findings {
        ui::line(&finding.to_string())?;
    }
    if damage == 0 {
        ui::remark("the store is intact");
        return Ok(());
    }
    ui::remark(&format!("{damage} findings of damage"));
    let affected = affected(&result.after);
    if !affected.is_empty() {
        ui::remark(&format!(
            "affected: {}. Everything else is intact. What to do: restore another snapshot, remove the damaged one (`karapace \
             snapshots rm`), or import the image again, which stores its content anew",
            affected.join(", ")
        ));
    }
    Ok(())
}

fn print_json(result: &Repaired, damage: usize) -> Result<(), Failure> {
    let verified = &result.after;
    ui::json(&json!({
        "findings": verified.findings,
        "actions": result.actions,
        "summary": {
            "whole": damage == 0,
            "damage": damage,
            "findings": verified.findings.len(),
            "objects": verified.objects,
            "bytes": verified.bytes,
            "affected": affected(verified),
        },
    }))?;
    Ok(())
}

/// The environments and snapshots that need something damaged, sorted.
fn affected(verified: &Verified) -> Vec<String> {
    let named = |finding: &Finding| {
        let names = if finding.affected.is_empty() { &finding.environments } else { &finding.affected };
        names.clone()
    };
    let damage = verified.findings.iter().filter(|finding| finding.is_damage());
    let mut names: Vec<String> = damage.flat_map(named).collect();
    names.sort_unstable();
    names.dedup();
    names
}
