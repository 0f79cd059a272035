//! `mount --all`: a process that mounts every environment below one directory with default options, and
//! updates the mounts as environments are built, renamed, frozen and destroyed.
//!
//! As with `mount`, each environment has a serving process of its own; this process only starts them. A
//! failure of one of them, or of this process, does not affect the others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use karapace_fs::session::MountOptions;
use karapace_store::id::InstanceId;
use karapace_store::metadata::{EnvState, Metadata};
use karapace_store::wait::{self, Deadline};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::background::{Background, Mounted, Readiness};
use super::options::Options;
use super::supervisor::{Supervisor, record_path};
use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::keeper::is_over;
use crate::engine::{Engine, Error, Result};
use crate::process::signals;

/// How often mounts that ended by themselves, or could not be made, are checked.
const TICK: Duration = Duration::from_secs(1);

/// How long another process may hold the record without having written it: it only looks, or is starting.
const STARTS: Duration = Duration::from_secs(1);

/// How long to look for a held lock in /proc/locks, which may leave it out for a moment.
const SHOWS: Duration = Duration::from_secs(1);

/// How long a stop may take: each mount in use gets its grace period.
const PATIENCE: Duration = Duration::from_secs(60);

/// `~/karapace`.
pub fn default_dir() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| Error::Invalid("HOME is not set: name a directory to mount in".to_owned()))?;
    Ok(PathBuf::from(home).join("karapace"))
}

/// The log of the background process.
pub fn log_path(engine: &Engine) -> PathBuf {
    engine.store().supervisor_log()
}

impl Engine {
    /// Mounts every environment below `dir` until [`Engine::umount_all`], SIGTERM, SIGINT or SIGHUP. `ready`
    /// is called once, when everything that can be mounted is mounted; `tell` is called once for each
    /// failure, with the reason.
    ///
    /// # Errors
    /// [`Error::Invalid`] if another process does this already.
    pub fn mount_all(
        &self,
        dir: &Path,
        verbose: bool,
        ready: &mut dyn FnMut(&Path) -> Result<()>,
        tell: &dyn Fn(&str),
    ) -> Result<()> {
        fs::create_dir_all(dir).at("create", dir)?;
        let dir = fs::canonicalize(dir).at("resolve", dir)?;
        let _held = self.hold_record(&dir)?;
        let (mut waker, stop) = UnixStream::pair().at("wait for changes in", &dir)?;
        let handler = move || {
            if let Err(error) = waker.write_all(b"x") {
                tracing::error!("cannot be stopped: {error}");
            }
        };
        signals::on_request_to_end(handler)
            .map_err(|e| Error::Invalid(format!("cannot wait for signals: {e}")))?;
        let watched = Metadata::dir(self.store());
        let watch = Watch::begin(&watched).at("watch", &watched)?;
        let (known, left) = (BTreeMap::new(), Vec::new());
        let mut mounts = Mounts { engine: self, dir: &dir, verbose, tell, known, left };
        mounts.follow()?;
        ready(&dir)?;
        while !watch.wait(&stop).at("watch", &watched)? {
            if let Err(error) = mounts.follow() {
                tell(&error.to_string());
            }
        }
        mounts.end();
        Ok(())
    }

