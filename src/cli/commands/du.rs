use serde_json::json;

use crate::cli::ui::{self, Failure};
use crate::cli::{Global, exit};
use crate::engine::upkeep::du::{EnvUsage, SnapshotUsage};

/// Show how much disk space environments use, shared and exclusive
///
/// ENTRIES and SIZE describe the environment as it appears. SHARED is used by other environments too;
/// EXCLUSIVE is what `destroy` and then `gc` would free; UPPER is uncommitted. If an environment is given,
/// its snapshots are listed too: there EXCLUSIVE is what removing that snapshot alone would free (nothing for
/// the head, which cannot be removed).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix. Default: all
    env: Option<String>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if let Some(env) = &self.env {
            let engine = global.engine()?;
            let (usage, snapshots) = engine.usage_of(&engine.find(env)?)?;
            if global.json() {
                ui::json(&json!({ "environment": usage, "snapshots": snapshots }))?;
                return Ok(());
            }
            environments(&[usage])?;
            return self::snapshots(&snapshots);
        }
        let (usages, unreadable) = match global.engine_if_any()? {
            Some(engine) => engine.usage()?,
            None => Default::default(),
        };
        if global.json() {
            ui::json(&usages)?;
        } else {
            environments(&usages)?;
        }
        for error in &unreadable {
            ui::complain(&format!("karapace: {error}"));
        }
        if unreadable.is_empty() { Ok(()) } else { Err(Failure::Status(exit::STORE)) }
    }
}

fn environments(usages: &[EnvUsage]) -> Result<(), Failure> {
    let row = |u: &EnvUsage| {
        let sizes = [u.apparent_bytes, u.shared_bytes, u.exclusive_bytes, u.upper_bytes].map(ui::size);
        [vec![u.name.clone(), u.entries.to_string()], sizes.to_vec()].concat()
    };
    let header = ["NAME", ">ENTRIES", ">SIZE", ">SHARED", ">EXCLUSIVE", ">UPPER"];
    Ok(ui::table(&header, &usages.iter().map(row).collect::<Vec<_>>())?)
}

fn snapshots(usages: &[SnapshotUsage]) -> Result<(), Failure> {
    if usages.is_empty() {
        return Ok(());
    }
    let row = |u: &SnapshotUsage| {
        let name = if u.names.is_empty() { "-".to_owned() } else { u.names.join(",") };
        let sizes = [u.apparent_bytes, u.exclusive_bytes].map(ui::size);
        let head = if u.head { "*" } else { "" };
        [vec![head.to_owned(), u.hash[..12].to_owned(), name, u.entries.to_string()], sizes.to_vec()].concat()
    };
    ui::line("")?;
    let header = ["HEAD", "SNAPSHOT", "NAME", ">ENTRIES", ">SIZE", ">EXCLUSIVE"];
    Ok(ui::table(&header, &usages.iter().map(row).collect::<Vec<_>>())?)
}
