use std::path::PathBuf;

use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::make::build::BuildOptions;

/// Build the environment that a manifest describes
///
/// Imports the base image, and installs the packages of [system] and [gui] with the image's own package
/// manager, without merely recommended packages. Writes the lock file beside the manifest. If an environment
/// with the same content and name exists, it is returned unchanged; with another --name, a second environment
/// is made that shares all data with it. A --name that belongs to an environment with other content is
/// refused before anything is installed: use `rebuild` to replace that one.
///
/// Versions pinned by the lock file are kept as long as the image is the same and the distribution still has
/// them; packages that are new in the manifest are installed in their newest version.
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
    /// Name of the environment. Default: its short id; for `rebuild`, the environment that the lock file
    /// belongs to
    #[arg(long)]
    name: Option<String>,
    /// Fail unless the manifest resolves to exactly what the lock file pins
    #[arg(long)]
    locked: bool,
    /// Use the downloaded image without asking the server, and install nothing
    #[arg(long)]
    offline: bool,
    /// Fail unless the manifest pins the content of its image (see `karapace pin`)
    #[arg(long)]
    require_pinned_image: bool,
    /// Install the newest versions of all packages, whatever the lock file pins
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
        let what = if built.created { "built" } else { "already exists" };
        ui::remark(&format!("{} {what} (env_id {})", env.name, env.short_id()));
        ui::line(&if global.quiet() { env.instance.to_hex() } else { env.env_id.clone() })?;
        Ok(())
    }
}