    /// The same in a background process. Returns its directory and its process id when everything that can be
    /// mounted is mounted.
    pub fn mount_all_in_background(&self, dir: &Path, verbose: bool) -> Result<(PathBuf, u32)> {
        if let Some(supervisor) = self.supervisor()? {
            return Err(taken(&supervisor));
        }
        let log = log_path(self);
        let file = self.store().files().replace(&log);
        let file = file.at("open", &log)?;
        let exe = Path::new("/proc/self/exe");
        let mut command = Command::new(exe);
        command.arg0("karapace").arg("--store").arg(self.root());
        if verbose {
            command.arg("--verbose");
        }
        command
            .args(["mount", "--all", "--foreground", "--background-child", "--"])
            .arg(mountpoint::absolute(dir)?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().at("run", exe)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).at("read from", exe)?;
        }
        match serde_json::from_str(&line) {
            Ok(Readiness::Mounted { dir }) => Ok((dir, child.id())),
            Ok(Readiness::Failed { errno, reason }) => Err(Error::Served { errno, reason }),
            Err(_) => {
                let what = "ended before anything was mounted".to_owned();
                Err(Error::Serving { env: "all environments".to_owned(), what, log })
            }
        }
    }

    /// Ends `mount --all` and every mount of an environment. Returns the directories that were unmounted, and
    /// for each failure what was not unmounted and why.
    pub fn umount_all(&self) -> Result<(Vec<PathBuf>, Vec<String>)> {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let before: Vec<_> = self.readable()?.0;
        let mounted = |env: &Metadata| self.live_mount(&env.instance).ok().flatten();
        let before: Vec<_> = before.iter().filter_map(|env| Some((env, mounted(env)?))).collect();
        if let Some(supervisor) = self.supervisor()? {
            self.end_supervisor(&supervisor)?;
            let ended = wait::until(PATIENCE, || Ok::<_, Error>(self.supervisor()?.is_none().then_some(())))?;
            if ended.is_none() {
                let what = format!("(pid {}) does not end", supervisor.pid);
                return Err(Error::Serving { env: "all environments".to_owned(), what, log: log_path(self) });
            }
        }
        for (env, mount) in before {
            // What is left for sessions was not asked for.
            if self.live_mount(&env.instance)?.is_none_or(|now| now.session && !mount.session) {
                done.push(mount.dir);
                continue;
            }
            match self.umount_env(env) {
                Ok(dir) => done.push(dir),
                Err(error) => failed.push(error.to_string()),
            }
        }
        Ok((done, failed))
    }

    /// Asks the supervisor to end, after checking that the recorded process id is its own.
    fn end_supervisor(&self, supervisor: &Supervisor) -> Result<()> {
        let failed = |e: io::Error| Error::io("stop", Path::new("mount --all"), e);
        let pid = i32::try_from(supervisor.pid).ok().and_then(Pid::from_raw);
        let process = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let process = match process {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other.map_err(|errno| failed(errno.into()))?,
        };
        let path = record_path(self);
        // Checked while we hold the pidfd, so no other process can have its id.
        let record = self.store().files().stat(&path).at("read", &path)?;
        let held =
            wait::until(SHOWS, || has_lock(supervisor.pid, record.st_ino).map(|has| has.then_some(())))?;
        if held.is_none() {
            return Err(Error::Invalid(format!(
                "{} names process {}, which does not hold it: run `karapace umount` for each environment, then end the process \
                 that holds it (fuser {})",
                path.display(),
                supervisor.pid,
                path.display()
            )));
        }
        match pidfd_send_signal(&process, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    fn hold_record(&self, dir: &Path) -> Result<Flock<File>> {
        let path = record_path(self);
        let file = self.store().files().open_or_make(&path);
        let file = file.at("open", &path)?;
        let deadline = Deadline::after(STARTS);
        let mut open = file;
        let mut held = loop {
            match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
                Ok(held) => break held,
                Err((file, Errno::EWOULDBLOCK)) => {
                    if let Some(other) = self.supervisor()? {
                        return Err(taken(&other));
                    }
                    if deadline.has_passed() {
                        return Err(Error::Invalid("mount --all is already starting".to_owned()));
                    }
                    open = file;
                    deadline.pause();
                }
                Err((_, errno)) => return Err(Error::io("lock", &path, errno.into())),
            }
        };
        let record = Supervisor { pid: std::process::id(), dir: dir.to_owned() };
        let text = serde_json::to_vec(&record)
            .map_err(|e| Error::Invalid(format!("cannot encode the description of the mounts: {e}")))?;
        held.set_len(0).and_then(|()| held.write_all(&text)).at("write", &path)?;
        Ok(held)
    }
}

