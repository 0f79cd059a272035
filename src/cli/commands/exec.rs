use std::ffi::OsString;

use nix::sys::signal::Signal;

use super::enter::SessionArgs;
use crate::cli::Global;
use crate::cli::ui::Failure;

/// Run a command inside an environment
///
/// Standard input and output, signals and the exit status pass through unchanged. The exit status is 125 if
/// karapace failed, 126 if the command cannot be executed, 127 if it does not exist, 128+n if signal n killed
/// it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    #[command(flatten)]
    session: SessionArgs,
    /// End when the process of this id does, which must be the parent
    #[arg(long, hide = true, value_name = "PID")]
    die_with: Option<i32>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<i32, Failure> {
        if let Some(parent) = self.die_with {
            // Set before the check: if the parent has ended by then, the parent's id has changed.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
                .map_err(|e| crate::engine::Error::Invalid(format!("cannot follow process {parent}: {e}")))?;
            if nix::unistd::getppid().as_raw() != parent {
                return Err(crate::engine::Error::Invalid(format!("process {parent} has ended")).into());
            }
        }
        self.session.run(global, &self.env, &self.command)
    }

    /// The command and its arguments.
    #[cfg(test)]
    pub fn command(&self) -> &[OsString] {
        &self.command
    }
}
