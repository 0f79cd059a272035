//! A background serving process: starting it, and the messages between it and its starter.
//!
//! The starter writes the options to the process's standard input. A process with a ground then answers that
//! it is alone, and an empty line tells it that it has its ids. Its last message says that the mount answers,
//! or why there is none.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use karapace_store::metadata::Metadata;
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::options::{Options, check_mountable, check_root_options};
use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::info::log_path;
use crate::engine::{Engine, Error, Result};
use crate::process;
use crate::runtime::ranges::Ranges;

/// What a background process runs: this very program, even if its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";

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

/// Receives the options on standard input, where the starter's next message follows. For the background
/// process only.
pub fn receive_options() -> Result<Options> {
    receive(&mut io::stdin().lock()).at("read the options from", Path::new("the starting process"))
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
        Ok(_) => Err(failed(io::Error::other("it has no ids"))),
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
                tracing::debug!("cannot watch the server: {error}");
                Some(true)
            }
        }
    }

    /// Waits for the process to end. For a starter that has unmounted it and goes on running.
    pub fn wait(mut self) {
        if let Err(error) = self.0.wait() {
            tracing::debug!("cannot wait for the server: {error}");
        }
    }
}

impl Engine {
    /// Mounts on `dir` in a background process; returns when the mount answers. `verbose` makes the log more
    /// detailed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a state or options that cannot be mounted, [`Error::Mounted`] or
    /// [`Error::MountedElsewhere`] if a process serves the environment already.
    pub fn mount(
        &self,
        env: &Metadata,
        dir: &Path,
        options: &Options,
        verbose: bool,
    ) -> Result<(PathBuf, Background)> {
        self.mount_in_background(env, dir, options, None, verbose)
    }

    /// The same, in a user and mount namespace that has these ids.
    ///
    /// # Errors
    /// Also [`Error::NoIds`] if the ids cannot be mapped.
    pub fn mount_with_ids(
        &self,
        env: &Metadata,
        dir: &Path,
        options: &Options,
        ranges: &Ranges,
    ) -> Result<(PathBuf, Background)> {
        self.mount_in_background(env, dir, options, Some(ranges), false)
    }

    fn mount_in_background(
        &self,
        env: &Metadata,
        dir: &Path,
        options: &Options,
        ranges: Option<&Ranges>,
        verbose: bool,
    ) -> Result<(PathBuf, Background)> {
        // Refuse before a process is started, as far as possible.
        check_mountable(env)?;
        check_root_options(options)?;
        if options.snapshot.is_none() {
            self.end_orphaned_session(env)?;
            if self.live_mount(&env.instance)?.is_some() {
                return Err(self.mounted_error(env));
            }
        }
        process::lasting_limits().iter().for_each(|limit| tracing::warn!("{}: {limit}", env.name));
        let mut child = start(self, env, dir, verbose)?;
        let options = Options { has_ground: ranges.is_some(), ..options.clone() };
        match converse(&mut child, &options, ranges) {
            Ok(Some(Readiness::Mounted { dir })) => Ok((dir, Background(child))),
            other => {
                Background(child).wait();
                match other? {
                    Some(Readiness::Failed { errno, reason }) => Err(Error::Served { errno, reason }),
                    _ => Err(self.serving_error(env, "ended before the mount answered")),
                }
            }
        }
    }
}

/// Starts the background process, which waits for its options. Its command line only says what it serves, and
/// where.
fn start(engine: &Engine, env: &Metadata, dir: &Path, verbose: bool) -> Result<Child> {
    let dir = mountpoint::absolute(dir)?;
    let log_path = log_path(engine, &env.instance);
    let files = engine.store().files();
    let grown = files.stat(&log_path).is_ok_and(|stat| stat.st_size as u64 > LOG_LIMIT);
    let log = if grown { files.replace(&log_path) } else { files.open_to_append(&log_path) };
    let log = log.at("open", &log_path)?;
    let mut command = Command::new(PROGRAM);
    command.arg0("karapace").arg("--store").arg(engine.root());
    if verbose {
        command.arg("--verbose");
    }
    command.arg("mount").args(["--foreground", "--background-child", "--"]);
    command.arg(env.instance.to_hex()).arg(&dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    command.spawn().at("run", Path::new(PROGRAM))
}

/// Gives a background process its options, and the ids when it is ready for them. Returns its last message;
/// `None` if it has ended without one.
fn converse(child: &mut Child, options: &Options, ranges: Option<&Ranges>) -> Result<Option<Readiness>> {
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Ok(None) };
    let mut output = BufReader::new(output);
    let mut hear = || -> Result<Option<Readiness>> {
        let mut line = String::new();
        output.read_line(&mut line).at("read from", Path::new(PROGRAM))?;
        Ok(serde_json::from_str(&line).ok())
    };
    if let Err(error) = send(options, &mut input) {
        // The process has ended, and its log says why.
        tracing::debug!("telling the serving process its options: {error}");
    }
    let first = hear()?;
    let (Some(ranges), Some(Readiness::Alone)) = (ranges, &first) else { return Ok(first) };
    if let Err(error) = ranges.give(child.id()).and_then(|()| input.write_all(b"\n")) {
        // The process ends when its standard input is closed.
        drop(input);
        hear()?;
        return Err(Error::NoIds { source: error });
    }
    hear()
}

/// Writes the options as one line of JSON.
fn send(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(options)?;
    line.push(b'\n');
    out.write_all(&line)
}

fn receive(input: &mut impl BufRead) -> io::Result<Options> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use karapace_fs::session::{CtlDir, Flag, MountOptions, SubIds};
    use serde_json::Value;

    use super::*;

    /// Without `..`, so that a new option must be added here.
    fn all_set() -> Options {
        Options {
            snapshot: Some("a \"quoted\"\nsnapshot, --idmap".to_owned()),
            session: true,
            has_ground: true,
            mount: MountOptions {
                read_only: true,
                flags: Flag::WORDS.map(|(_, flag)| flag).to_vec(),
                ctl_dir: CtlDir::Disabled,
                allow_other: true,
                threads: 7,
                passthrough: true,
                idmap: true,
                sub_ids: Some(SubIds { uids: vec![(100_000, 65_536)], gids: vec![(7, 1), (9, 2)] }),
            },
        }
    }

    /// Fails for a value that is the default.
    fn assert_differs(set: &Value, default: &Value, name: &str) {
        match set {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| assert_differs(value, &default[name], name));
            }
            _ => assert_ne!(set, default, "set {name} in all_set to something else than the default"),
        }
    }

    #[test]
    fn no_option_is_lost_on_the_way() {
        let json = |options| serde_json::to_value(options).unwrap();
        assert_differs(&json(all_set()), &json(Options::default()), "");
        for options in [all_set(), Options::default()] {
            let mut pipe = Vec::new();
            send(&options, &mut pipe).unwrap();
            pipe.extend(b"\n");
            let mut pipe = &pipe[..];
            assert_eq!(receive(&mut pipe).unwrap(), options);
            assert_eq!(pipe, b"\n", "what follows is left for leave_host");
        }
    }

    #[test]
    fn other_words_are_refused() {
        let mut json = serde_json::to_value(all_set()).unwrap();
        json["mount"]["colour"] = "blue".into();
        let told = receive(&mut json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(told.contains("colour"), "{told}");
        assert!(receive(&mut &b""[..]).is_err(), "a starter that has ended");
    }
}
