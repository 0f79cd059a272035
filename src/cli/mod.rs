//! The command line: arguments, output, exit status. One file per command; the doc comments on its arguments
//! are the help text.

mod commands;
mod complete;
pub mod exit;
mod log;
#[cfg(test)]
mod pages;
mod table;
pub mod ui;
mod usage;
mod writer;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser};
use karapace_store::StoreError;

use crate::engine::export::app::Menu;
use crate::engine::{Engine, Error, default_store, user_data};
use commands::{Command, mount_helper};
use log::Log;
use ui::Failure;

/// Linux environments as directories.
///
/// Karapace keeps root filesystems in a content-addressed store and serves them through FUSE: a mounted
/// environment is a directory that can be read, written, entered, committed and restored.
#[derive(Debug, Parser)]
#[command(name = "karapace", bin_name = "karapace", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Path of the store. Default: $XDG_DATA_HOME/karapace, else ~/.local/share/karapace
    #[arg(long, global = true, value_name = "PATH", env = "KARAPACE_STORE", hide_env_values = true)]
    store: Option<PathBuf>,
    /// Read a store that belongs to another user, which is refused otherwise. Only for commands that read:
    /// they change nothing in the store, do not wait for other commands, and do not trust its contents
    #[arg(long, global = true)]
    foreign_store: bool,
    /// Print JSON on stdout, and an error as one line of JSON on stderr (docs/JSON.md)
    #[arg(long, global = true)]
    json: bool,
    /// Wait while another command holds what this one needs, and say on stderr for whom (the default)
    #[arg(long, global = true, overrides_with = "no_wait")]
    wait: bool,
    /// Fail at once when another command holds what this one needs
    #[arg(long, global = true, overrides_with = "wait")]
    no_wait: bool,
    /// Print ids only (for an environment, its instance id), and only errors and notes on stderr
    #[arg(short, long, global = true, conflicts_with = "json")]
    quiet: bool,
    /// Print more details on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Log everything on stderr, for debugging. The variable KARAPACE_LOG selects levels per module:
    /// KARAPACE_LOG=karapace_fs::fuse=trace,info
    #[arg(long, global = true)]
    trace: bool,
}

impl Global {
    /// Whether the output is JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether to print ids only.
    pub fn quiet(&self) -> bool {
        self.quiet
    }

    /// Whether to print more details.
    pub fn verbose(&self) -> bool {
        self.verbose || self.trace
    }

    /// Opens the store, which must exist: for commands that act on environments.
    pub fn engine(&self) -> Result<Engine, Failure> {
        self.open(if self.foreign_store { Engine::open_foreign } else { Engine::open_existing })
    }

