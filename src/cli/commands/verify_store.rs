use karapace_store::integrity::Finding;
use serde_json::json;

use crate::cli::ui::{self, Bars, Failure};
use crate::cli::{Global, exit};
use crate::engine::verify::verify;

/// Read the whole store and check everything in it
///
/// Prints each finding. Exit status 3 when one of them is damage.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let findings = verify(&global.engine()?, &Bars::on_stderr())?;
        let damage = findings.iter().filter(|finding| finding.is_damage()).count();
        if global.json() {
            let line = |f: &Finding| json!({ "damage": f.is_damage(), "finding": f.to_string() });
            ui::json(&findings.iter().map(line).collect::<Vec<_>>())?;
        } else {
            for finding in &findings {
                ui::line(&finding.to_string())?;
            }
            ui::remark(&match damage {
                0 => "the store is whole".to_owned(),
                n => format!("{n} findings of damage"),
            });
        }
        if damage == 0 { Ok(()) } else { Err(Failure::Status(exit::STORE)) }
    }
}
