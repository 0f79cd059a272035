use crate::cli::Global;
use crate::cli::ui::{self, Failure};

/// Show the details of an environment
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let env = engine.find(&self.env)?;
        let details = engine.inspect(&env)?;
        if global.json() {
            ui::json(&details)?;
            return Ok(());
        }
        let s = &details.summary;
        let mount = match &s.mount {
            Some(mount) => format!("{} (pid {})", mount.dir.display(), mount.pid),
            None => "-".to_owned(),
        };
        let uncommitted =
            format!("{} files, {}", details.status.dirty_files, ui::size(details.status.dirty_bytes));
        let lines = [
            ("name", s.name.clone()),
            ("env_id", s.env_id.clone()),
            ("short_id", s.short_id.clone()),
            ("instance", s.instance.clone()),
            ("state", s.state.clone()),
            ("base image", details.base_image.clone().unwrap_or_else(|| "-".to_owned())),
            ("base layer", s.base_layer.clone()),
            ("head", s.head.clone()),
            ("snapshots", s.snapshots.to_string()),
            ("uncommitted", uncommitted),
            ("mount", mount),
            ("created", s.created_at.clone()),
            ("updated", s.updated_at.clone()),
        ];
        for (key, value) in lines {
            ui::line(&format!("{:<12} {value}", format!("{key}:")))?;
        }
        Ok(())
    }
}