    /// Opens the store, for commands that also have a result when there are no environments. `None` if the
    /// user has no default store yet; a store that was named must exist.
    pub fn engine_if_any(&self) -> Result<Option<Engine>, Failure> {
        let is_default = self.store.as_ref().is_none_or(|path| path.as_os_str().is_empty());
        match self.engine() {
            // If the path exists without a store, or is a dangling link, a disk is probably not mounted: that
            // is an error, unlike the missing store of a new user.
            Err(Failure::Engine(Error::Store(StoreError::NoStore { path, is_there: false })))
                if is_default && path.symlink_metadata().is_err() =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Opens the store, and creates it if there is none: for commands that add something to it.
    pub fn engine_to_begin(&self) -> Result<Engine, Failure> {
        self.open(Engine::open)
    }

    fn open(&self, open: impl Fn(&Path) -> Result<Engine, Error>) -> Result<Engine, Failure> {
        let engine = open(&self.store_root()?)?;
        engine.store().set_waits(!self.no_wait);
        Ok(engine)
    }

    /// The path of the store, whether it exists or not.
    pub fn store_root(&self) -> Result<PathBuf, Error> {
        store_root(self.store.clone()).ok_or_else(|| {
            Error::Invalid("no path for a store: set HOME, or give a path with --store".to_owned())
        })
    }
}

/// The path of the store: `given` unless it is empty, else the default.
fn store_root(given: Option<PathBuf>) -> Option<PathBuf> {
    given.filter(|path| !path.as_os_str().is_empty()).or_else(default_store)
}

/// The user's menu of programs; `None` if the user's data directory is unknown.
fn menu() -> Option<Menu> {
    user_data().map(Menu)
}

/// clap's description of the command line: every command, argument and help text. docs/CLI.md is made from
/// it.
pub fn command() -> clap::Command {
    complete::with_completers(Cli::command())
}

/// If a shell asks for completions (see `karapace completions`), answers and exits.
pub fn answer_shell() {
    if mount_helper::is_called(std::env::args_os().next().as_ref()) {
        return;
    }
    clap_complete::CompleteEnv::with_factory(command).bin(complete::PROGRAM).complete();
}

/// Runs the program with these arguments (the program's name first) and returns its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    if mount_helper::is_called(args.first()) {
        return mount_helper::run(&args);
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage::tell(error, &args),
    };
    if cli.global.quiet {
        ui::be_quiet();
    }
    if cli.global.quiet || cli.global.json {
        ui::hide_progress_lines();
    }
    start_log(&cli.global, cli.command.is_background());
    let is_session = cli.command.is_session();
    let ended = match cli.global.foreign_store && !cli.command.only_reads() {
        true => Err(Failure::Engine(foreign_refused())),
        false => cli.command.run(&cli.global),
    };
    match ended {
        Ok(status) => status,
        Err(Failure::Status(status)) => status,
        // The reader has closed the output, as in `karapace list | head -1`.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => 128 + libc::SIGPIPE,
        Err(failure) => {
            let status = match &failure {
                Failure::Engine(error) if is_session => exit::session_status(error),
                Failure::Engine(error) => exit::status(error),
                _ if is_session => exit::RUNTIME,
                _ => exit::FAILURE,
            };
            let kind = match &failure {
                Failure::Engine(error) => exit::kind(error),
                _ => "output",
            };
            if cli.global.json {
                complain_as_json(kind, failure.to_string().trim_end(), status);
            } else {
                tell_failure("karapace", &failure);
            }
            status
        }
    }
}

/// Prints why `program` failed, for people.
fn tell_failure(program: &str, failure: &Failure) {
    let message = format!("{program}: {failure}");
    match failure {
        Failure::Engine(error) if error.is_of_lines() => ui::complain_in_lines(&message),
        _ => ui::complain(message.trim_end()),
    }
}

/// The error for a command that would change a foreign store: only its owner may.
fn foreign_refused() -> Error {
    let reason = "--foreign-store is for commands that only read (list, inspect, snapshots, diff, du, export, verify-store, \
                  gc --dry-run): run this one as the store's owner";
    Error::Invalid(reason.to_owned())
}

/// Prints why the command failed, as JSON for programs.
fn complain_as_json(kind: &str, message: &str, status: i32) {
    let error = serde_json::json!({ "kind": kind, "message": message, "status": status });
    writer::tell_json(&serde_json::json!({ "error": error }));
}

/// Starts the log. That of a background mount goes to a file, in which times matter.
fn start_log(global: &Global, is_background: bool) {
    let level = if global.trace {
        tracing::Level::TRACE
    } else if global.verbose {
        tracing::Level::DEBUG
    } else if is_background {
        tracing::Level::INFO
    } else {
        tracing::Level::WARN
    };
    Log { level, with_time: is_background || global.verbose() }.start();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_command_after_exec_keeps_its_options() {
        let args = ["karapace", "exec", "dev", "-u", "me", "--", "ls", "-u", "--json", "--", "x"];
        let cli = Cli::try_parse_from(args).unwrap();
        assert!(!cli.global.json);
        match cli.command {
            Command::Exec(exec) => assert_eq!(exec.command(), ["ls", "-u", "--json", "--", "x"]),
            other => panic!("{other:?}"),
        }
    }
}
