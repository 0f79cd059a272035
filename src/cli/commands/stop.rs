use std::time::Duration;

use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Stop everything that runs inside an environment
///
/// All processes inside get SIGTERM, and SIGKILL if they have not ended in time. A mount made with `karapace
/// mount` stays.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    /// How long to wait before remaining processes are killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let stopped = engine.stop(&env, Duration::from_secs(self.time))?;
        if global.json() {
            ui::json(&json!({ "name": env.name, "stopped": stopped }))?;
        } else if !stopped {
            ui::remark(&format!("nothing is running in {}", env.name));
        }
        Ok(())
    }
}
