use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};

/// Make an environment from a root filesystem, with no manifest
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Archive (.tar, plain or compressed with gzip, xz or zstd), directory, or http(s):// address of an archive
    image: String,
    /// Name of the environment
    #[arg(long)]
    name: String,
    /// Use the archive that was downloaded before, without asking the server
    #[arg(long)]
    offline: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let imported = global.engine()?.import(&self.image, &self.name, self.offline, &Bars::on_stderr())?;
        let env = &imported.metadata;
        if global.json() {
            ui::json(&json!({
                "name": env.name, "env_id": env.env_id, "short_id": env.short_id(), "created": true,
                "entries": imported.entries, "bytes": imported.bytes,
            }))?;
            return Ok(());
        }
        let size = ui::size(imported.bytes);
        let (name, id) = (&env.name, env.short_id());
        ui::remark(&format!("{name} imported (env_id {id}): {} entries, {size}", imported.entries));
        ui::line(&env.env_id)?;
        Ok(())
    }
}
