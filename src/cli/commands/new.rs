use std::path::Path;

use clap::ValueEnum;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::Error;
use crate::engine::make::new::{Template, free_path, new_manifest};

/// Write a karapace.toml in the current directory
///
/// With neither a template nor an image, asks for a template on the terminal. With an image only, uses the
/// template minimal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the environment
    name: String,
    /// The template to start from
    #[arg(long)]
    template: Option<Template>,
    /// Base image instead of the template's: a name, or the path or file:// or http(s):// URL of a root
    /// filesystem
    #[arg(long)]
    image: Option<String>,
    /// Replace an existing karapace.toml
    #[arg(long)]
    force: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let here = Path::new(".");
        // Check the name before asking for anything.
        karapace_store::metadata::check_name(&self.name).map_err(Error::from)?;
        let template = match (self.template, &self.image) {
            (Some(template), _) => template,
            (None, Some(_)) => Template::Minimal,
            (None, None) => {
                free_path(here, self.force)?;
                ask()?
            }
        };
        let image = self.image.as_deref();
        let path = new_manifest(here, &self.name, template, image, self.force)?;
        let path = path.strip_prefix(".").unwrap_or(&path).display().to_string();
        if global.json() {
            let (template, _) = words(template);
            ui::json(&serde_json::json!({ "name": self.name, "manifest": path, "template": template }))?;
        } else {
            ui::line(&path)?;
            ui::remark(&format!("next: karapace build {path} --name {}", self.name));
        }
        Ok(())
    }
}

/// Asks on the terminal for a template; the first is the default.
fn ask() -> Result<Template, Failure> {
    let all = Template::value_variants();
    let choices: Vec<(String, String)> = all.iter().map(|template| words(*template)).collect();
    if let Some(chosen) = ui::choose("Which template should the manifest start from?", &choices)? {
        return Ok(all[chosen]);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(", ");
    Err(Error::Invalid(format!(
        "no template is given: choose one with --template ({names}), or give an image with --image"
    ))
    .into())
}

/// The name of a template, and a one-line description.
fn words(template: Template) -> (String, String) {
    let value = template.to_possible_value();
    let value = value.as_ref();
    let help = value.and_then(|value| value.get_help()).map(ToString::to_string);
    (value.map(|value| value.get_name().to_owned()).unwrap_or_default(), help.unwrap_or_default())
}
