use std::path::PathBuf;

use serde_json::json;

use crate::cli::ui::{self, Bars, Failure};
use crate::cli::{Global, exit};
use crate::engine::make::pin::is_pinned;

/// Pin the base image in the manifest to its current content
///
/// Sets base.image to the URL of a download with its checksum, URL#sha256=…, or to the path of a local image
/// with the digest of its content, PATH#content=…. Everything else in the manifest, comments included, stays
/// as it is. From then on a build fails if the image has changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifest
    #[arg(default_value = "karapace.toml")]
    manifest: PathBuf,
    /// Only check whether it is pinned: exit status 1 if not
    #[arg(long, conflicts_with_all = ["write_lock", "offline"])]
    check: bool,
    /// Update the lock file too, so that `build --locked` still works
    #[arg(long)]
    write_lock: bool,
    /// Use the downloaded image without asking the server
    #[arg(long)]
    offline: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        if self.check {
            return self.check(global);
        }
        let report = Bars::on_stderr();
        let pinned = global.engine_to_begin()?.pin(&self.manifest, self.write_lock, self.offline, &report)?;
        if global.json() {
            let lock = pinned.lock.map(|path| path.display().to_string());
            ui::json(&json!({ "image": pinned.image, "changed": pinned.changed, "lock": lock }))?;
            return Ok(());
        }
        if !pinned.changed {
            ui::remark(&format!("{} is already pinned to this content", self.manifest.display()));
        }
        ui::line(&pinned.image)?;
        Ok(())
    }

    fn check(&self, global: &Global) -> Result<(), Failure> {
        let (pinned, image) = is_pinned(&self.manifest)?;
        let manifest = self.manifest.display();
        if global.json() {
            ui::json(&json!({ "image": image, "pinned": pinned }))?;
        } else if !pinned {
            ui::remark(&format!(
                "{manifest}: base.image {image:?} is not pinned: run `karapace pin {manifest}`"
            ));
        }
        if pinned { Ok(()) } else { Err(Failure::Status(exit::FAILURE)) }
    }
}