/// A pidfd of a process; `None` if it has ended.
fn opened(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether /proc/locks (proc_locks(5)) lists a flock of the process `pid` on a file with this inode number.
/// It may miss one while other locks of the machine come and go: the kernel shows the table in parts of
/// 4 KiB, and finds the next part by the number of its first line.
fn has_lock(pid: u32, inode: u64) -> Result<bool> {
    let path = Path::new("/proc/locks");
    let table = fs::read_to_string(path).at("read", path)?;
    Ok(table.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.get(5).and_then(|place| place.rsplit(':').next());
        words.get(1) == Some(&"FLOCK")
            && words.get(4).is_some_and(|word| *word == pid.to_string())
            && at.is_some_and(|number| number == inode.to_string())
    }))
}

fn taken(supervisor: &Supervisor) -> Error {
    Error::Invalid(format!(
        "all environments are already mounted in {} (pid {}): run `karapace umount --all` first",
        supervisor.dir.display(),
        supervisor.pid
    ))
}

/// Watches the environments' records for changes.
struct Watch(Inotify);

impl Watch {
    fn begin(dir: &Path) -> nix::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // A record is replaced by a rename.
        let changes = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE;
        inotify.add_watch(dir, changes)?;
        Ok(Watch(inotify))
    }

    /// Waits for a change or a tick. Returns true if the process should stop.
    fn wait(&self, stop: &UnixStream) -> nix::Result<bool> {
        let mut waiting =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting, tick) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        let (stopped, changed) = (ready(&waiting[0]), ready(&waiting[1]));
        if changed {
            match self.0.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(stopped)
    }
}

/// An environment as it was last seen.
struct Known {
    metadata: Metadata,
    standing: Standing,
}

enum Standing {
    /// Mounted here.
    Mounted(PathBuf, Process),
    /// The user unmounted it: it stays unmounted until its record changes.
    Unmounted,
    /// Mounting failed for this reason; it is tried again.
    Failed(String),
}

/// The process that serves an environment.
enum Process {
    /// This supervisor started it.
    Child(Background),
    /// It served sessions before, or an earlier supervisor started it: its id and a pidfd.
    Other(u32, OwnedFd),
}

struct Mounts<'a> {
    engine: &'a Engine,
    dir: &'a Path,
    verbose: bool,
    tell: &'a dyn Fn(&str),
    known: BTreeMap<InstanceId, Known>,
    /// Processes that this supervisor started, and that go on for sessions.
    left: Vec<Background>,
}

