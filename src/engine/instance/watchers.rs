//! Notifies programs that watch files in a mount of what a restore changed: the process whose calls make the
//! kernel raise the events, and the server's side of it (`fs/src/fuse/watchers.rs` answers the calls).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use karapace_fs::attr::{Became, Told};
use karapace_fs::path_text::PathText;
use karapace_fs::session::Watchers;
use karapace_store::id::InstanceId;
use karapace_store::inode::FileKind;
use karapace_store::wait;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, Mode, Nsecs, OFlags, ResolveFlags, Timestamps, UTIME_NOW, UTIME_OMIT, mkdirat, mknodat, open,
    openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno as HostErrno;
use serde::{Deserialize, Serialize};

use crate::engine::At as _;
use crate::engine::{Error, Result};

/// How long a restore waits for the process. The process can block on a directory's lock that another process
/// holds.
const PATIENCE: Duration = Duration::from_secs(2);

/// The hidden command that the process runs.
pub const COMMAND: &str = "tell-watchers";

/// The process's input.
#[derive(Serialize, Deserialize)]
struct Task {
    /// See [`Watchers::begin`].
    probe: String,
    steps: Vec<Step>,
}

/// One path for the process.
#[derive(Serialize, Deserialize)]
struct Step {
    path: PathText,
    act: Act,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    /// Make an entry of the kind with these type bits.
    Make(u32),
    /// Remove an entry.
    Remove { directory: bool },
    /// Write a file.
    Change,
    /// Change attributes.
    Touch,
}

impl Step {
    fn new(told: &Told) -> Step {
        let act = match told.became {
            Became::Come(kind) => Act::Make(kind.to_mode()),
            Became::Gone(kind) => Act::Remove { directory: kind == FileKind::Directory },
            Became::Content => Act::Change,
            Became::Other => Act::Touch,
        };
        Step { path: PathText(told.path.clone()), act }
    }
}

/// A mount in which programs may watch files.
#[derive(Clone)]
pub struct Place {
    /// The mount point.
    pub dir: PathBuf,
    /// Paths of the namespaces in which it is one, the user namespace first; none if this process is in them.
    pub namespaces: Vec<PathBuf>,
}

/// Notifies watchers in all mounts.
pub struct Teller {
    watchers: Watchers,
    places: Mutex<Vec<Place>>,
    /// One process at a time.
    turn: Mutex<()>,
}

impl Teller {
    /// For the mounts that are added.
    pub fn new(watchers: Watchers) -> Teller {
        Teller { watchers, places: Mutex::default(), turn: Mutex::default() }
    }

    /// From now on watchers in this mount are notified.
    pub fn add(&self, place: Place) {
        self.places.lock().push(place);
    }

    /// From now on those in the mount on `dir` are not.
    pub fn remove(&self, dir: &Path) {
        self.places.lock().retain(|place| place.dir != dir);
    }

    /// Raises the events; returns when they are queued, or after a timeout. Failures are only logged, because
    /// the restore is already done. Must not be called by a thread that answers the kernel.
    pub fn tell(&self, told: &[Told]) {
        if told.is_empty() {
            return;
        }
        let places = self.places.lock().clone();
        for place in places {
            let start = Instant::now();
            let turn = self.turn.try_lock_for(PATIENCE);
            let done = match &turn {
                Some(_) => self.run(&place, told),
                None => Err(io::Error::other("an earlier restore is still being reported")),
            };
            match done {
                Ok(()) => tracing::debug!("told watchers of {} paths in {:?}", told.len(), start.elapsed()),
                Err(error) => {
                    let dir = place.dir.display();
                    tracing::warn!(
                        "programs that watch files in {dir} may not have noticed the restore: {error}"
                    );
                }
            }
        }
    }

    fn run(&self, place: &Place, told: &[Told]) -> io::Result<()> {
        let probe = format!(".karapace-{}", InstanceId::random().map_err(io::Error::other)?.to_hex());
        let task = Task { probe, steps: told.iter().map(Step::new).collect() };
        let text = serde_json::to_vec(&task)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("karapace").arg(COMMAND).arg(&place.dir).args(&place.namespaces);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        // The server must know the process before it reads its task.
        let is_alone = self.watchers.begin(child.id(), &task.probe, told);
        if let Some(mut input) = input.filter(|_| is_alone) {
            // Do not block here on a process that does not read. The thread ends when the process does.
            let write = move || {
                if let Err(error) = input.write_all(&text) {
                    tracing::debug!("cannot write to {COMMAND}: {error}");
                }
            };
            // Without the thread the process's input ends at once, and so the process ends.
            if let Err(error) = std::thread::Builder::new().name("karapace-tell".to_owned()).spawn(write) {
                tracing::debug!("cannot write to {COMMAND}: {error}");
            }
        }
        let ended = output.map_or(Ok(true), |output| ends_in_time(output.as_fd()));
        let in_time = matches!(ended, Ok(true));
        if !in_time && let Err(error) = child.kill() {
            tracing::debug!("cannot kill {COMMAND}: {error}");
        }
        let watchers = is_alone.then(|| self.watchers.clone());
        let reap = move || reap(child, watchers);
        if !in_time {
            // One of the process's calls may have to be answered before it can die.
            std::thread::Builder::new().name("karapace-reaper".to_owned()).spawn(reap)?;
            ended?;
            return Err(io::Error::other(format!("it took more than {} s", PATIENCE.as_secs())));
        }
        let succeeded = reap();
        match (is_alone, succeeded) {
            (false, _) => Err(io::Error::other("the process for an earlier one has not ended")),
            (_, false) => Err(io::Error::other("the process that makes the calls failed")),
            _ => Ok(()),
        }
    }
}

