use std::path::PathBuf;

use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::build::BuildOptions;

/// Build the environment that a manifest describes
///
/// Writes the lock file beside the manifest. What exists already (same content and same name) is given back unchanged; with
/// another --name it becomes a second environment that shares everything.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifest
    #[arg(default_value = "karapace.toml")]
    manifest: PathBuf,
    /// Name of the environment. Default: the short id of what it resolves to
    #[arg(long)]
    name: Option<String>,
    /// Fail unless the manifest resolves to exactly what the lock file pins
    #[arg(long)]
    locked: bool,
    /// Use the image that was downloaded before, without asking the server
    #[arg(long)]
    offline: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let options = BuildOptions { name: self.name.clone(), locked: self.locked, offline: self.offline };
        let built = global.engine()?.build(&self.manifest, &options, &Bars::on_stderr())?;
        let env = &built.metadata;
        if global.json() {
            ui::json(&json!({
                "name": env.name, "env_id": env.env_id, "short_id": env.short_id(), "instance": env.instance.to_hex(), "created": built.created,
                "lock": built.lock_path.display().to_string(),
            }))?;
            return Ok(());
        }
        let what = if built.created { "built" } else { "exists already" };
        ui::remark(&format!("{} {what} (env_id {})", env.name, env.short_id()));
        ui::line(&if global.quiet() { env.instance.to_hex() } else { env.env_id.clone() })?;
        Ok(())
    }
}