impl Mounts<'_> {
    /// Makes the mounts match the records.
    fn follow(&mut self) -> Result<()> {
        self.left.retain_mut(|process| process.ended().is_none());
        let (environments, _) = self.engine.readable()?;
        let gone: Vec<InstanceId> = self.known.keys().copied().collect();
        for instance in gone.into_iter().filter(|id| environments.iter().all(|env| env.instance != *id)) {
            self.forget(&instance);
        }
        for env in environments {
            if matches!(env.state, EnvState::Archived | EnvState::Defined) {
                self.forget(&env.instance);
            } else {
                self.look_after(env);
            }
        }
        Ok(())
    }

    /// Forgets an environment that was removed or archived, and removes its directory. The command that did
    /// it has unmounted the environment.
    fn forget(&mut self, instance: &InstanceId) {
        if let Some(known) = self.known.remove(instance) {
            self.clear(&known.metadata.name);
        }
    }

    fn clear(&self, name: &str) {
        // `remove_dir` removes an empty directory only, so nothing can be lost; it fails while the mount is
        // still there.
        if let Err(error) = fs::remove_dir(self.dir.join(name)) {
            tracing::debug!("{name}: {error}");
        }
    }

    fn look_after(&mut self, env: Metadata) {
        let mut standing = None;
        if let Some(known) = self.known.remove(&env.instance) {
            if known.metadata.name != env.name {
                self.clear(&known.metadata.name);
            }
            let changed = (&known.metadata.name, known.metadata.state) != (&env.name, env.state);
            standing = match known.standing {
                Standing::Mounted(dir, process) => self.still_mounted(&env, dir, process, changed),
                Standing::Unmounted if !changed => Some(Standing::Unmounted),
                Standing::Failed(reason) if !changed => Some(self.mount(&env, Some(&reason))),
                _ => None,
            };
        }
        let standing = standing.unwrap_or_else(|| self.mount(&env, None));
        self.known.insert(env.instance, Known { metadata: env, standing });
    }

    /// The present standing of a mounted environment. `None` if it must be mounted again.
    fn still_mounted(
        &mut self,
        env: &Metadata,
        dir: PathBuf,
        mut process: Process,
        changed: bool,
    ) -> Option<Standing> {
        let was_unmounted = match self.ended(env, &mut process) {
            Some(by_itself) => by_itself,
            None => match self.engine.live_mount(&env.instance) {
                // The process goes on for sessions.
                Ok(Some(mount)) if mount.session || mount.dir != dir => {
                    if let Process::Child(process) = process {
                        self.left.push(process);
                    }
                    true
                }
                // If it is ending, the next look finds how it has ended.
                _ => return Some(Standing::Mounted(dir, process)),
            },
        };
        if !was_unmounted {
            (self.tell)(&format!("the server of {} was killed: mounting it again", env.name));
            return None;
        }
        if changed {
            return None;
        }
        (self.tell)(&format!(
            "{} was unmounted: mount it again with `karapace mount {}`",
            env.name, env.name
        ));
        self.clear(&env.name);
        Some(Standing::Unmounted)
    }

    /// `None` while the process runs; afterwards, whether it exited by itself rather than by a signal.
    fn ended(&self, env: &Metadata, process: &mut Process) -> Option<bool> {
        match process {
            Process::Child(process) => process.ended(),
            Process::Other(pid, process) if is_over(process, Duration::ZERO) => {
                // One that exits by itself removes the description of its mount.
                let left = self.engine.recorded_mount(&env.instance);
                Some(!left.is_ok_and(|left| left.is_some_and(|mount| mount.pid == *pid)))
            }
            Process::Other(..) => None,
        }
    }

    fn mount(&self, env: &Metadata, known_reason: Option<&str>) -> Standing {
        let dir = self.dir.join(&env.name);
        if let Ok(Some(mount)) = self.engine.live_mount(&env.instance)
            && mount.dir == dir
            && !mount.session
            && let Some(process) = opened(mount.pid)
        {
            return Standing::Mounted(dir, Process::Other(mount.pid, process));
        }
        let made = self.engine.mount(env, &dir, &Options::on_host(MountOptions::default()), self.verbose);
        let reason = match made {
            Ok(Mounted { dir, process: Some(process), .. }) => {
                return Standing::Mounted(dir, Process::Child(process));
            }
            Ok(Mounted { dir, pid, .. }) => match opened(pid) {
                Some(process) => return Standing::Mounted(dir, Process::Other(pid, process)),
                None => "its server has ended".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        if known_reason != Some(&reason) {
            (self.tell)(&format!("{} is not mounted here: {reason}", env.name));
        }
        Standing::Failed(reason)
    }

    /// Unmounts every environment that was mounted here. One that is in use stays mounted, served by its own
    /// process.
    fn end(mut self) {
        for (_, known) in std::mem::take(&mut self.known) {
            let Standing::Mounted(_, process) = known.standing else { continue };
            match self.engine.umount_env(&known.metadata) {
                // For sessions the process goes on.
                Ok(_) if matches!(self.engine.live_mount(&known.metadata.instance), Ok(None)) => {
                    if let Process::Child(process) = process {
                        process.wait();
                    }
                }
                Ok(_) => {}
                Err(Error::NotMounted { .. }) => {}
                Err(error) => (self.tell)(&format!("{} stays mounted: {error}", known.metadata.name)),
            }
            self.clear(&known.metadata.name);
        }
    }
}
