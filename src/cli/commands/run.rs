use std::ffi::OsString;

use super::enter::SessionArgs;
use crate::cli::Global;
use crate::cli::ui::Failure;

/// Run a command in a temporary copy of an environment or image
///
/// The copy of an environment has everything that the environment shows now, also what is uncommitted; with @
/// and a snapshot, what that snapshot has. When the command has ended, the copy is gone with all its changes
/// and with every process in it, unless --keep is given. Nothing is copied, so starting takes no longer for a
/// large environment; uncommitted changes are stored first, once.
///
/// A word without a slash is an environment. An image is given by its path (with a slash), its address or its
/// name, as for import, but not through a pipe; one that was downloaded before is used as it is.
///
/// Standard streams, signals and the exit status are those of exec. Without a command, opens a shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An environment (name, env_id or unique prefix), with @ and a snapshot (hash, prefix, name, head,
    /// latest, base or ~k) that one; or an image
    #[arg(value_name = "ENV[@SNAPSHOT]|IMAGE")]
    origin: String,
    #[command(flatten)]
    session: SessionArgs,
    /// The command and its arguments. Default: the user's shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<i32, Failure> {
        self.session.run_in_copy(global, &self.origin, &self.command)
    }
}
