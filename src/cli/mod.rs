//! The command line: arguments, output, exit status. One command a file; the doc comments are the help.

mod commands;
pub mod exit;
pub mod ui;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser};

use crate::engine::{Engine, Error};
use commands::Command;
use ui::Failure;

/// Linux environments as directories.
///
/// Karapace keeps root filesystems in a content-addressed store and serves them through FUSE: a mounted environment is a
/// directory that can be read, written, entered, committed and restored.
#[derive(Debug, Parser)]
#[command(name = "karapace", version, max_term_width = 100)]
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
    /// Where the store is. Default: $XDG_DATA_HOME/karapace, else ~/.local/share/karapace
    #[arg(long, global = true, value_name = "PATH", env = "KARAPACE_STORE")]
    store: Option<PathBuf>,
    /// Print JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    /// Wait while another command holds what this one needs, and say on stderr for whom (the default)
    #[arg(long, global = true, overrides_with = "no_wait")]
    wait: bool,
    /// Fail at once when another command holds what this one needs
    #[arg(long, global = true, overrides_with = "wait")]
    no_wait: bool,
    /// Say more on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Say everything on stderr, for finding faults
    #[arg(long, global = true)]
    trace: bool,
}

impl Global {
    /// Whether the output is JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether more is to be said.
    pub fn verbose(&self) -> bool {
        self.verbose || self.trace
    }

    /// Opens the store.
    pub fn engine(&self) -> Result<Engine, Failure> {
        let engine = Engine::open(&self.store_root()?)?;
        engine.store().set_waits(!self.no_wait);
        Ok(engine)
    }

    fn store_root(&self) -> Result<PathBuf, Error> {
        let given = self.store.clone().filter(|path| !path.as_os_str().is_empty());
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        given
            .or_else(|| variable("XDG_DATA_HOME").map(|data| data.join("karapace")))
            .or_else(|| variable("HOME").map(|home| home.join(".local/share/karapace")))
            .ok_or_else(|| {
                Error::Invalid("there is no place for a store: set HOME, or name one with --store".to_owned())
            })
    }
}

/// What clap knows of the command line: every command, argument and help text. docs/CLI.md is made from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with these arguments (the program's name first) and gives its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> i32 {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &args),
    };
    start_log(&cli.global, cli.command.is_background());
    let is_session = cli.command.is_session();
    match cli.command.run(&cli.global) {
        Ok(status) => status,
        Err(Failure::Status(status)) => status,
        // Whoever reads the output has had enough: `karapace list | head -1`.
        Err(Failure::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => 128 + libc::SIGPIPE,
        Err(failure) => {
            ui::remark(format!("karapace: {failure}").trim_end());
            match &failure {
                Failure::Engine(error) if is_session => exit::session_status(error),
                Failure::Engine(error) => exit::status(error),
                _ if is_session => exit::RUNTIME,
                _ => exit::FAILURE,
            }
        }
    }
}

/// Prints what clap has to say; help and version are no failures.
fn usage(error: &clap::Error, args: &[OsString]) -> i32 {
    if error.print().is_err() {
        tracing::debug!("the output is closed");
    }
    if !error.use_stderr() {
        return 0;
    }
    let is_session = args.iter().skip(1).take(8).any(|arg| arg == "enter" || arg == "exec");
    if is_session { exit::RUNTIME } else { exit::FAILURE }
}

/// The log goes to stderr: a terminal, or the log file of a mount in the background, where the times matter.
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
    let log = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(global.trace);
    if is_background || global.verbose() { log.init() } else { log.without_time().init() }
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
