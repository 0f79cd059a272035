use std::path::PathBuf;

use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::make::build::BuildOptions;

/// Build the environment that a manifest describes
///
/// Imports the base image, and with the package manager that is found in it installs the packages of [system]
/// and [gui], without those that are merely recommended. Writes the lock file beside the manifest. What
/// exists already (same content and same name) is given back unchanged; with another --name it becomes a
/// second environment that shares everything. A --name that belongs to an environment of other content is
/// refused before anything is installed: `rebuild` puts a new one in its place.
///
/// Versions that the lock file pins are kept, as long as the image is the same and the distribution still has
/// them; packages that are new in the manifest come in their newest version.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: BuildArgs,
}

/// What `build` and `rebuild` take.
#[derive(Debug, clap::Args)]
pub(super) struct BuildArgs {
    /// The manifest
    #[arg(default_value = "karapace.toml")]
    pub(super) manifest: PathBuf,
    /// Name of the environment. Default: the short id of what it resolves to; of `rebuild`, what the lock
    /// file speaks of
    #[arg(long)]
    name: Option<String>,
    /// Fail unless the manifest resolves to exactly what the lock file pins
    #[arg(long)]
    locked: bool,
    /// Use the image that was downloaded before, without asking the server, and install nothing
    #[arg(long)]
    offline: bool,
    /// Fail unless the manifest pins the content of its image (see `karapace pin`)
    #[arg(long)]
    require_pinned_image: bool,
    /// Take the newest versions of all packages, whatever the lock file pins
    #[arg(long, conflicts_with = "locked")]
    update: bool,
}

impl BuildArgs {
    pub(super) fn options(&self) -> BuildOptions {
        BuildOptions {
            name: self.name.clone(),
            locked: self.locked,
            offline: self.offline,
            require_pinned_image: self.require_pinned_image,
            update: self.update,
        }
    }
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let report = Bars::on_stderr().showing_output(global.verbose());
        let built = global.engine_to_begin()?.build(&self.build.manifest, &self.build.options(), &report)?;
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
