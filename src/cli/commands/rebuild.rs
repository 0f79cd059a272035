use serde_json::json;

use super::build::BuildArgs;
use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};

/// Build a manifest anew, in the place of the environment that was built from it before
///
/// The old environment stands until the new one does. Its name and its snapshots stay; what is uncommitted is
/// committed first, and can be restored; what [snapshot] ignores goes. It must not be mounted or entered.
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
            ui::complain(&format!("note: what was uncommitted is snapshot {hash:.12}"));
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
