use std::path::PathBuf;

use serde_json::json;

use crate::cli::ui::{self, Bars, Failure};
use crate::cli::{Global, exit};
use crate::engine::make::pin::is_pinned;

/// Write the content of the base image into the manifest
///
/// base.image becomes the address of a download with its checksum behind it, URL#sha256=…, or the path of a
/// local image with the digest of its content, PATH#content=…; comments and all else stay as they are. A
/// build then fails when the image has become another one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifest
    #[arg(default_value = "karapace.toml")]
    manifest: PathBuf,
    /// Only say whether it is pinned: status 1 when it is not
    #[arg(long, conflicts_with_all = ["write_lock", "offline"])]
    check: bool,
    /// Let the lock file follow, so that `build --locked` goes on working
    #[arg(long)]
    write_lock: bool,
    /// Use the image that was downloaded before, without asking the server
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
            ui::remark(&format!("{} is pinned to this content already", self.manifest.display()));
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
                "{manifest}: base.image {image:?} is not pinned: `karapace pin {manifest}` does it"
            ));
        }
        if pinned { Ok(()) } else { Err(Failure::Status(exit::FAILURE)) }
    }
}