/// Waits until the process ends, which closes its output. False after [`PATIENCE`].
fn ends_in_time(output: BorrowedFd<'_>) -> io::Result<bool> {
    wait::for_event(output, PollFlags::POLLIN, PATIENCE)
}

/// Waits for the process to end and reaps it; its id is not reused before that. Returns whether it succeeded.
fn reap(mut child: Child, watchers: Option<Watchers>) -> bool {
    let id = || Id::Pid(Pid::from_raw(child.id().cast_signed()));
    // The server must know the process until it has ended: a call that it makes later would really be carried
    // out.
    while waitid(id(), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    if let Some(watchers) = watchers {
        watchers.end();
    }
    child.wait().is_ok_and(|status| status.success())
}

/// Makes the calls that standard input lists, in the mount on `dir` in these namespaces ([`Place`]). Runs in
/// the process that [`Teller::tell`] starts.
pub fn make_calls(dir: &Path, namespaces: &[PathBuf]) -> Result<()> {
    // All are opened before the first is entered, for the paths may mean nothing there.
    let hold = |path: &PathBuf| File::open(path).at("open", path);
    for (namespace, path) in namespaces.iter().map(hold).collect::<Result<Vec<_>>>()?.iter().zip(namespaces) {
        setns(namespace, CloneFlags::empty()).map_err(io::Error::from).at("enter", path)?;
    }
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).at("read", Path::new("standard input"))?;
    let Task { probe, steps } = serde_json::from_slice(&text).map_err(|e| Error::Invalid(e.to_string()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = open(dir, flags, Mode::empty()).at("open", dir)?;
    // The calls change nothing only if the server knows this process.
    if statat(&root, probe, AtFlags::SYMLINK_NOFOLLOW).err() != Some(HostErrno::ALREADY) {
        return Err(Error::Invalid(format!(
            "{} is not the mount, or its server does not recognize this process",
            dir.display()
        )));
    }
    let mut parent: Option<(Vec<u8>, Option<OwnedFd>)> = None;
    for Step { path: PathText(path), act } in steps {
        let (above, name) = path.split_at(path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
        if parent.as_ref().is_none_or(|(known, _)| known != above) {
            parent = Some((above.to_vec(), directory(&root, above)));
        }
        if let Some((_, Some(dir))) = &parent {
            make_call(dir.as_fd(), if name.is_empty() { b"." } else { name }, act);
        }
    }
    Ok(())
}

/// Opens a path in this mount only: what is mounted on top of it is not ours to touch.
fn open_here(dir: impl AsFd, path: &[u8], flags: OFlags) -> Option<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

/// A directory in the mount.
fn directory(root: &OwnedFd, path: &[u8]) -> Option<OwnedFd> {
    open_here(root, &[b".", path].concat(), OFlags::PATH | OFlags::DIRECTORY)
}

/// Makes the calls for one path. Ignores failures: the path has changed again, or this user may not do it.
fn make_call(dir: BorrowedFd<'_>, name: &[u8], act: Act) {
    match act {
        Act::Remove { directory } => {
            let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _refused = unlinkat(dir, name, flags);
        }
        Act::Make(bits) => {
            let kind = rustix::fs::FileType::from_raw_mode(bits);
            let made = match FileKind::from_mode(bits) {
                Some(FileKind::Directory) => mkdirat(dir, name, Mode::RWXU),
                Some(FileKind::Symlink) => symlinkat("none", dir, name),
                _ => mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, 0),
            };
            // The kernel already has the inode, by another name or from before.
            if made.is_err() {
                set_times(dir, name, UTIME_OMIT);
            }
            write_none(dir, name);
        }
        Act::Change => {
            set_times(dir, name, UTIME_OMIT);
            write_none(dir, name);
        }
        Act::Touch => set_times(dir, name, UTIME_NOW),
    }
}

/// Raises IN_MODIFY or, if the access time is set as well, IN_ATTRIB.
fn set_times(dir: BorrowedFd<'_>, name: &[u8], access: Nsecs) {
    let time = |tv_nsec| rustix::fs::Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps { last_access: time(access), last_modification: time(UTIME_NOW) };
    if let Some(file) = open_here(dir, name, OFlags::PATH | OFlags::NOFOLLOW) {
        let _refused = utimensat(&file, "", &times, AtFlags::EMPTY_PATH);
    }
}

/// Opens a regular file for writing and closes it, which raises IN_CLOSE_WRITE. Skips executables: a program
/// cannot be started while it is open for writing.
fn write_none(dir: BorrowedFd<'_>, name: &[u8]) {
    let found = open_here(dir, name, OFlags::PATH | OFlags::NOFOLLOW);
    let is_plain = found
        .and_then(|file| statat(&file, "", AtFlags::EMPTY_PATH).ok())
        .is_some_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_mode & 0o111 == 0);
    if is_plain {
        drop(open_here(dir, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY));
    }
}
