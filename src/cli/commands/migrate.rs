use karapace_store::Store;
use karapace_store::open::FORMAT;
use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Failure};
use crate::engine::Error;

/// Convert a store to the format of this version
///
/// There is nothing to convert yet: this version reads and writes one format. It refuses any other, and
/// changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let root = global.store_root()?;
        if !Store::is_at(&root) {
            return Err(Error::Invalid(format!(
                "there is no store at {}: nothing to migrate",
                root.display()
            ))
            .into());
        }
        // Opening the store fails for any other format.
        global.engine()?;
        if global.json() {
            ui::json(&json!({ "store": root.display().to_string(), "format": FORMAT, "migrated": false }))?;
        } else {
            ui::line(&format!("{}: format {FORMAT}, nothing to migrate", root.display()))?;
        }
        Ok(())
    }
}
