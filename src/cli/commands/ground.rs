use crate::cli::ui::Failure;
use crate::engine::server::ground::process;

/// Mount an environment in a user namespace for its sessions, and hold the namespace
///
/// A server starts this, and speaks with it through standard input.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only guard a mount on the host
    #[arg(long)]
    guard: bool,
}

impl Args {
    pub fn run(&self) -> Result<(), Failure> {
        Ok(process::run(self.guard)?)
    }
}
