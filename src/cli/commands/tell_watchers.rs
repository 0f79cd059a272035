use std::path::PathBuf;

use crate::cli::ui::Failure;
use crate::engine::instance::watchers::make_calls;

/// Make the calls that programs hear of which watch files
///
/// A server starts this after a restore; what it asks of any other changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the server's environment is mounted
    dir: PathBuf,
    /// The namespaces in which it is
    namespaces: Vec<PathBuf>,
}

impl Args {
    pub fn run(&self) -> Result<(), Failure> {
        Ok(make_calls(&self.dir, &self.namespaces)?)
    }
}
