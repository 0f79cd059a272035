use karapace_store::integrity::{Finding, Verified};
use serde_json::json;

use crate::cli::ui::{self, Bars, Failure};
use crate::cli::{Global, exit};
use crate::engine::upkeep::verify::{Repaired, verify, verify_and_repair};

/// Read the whole store and check everything in it
///
/// Prints each finding: what it is, which environments and snapshots need it. Exit status 3 when one of them
/// is damage. Mounts and other commands go on meanwhile; a collection waits. Without --repair nothing is
/// changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Mend what can be mended, set aside in quarantine/ what is damaged, and check again. Nothing is deleted
    ///
    /// A single wrong bit is turned back where a hash proves which. Block lists are made anew from the data.
    /// Content of a base comes again from its image, where that is still at hand. What is damaged beyond that
    /// is moved to quarantine/ in the store, so that the next import or commit of the same content stores it
    /// anew.
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
        ui::remark("the store is whole");
        return Ok(());
    }
    ui::remark(&format!("{damage} findings of damage"));
    let affected = affected(&result.after);
    if !affected.is_empty() {
        ui::remark(&format!(
            "affected: {}. What is not named there is whole. `karapace restore` goes to another snapshot, `karapace snapshots rm` \
             removes a damaged one, importing the image again brings its content back",
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
