use clap::ValueEnum;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::new::{Template, new_manifest};

/// Write a karapace.toml in the current directory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the environment that it is for
    name: String,
    /// What to begin with
    #[arg(long, value_enum, default_value = "minimal")]
    template: TemplateName,
    /// Base image, instead of the template's: a path, file:// or http(s):// address
    #[arg(long)]
    image: Option<String>,
    /// Replace a karapace.toml that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TemplateName {
    Minimal,
    Dev,
    GuiDev,
    RustDev,
    UbuntuDev,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let template = match self.template {
            TemplateName::Minimal => Template::Minimal,
            TemplateName::Dev => Template::Dev,
            TemplateName::GuiDev => Template::GuiDev,
            TemplateName::RustDev => Template::RustDev,
            TemplateName::UbuntuDev => Template::UbuntuDev,
        };
        let dir = std::path::Path::new(".");
        let path = new_manifest(dir, &self.name, template, self.image.as_deref(), self.force)?;
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
