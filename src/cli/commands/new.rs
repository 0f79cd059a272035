use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::new::new_manifest;

/// Write a karapace.toml in the current directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the environment that it is for
    name: String,
    /// Base image: a path, file:// or http(s):// address of a root filesystem archive or directory
    #[arg(long)]
    image: String,
    /// Replace a karapace.toml that is there
    #[arg(long)]
    force: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let path = new_manifest(std::path::Path::new("."), &self.name, &self.image, self.force)?;
        let path = path.strip_prefix(".").unwrap_or(&path).display().to_string();
        if global.json() {
            ui::json(&serde_json::json!({ "name": self.name, "manifest": path }))?;
        } else {
            ui::line(&path)?;
            ui::remark(&format!("next: karapace build {path} --name {}", self.name));
        }
        Ok(())
    }
}
