use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::At as _;
use crate::engine::{Error, user_data};

/// Write the manual pages, one per command
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write to. Default: ~/.local/share/man/man1, which man searches
    dir: Option<PathBuf>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => user_data().map(|data| data.join("man/man1")).ok_or_else(|| {
                Error::Invalid("HOME is not set: name a directory for the manual pages".to_owned())
            })?,
        };
        fs::create_dir_all(&dir).at("create", &dir)?;
        clap_mangen::generate_to(crate::cli::command().disable_help_subcommand(true), &dir)
            .at("write manual pages into", &dir)?;
        let dir = dir.display().to_string();
        if global.json() {
            ui::json(&json!({ "dir": dir }))?;
        } else {
            ui::line(&dir)?;
        }
        Ok(())
    }
}
