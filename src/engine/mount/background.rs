//! A background serving process: starting it, and the messages between it and its starter.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use karapace_fs::session::{CtlDir, Flag};
use karapace_store::metadata::Metadata;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::options::{Options, check_mountable, check_root_options};
use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::info::log_path;
use crate::engine::{Engine, Error, Result};
use crate::process;

/// Size in bytes above which the next mount starts a new mount log.
const LOG_LIMIT: u64 = 1 << 20;

/// The background process's message to its starter: one JSON line on standard output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Readiness {
    /// The process is in new namespaces that have no ids yet, and waits for a line on its standard input.
    Alone,
    Mounted {
        dir: PathBuf,
    },
    Failed {
        errno: i32,
        reason: String,
    },
}

/// Reports on standard output that the mount answers. For the background process only.
pub fn tell_ready(dir: &Path) -> Result<()> {
    tell(&Readiness::Mounted { dir: dir.to_owned() })
}

/// Moves this process, which must be single-threaded, into its own user and mount namespace; returns when its
/// starter has mapped its ids. For the background process only.
pub fn leave_host() -> Result<()> {
    let failed = |e: io::Error| Error::io("make a user namespace for", Path::new("the mount"), e);
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|e| failed(e.into()))?;
    tell(&Readiness::Alone)?;
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        Ok(read) if read > 0 => Ok(()),
        Ok(_) => Err(failed(io::Error::other("it was given no ids"))),
        Err(error) => Err(failed(error)),
    }
}

/// Reports on standard output why there is no mount. For the background process only.
pub fn tell_failed(error: &Error) -> Result<()> {
    tell(&Readiness::Failed { errno: error.errno(), reason: error.to_string().trim_end().to_owned() })
}

#[expect(clippy::disallowed_methods, reason = "another karapace reads it")]
fn tell(readiness: &Readiness) -> Result<()> {
    let told = serde_json::to_vec(readiness).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.flush()
    });
    told.at("report to", Path::new("the starting process"))
}

/// A serving process, as a child of its starter.
pub struct Background(Child);

impl Background {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// `None` while it runs; afterwards, whether it exited by itself rather than by a signal.
    pub(super) fn ended(&mut self) -> Option<bool> {
        match self.0.try_wait() {
            Ok(status) => status.map(|status| status.code().is_some()),
            Err(error) => {
                tracing::debug!("looking after the serving process: {error}");
                Some(true)
            }
        }
    }

    /// Waits for the process to end. For a starter that has unmounted it and goes on running.
    pub fn wait(mut self) {
        if let Err(error) = self.0.wait() {
            tracing::debug!("waiting for the serving process: {error}");
        }
    }
}

impl Engine {
    /// Mounts in a background process; returns when the mount answers. `verbose` makes the log more detailed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a state or options that cannot be mounted, [`Error::Mounted`] or
    /// [`Error::MountedElsewhere`] if a process serves the environment already.
    pub fn mount(&self, env: &Metadata, options: &Options, verbose: bool) -> Result<(PathBuf, Background)> {
        // Refuse before a process is started, as far as possible.
        check_mountable(env)?;
        check_root_options(options)?;
        if options.snapshot.is_none() {
            self.end_orphaned_session(env)?;
            if self.live_mount(&env.instance)?.is_some() {
                return Err(self.mounted_error(env));
            }
        }
        spawn(self, env, options, verbose)
    }
}

fn spawn(engine: &Engine, env: &Metadata, options: &Options, verbose: bool) -> Result<(PathBuf, Background)> {
    process::lasting_limits().iter().for_each(|limit| tracing::warn!("{}: {limit}", env.name));
    let dir = mountpoint::absolute(&options.dir)?;
    let log_path = log_path(engine, &env.instance);
    let files = engine.store().files();
    let grown = files.stat(&log_path).is_ok_and(|stat| stat.st_size as u64 > LOG_LIMIT);
    let log = if grown { files.replace(&log_path) } else { files.open_to_append(&log_path) };
    let log = log.at("open", &log_path)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("karapace").arg("--store").arg(engine.root());
    if verbose {
        command.arg("--verbose");
    }
    command.arg("mount").args(["--foreground", "--background-child"]);
    command.args(arguments(options)).arg("--").arg(env.instance.to_hex()).arg(&dir);
    let input = if options.ranges.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(input).stdout(Stdio::piped()).stderr(log);
    let exe = Path::new("/proc/self/exe");
    let mut child = command.spawn().at("run", exe)?;
    let mut out = child.stdout.take().map(BufReader::new);
    let mut told = || -> Result<String> {
        let mut line = String::new();
        match &mut out {
            Some(out) => out.read_line(&mut line).at("read from", exe)?,
            None => 0,
        };
        Ok(line)
    };
    let mut line = told()?;
    if let (Some(ranges), Ok(Readiness::Alone)) = (&options.ranges, serde_json::from_str(&line)) {
        let input = child.stdin.take();
        let given =
            ranges.give(child.id()).and_then(|()| input.map_or(Ok(()), |mut input| input.write_all(b"\n")));
        if let Err(error) = given {
            // The process ends when its standard input is closed.
            told()?;
            Background(child).wait();
            return Err(Error::NoIds { source: error });
        }
        line = told()?;
    }
    match serde_json::from_str(&line) {
        Ok(Readiness::Mounted { dir }) => Ok((dir, Background(child))),
        told => {
            Background(child).wait();
            match told {
                Ok(Readiness::Failed { errno, reason }) => Err(Error::Served { errno, reason }),
                _ => Err(engine.serving_error(env, "ended before the mount answered")),
            }
        }
    }
}

/// The command line of `karapace mount` for these options.
fn arguments(options: &Options) -> Vec<String> {
    let mut args = vec![format!("--threads={}", options.threads)];
    let ctl = match options.ctl_dir {
        CtlDir::Hidden => "hidden",
        CtlDir::Visible => "visible",
        CtlDir::Disabled => "disabled",
    };
    args.push(format!("--ctl-dir={ctl}"));
    if let Some(snapshot) = &options.snapshot {
        args.push(format!("--snapshot={snapshot}"));
    }
    args.extend(options.flags.iter().map(|flag| format!("-o{}", flag_name(*flag))));
    let flags = [
        ("--read-only", options.read_only),
        ("--allow-other", options.allow_other),
        ("--passthrough", options.passthrough),
        ("--idmap", options.idmap),
        ("--session", options.session),
        ("--id-ranges", options.ranges.is_some()),
    ];
    args.extend(flags.iter().filter(|(_, on)| *on).map(|(flag, _)| (*flag).to_owned()));
    args
}

/// The name of a flag in mount(8).
fn flag_name(flag: Flag) -> &'static str {
    match flag {
        Flag::ReadOnly => "ro",
        Flag::NoSuid => "nosuid",
        Flag::NoDev => "nodev",
        Flag::NoExec => "noexec",
    }
}
