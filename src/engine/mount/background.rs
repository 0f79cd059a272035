//! A background serving process: starting it, and the messages between it and its starter.
//!
//! The starter writes the options to the process's standard input. Its answer says that the mount answers, or
//! why there is none.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;
use serde::{Deserialize, Serialize};

use super::options::{Options, check_mountable, check_root_options};
use crate::engine::At as _;
use crate::engine::instance::sessions;
use crate::engine::mountpoint;
use crate::engine::server::access::UNKNOWN_ANSWER;
use crate::engine::server::client::Client;
use crate::engine::server::info::log_path;
use crate::engine::server::socket::{Answer, Request};
use crate::engine::{Engine, Error, Result};
use crate::process;

/// What a background process runs: this very program, even if its file has been replaced.
const PROGRAM: &str = "/proc/self/exe";

/// Size in bytes above which the next mount starts a new mount log.
const LOG_LIMIT: u64 = 1 << 20;

/// How long a process that serves sessions may take to end, or to mount.
const PATIENCE: Duration = Duration::from_secs(30);

/// The background process's message to its starter: one JSON line on standard output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Readiness {
    Mounted { dir: PathBuf },
    Failed { errno: i32, reason: String },
}

/// Reports on standard output that the mount answers. For the background process only.
pub fn tell_ready(dir: &Path) -> Result<()> {
    tell(&Readiness::Mounted { dir: dir.to_owned() })
}

/// Receives the options on standard input. For the background process only.
pub fn receive_options() -> Result<Options> {
    receive(&mut io::stdin().lock()).at("read the options from", Path::new("the starting process"))
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

/// A mount that was made.
pub struct Mounted {
    /// The mount point, without symlinks.
    pub dir: PathBuf,
    /// The serving process.
    pub pid: u32,
    /// That process, unless it served sessions before.
    pub process: Option<Background>,
}

impl Engine {
    /// Mounts on `dir` in a background process, or in the one that serves the environment's sessions; returns
    /// when the mount answers. `verbose` makes the log of a new process more detailed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a state or options that cannot be mounted, [`Error::Mounted`] or
    /// [`Error::MountedElsewhere`] if it is mounted already, and [`Error::Running`] if the mount is for
    /// sessions and those have one.
    pub fn mount(&self, env: &Metadata, dir: &Path, options: &Options, verbose: bool) -> Result<Mounted> {
        // Refuse before a process is started, as far as possible.
        check_mountable(env)?;
        check_root_options(options)?;
        process::lasting_limits().iter().for_each(|limit| tracing::warn!("{}: {limit}", env.name));
        if options.snapshot.is_some() {
            return self.mount_in_new_process(env, dir, options, verbose);
        }
        let deadline = Deadline::after(PATIENCE);
        loop {
            self.end_orphaned_session(env)?;
            match self.live_mount(&env.instance)? {
                None => {}
                Some(mount) if mount.session && !options.session => {
                    if let Some(mounted) = self.mount_beside_sessions(env, dir, options)? {
                        return Ok(mounted);
                    }
                }
                Some(_) => return Err(self.mounted_error(env)),
            }
            match self.mount_in_new_process(env, dir, options, verbose) {
                // A session has begun meanwhile, and with it another process.
                Err(Error::Served { errno: libc::EBUSY, .. })
                    if !options.session
                        && sessions::running(self, &env.instance)
                        && !deadline.has_passed() =>
                {
                    deadline.pause();
                }
                other => return other,
            }
        }
    }

    fn mount_in_new_process(
        &self,
        env: &Metadata,
        dir: &Path,
        options: &Options,
        verbose: bool,
    ) -> Result<Mounted> {
        let mut child = start(self, env, dir, verbose)?;
        match converse(&mut child, options) {
            Ok(Some(Readiness::Mounted { dir })) => {
                Ok(Mounted { dir, pid: child.id(), process: Some(Background(child)) })
            }
            other => {
                Background(child).wait();
                match other? {
                    Some(Readiness::Failed { errno, reason }) => Err(Error::Served { errno, reason }),
                    _ => Err(self.serving_error(env, "ended before the mount answered")),
                }
            }
        }
    }

    /// Asks the process that serves the sessions to mount for the host too. `None`: it has ended.
    fn mount_beside_sessions(
        &self,
        env: &Metadata,
        dir: &Path,
        options: &Options,
    ) -> Result<Option<Mounted>> {
        let request = Request::Mount { dir: mountpoint::absolute(dir)?, options: options.mount.clone() };
        let deadline = Deadline::after(PATIENCE);
        while !deadline.has_passed() {
            let Some(client) = Client::connect(self.store().files(), &self.env_dir(&env.instance))? else {
                return Ok(None);
            };
            let pid = client.server().at("find the server of", Path::new(&env.name))?;
            match self.ask(env, client, &request)? {
                Some(Answer::Mounted { dir }) if !mountpoint::is_ours(&dir) => {
                    // The sessions were begun in another mount namespace.
                    self.unmount_and_wait(env, &Request::Unmount)?;
                    return Err(Error::MountedElsewhere { env: env.name.clone(), dir });
                }
                Some(Answer::Mounted { dir }) => {
                    return Ok(Some(Mounted { dir, pid: pid.unsigned_abs(), process: None }));
                }
                Some(Answer::Failed { errno, reason }) => return Err(Error::Served { errno, reason }),
                None | Some(Answer::Ending) => deadline.pause(),
                Some(_) => return Err(self.serving_error(env, UNKNOWN_ANSWER)),
            }
        }
        Err(self.serving_error(env, "is ending, but does not finish"))
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

/// Gives a background process its options. Returns its answer; `None` if it has ended without one.
fn converse(child: &mut Child, options: &Options) -> Result<Option<Readiness>> {
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Ok(None) };
    if let Err(error) = send(options, &mut input) {
        // The process has ended, and its log says why.
        tracing::debug!("telling the serving process its options: {error}");
    }
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).at("read from", Path::new(PROGRAM))?;
    Ok(serde_json::from_str(&line).ok())
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
    use karapace_fs::session::{CtlDir, Flag, LockScope, MountOptions, SubIds};
    use serde_json::Value;

    use super::*;

    /// Without `..`, so that a new option must be added here.
    fn all_set() -> Options {
        Options {
            snapshot: Some("a \"quoted\"\nsnapshot, --idmap".to_owned()),
            session: true,
            mount: MountOptions {
                read_only: true,
                flags: Flag::WORDS.map(|(_, flag)| flag).to_vec(),
                ctl_dir: CtlDir::Disabled,
                allow_other: true,
                threads: 7,
                passthrough: true,
                idmap: true,
                locks: LockScope::Shared,
                shares: true,
                for_sessions: true,
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
            assert_eq!(receive(&mut &pipe[..]).unwrap(), options);
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
