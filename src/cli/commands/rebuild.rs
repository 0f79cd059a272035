use serde_json::json;

use super::build::BuildArgs;
use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};

/// Build a manifest again and replace the environment that was built from it
///
/// The old environment is kept until the new one is complete. Its name and snapshots stay; uncommitted
/// changes are committed first and can be restored; paths that [snapshot] ignores are lost. It must not be
/// mounted or entered.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: BuildArgs,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let report = Bars::on_stderr().showing_output(global.verbose());
        let rebuilt = global.engine()?.rebuild(&self.build.manifest, &self.build.options(), &report)?;
        let env = &rebuilt.metadata;
        if let Some(saved) = &rebuilt.saved {
            let hash = saved.hash;
            ui::complain(&format!("note: uncommitted changes are in snapshot {hash:.12}"));
        }
        if global.json() {
            ui::json(&json!({
                "name": env.name, "env_id": env.env_id, "short_id": env.short_id(), "instance": env.instance.to_hex(), "before": rebuilt.before,
                "snapshots": env.made().len(), "saved": rebuilt.saved.map(|saved| saved.hash),
            }))?;
            return Ok(());
        }
        let count = env.made().len();
        ui::remark(&format!("{} rebuilt (env_id {}), {count} snapshots kept", env.name, env.short_id()));
        ui::line(&if global.quiet() { env.instance.to_hex() } else { env.env_id.clone() })?;
        Ok(())
    }
}
