//! The ground: a user and a mount namespace with a range of ids, in which an environment is mounted for the
//! sessions of an ordinary user.
//!
//! A process of its own makes the namespaces, opens and mounts the device there, and hands it to the server,
//! which stays on the host. It remains as long as the mount: only it can look into the mount, unmount it, and
//! abort its connection if the server is killed. [`process`] is what it runs; the two exchange lines of JSON
//! through a socket, its standard input. Of two mounts, each that is on the host has such a process as a
//! [`Guard`].

pub mod process;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use karapace_fs::session::{End, Handover};
use karapace_store::wait;
use nix::poll::PollFlags;
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::socket::{receive, transmit};
use crate::engine::At as _;
use crate::engine::{Error, Result};
use crate::runtime::ranges::Ranges;
use crate::runtime::{Namespaces, Seen};

/// The hidden command that the process runs.
pub const COMMAND: &str = "ground";

/// How long an order may wait for one that looks into the mount, which may not answer; and how long an order
/// may take that does not look.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the server asks of the process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Mount: the ids are there.
    Mount { dir: PathBuf, source: String },
    /// Read what a session of this user needs to know of the environment.
    Look { user: Option<String> },
    /// Abort this connection, whose mount is on the host, if the server ends.
    Guard { dir: PathBuf, connection: Option<u32> },
    /// Unmount; `lazy`: even while it is in use.
    Unmount { lazy: bool },
    /// The mount ends in good order.
    Forget,
}

/// What the process answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// First of all: the namespaces are there, and have no ids yet.
    Alone,
    /// To `Mount`, with the descriptors of the device and of the namespaces of these kinds. `connection`: the
    /// minor device number of the mount.
    Mounted { namespaces: Vec<String>, connection: Option<u32> },
    /// To `Look`.
    Seen(Box<Seen>),
    /// To the others.
    Done,
    /// It failed.
    Failed { errno: i32, reason: String },
}

/// The ground of one environment, from the server's side. While it lives, so does the mount.
pub struct Ground {
    namespaces: Namespaces,
    connection: Option<u32>,
    holder: Arc<Holder>,
}

/// The process. It ends when this is dropped.
struct Holder {
    /// Where the environment is mounted.
    dir: PathBuf,
    pid: u32,
    process: OwnedFd,
    /// One order at a time.
    stream: Mutex<UnixStream>,
}

/// A process that aborts the connection of a mount on the host if the server is killed. Dropping this ends
/// it.
pub struct Guard(Holder);

impl Guard {
    /// Guards the mount on `dir`, whose connection has this number.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn of(dir: &Path, connection: Option<u32>) -> Result<Guard> {
        let holder = Holder::start(dir, &["--guard"])?;
        let order = Order::Guard { dir: dir.to_owned(), connection };
        match holder.exchange(&order)? {
            Report::Done => Ok(Guard(holder)),
            other => Err(unexpected(other)),
        }
    }

    /// Whether the process is still there.
    pub fn is_there(&self) -> bool {
        self.0.is_there()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.0.exchange_soon(&Order::Forget) {
            tracing::debug!("{error}");
        }
    }
}

impl Ground {
    /// Makes a ground with these ids and mounts on `dir` in it, an empty directory. `source` as in
    /// [`karapace_fs::session::Serving::mount`].
    ///
    /// # Errors
    /// [`Error::NoIds`] if the ids cannot be mapped, and if a step fails in the process.
    pub fn make(dir: &Path, source: &str, ranges: &Ranges) -> Result<(Ground, OwnedFd)> {
        let holder = Holder::start(dir, &[])?;
        ranges.give(holder.pid).map_err(|source| Error::NoIds { source })?;
        let order = Order::Mount { dir: dir.to_owned(), source: source.to_owned() };
        let (report, descriptors) = holder.exchange_all(&order)?;
        let mut descriptors = descriptors.into_iter();
        let (namespaces, connection, device) = match (report, descriptors.next()) {
            (Report::Mounted { namespaces, connection }, Some(device)) => (namespaces, connection, device),
            (other, _) => return Err(unexpected(other)),
        };
        let namespaces = Namespaces::from_parts(&namespaces, descriptors)
            .ok_or_else(|| Error::Invalid("the sessions' namespaces do not match".to_owned()))?;
        Ok((Ground { namespaces, connection, holder: Arc::new(holder) }, device))
    }

    /// What [`karapace_fs::session::Serving::take_over`] needs.
    pub fn handover(&self, device: OwnedFd) -> Handover {
        let holder = self.holder.clone();
        let unmount = Box::new(move |end| holder.end(end));
        Handover { device, dir: self.holder.dir.clone(), process: self.holder.pid, unmount }
    }

    /// The namespaces.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The minor device number of the mount.
    pub fn connection(&self) -> Option<u32> {
        self.connection
    }

    /// Paths under which a process of this user can open the namespaces, while the server lives: the user
    /// namespace first.
    pub fn namespace_paths(&self) -> Vec<PathBuf> {
        let fd =
            |fd: std::os::fd::BorrowedFd<'_>| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
        self.namespaces.descriptors().map(|open| PathBuf::from(fd(open))).collect()
    }

    /// What a session needs to know of the environment ([`Seen::look`]).
    ///
    /// # Errors
    /// Those of [`Seen::look`], and if the process is gone.
    pub fn look(&self, user: Option<&str>) -> Result<Seen> {
        match self.holder.exchange(&Order::Look { user: user.map(str::to_owned) })? {
            Report::Seen(seen) => Ok(*seen),
            other => Err(unexpected(other)),
        }
    }

    /// Whether the process is still there.
    pub fn is_held(&self) -> bool {
        self.holder.is_there()
    }
}

impl Holder {
    /// Starts the process, for the mount on `dir`.
    fn start(dir: &Path, arguments: &[&'static str]) -> Result<Holder> {
        let failed = |e: io::Error| Error::io("start a process for", dir, e);
        let (stream, inner) = UnixStream::pair().map_err(failed)?;
        let (pid, process) = start(inner, arguments).map_err(failed)?;
        let holder = Holder { dir: dir.to_owned(), pid, process, stream: Mutex::new(stream) };
        let (first, _) = answer(&holder.stream.lock())?;
        match first {
            Report::Alone => Ok(holder),
            other => Err(unexpected(other)),
        }
    }

    fn is_there(&self) -> bool {
        !wait::for_event(&self.process, PollFlags::POLLIN, Duration::ZERO).unwrap_or(false)
    }

    /// Ends the mount.
    ///
    /// # Errors
    /// [`karapace_fs::Error::Busy`] from [`End::Unmount`] while it is in use, and if the process is gone.
    fn end(&self, end: End) -> karapace_fs::Result<()> {
        let failed =
            |e: Error| karapace_fs::Error::host("unmount", &self.dir, io::Error::other(e.to_string()));
        if end == End::Abort {
            // Not an order: the process may wait for the mount.
            let sent = pidfd_send_signal(&self.process, process::SERVER_GONE);
            return sent.map_err(|errno| failed(Error::io("abort", &self.dir, errno.into())));
        }
        match self.exchange_soon(&Order::Unmount { lazy: end == End::Detach }) {
            Ok(Report::Done) => Ok(()),
            Ok(Report::Failed { errno: libc::EBUSY, .. }) => Err(karapace_fs::Error::Busy),
            Ok(other) => Err(failed(unexpected(other))),
            Err(error) => Err(failed(error)),
        }
    }

    fn exchange(&self, order: &Order) -> Result<Report> {
        Ok(self.exchange_all(order)?.0)
    }

    /// For an order that does not look into the mount. If the process does not answer, because it is stopped,
    /// it is given up: a later answer would be taken for another's.
    fn exchange_soon(&self, order: &Order) -> Result<Report> {
        let failed = |e: io::Error| Error::io("ask the process that holds", &self.dir, e);
        let Some(stream) = self.stream.try_lock_for(PATIENCE) else {
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "it waits for the mount")));
        };
        transmit(&stream, order, &[]).map_err(failed)?;
        let answers = wait::for_event(&*stream, PollFlags::POLLIN, PATIENCE).map_err(failed)?;
        if !answers {
            stream.shutdown(Shutdown::Both).unwrap_or(());
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")));
        }
        Ok(answer(&stream)?.0)
    }

    fn exchange_all(&self, order: &Order) -> Result<(Report, Vec<OwnedFd>)> {
        let stream = self.stream.lock();
        transmit(&stream, order, &[]).at("ask the process that holds", &self.dir)?;
        answer(&stream)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The process ends when its standard input does.
        self.stream.lock().shutdown(Shutdown::Both).unwrap_or(());
    }
}

/// Starts the process from a thread of its own, which lasts as long as the process: the kernel signals the
/// end of the thread that started it to the process ([`process`]).
fn start(input: UnixStream, arguments: &[&'static str]) -> io::Result<(u32, OwnedFd)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("karapace").arg(COMMAND).args(arguments);
    command.stdin(Stdio::from(OwnedFd::from(input))).stdout(Stdio::null());
    let (started, starts) = channel();
    let run = move || {
        let spawned = command.spawn().and_then(|child| {
            // Before it is waited for, so that the number is its own.
            let number = Pid::from_child(&child);
            Ok((pidfd_open(number, PidfdFlags::empty())?, child))
        });
        drop(command);
        match spawned {
            Ok((process, mut child)) => {
                started.send(Ok((child.id(), process))).unwrap_or(());
                if let Err(error) = child.wait() {
                    tracing::debug!("cannot wait for {COMMAND}: {error}");
                }
            }
            Err(error) => started.send(Err(error)).unwrap_or(()),
        }
    };
    std::thread::Builder::new().name("karapace-ground".to_owned()).spawn(run)?;
    starts.recv().map_err(io::Error::other)?
}

/// The next report.
fn answer(stream: &UnixStream) -> Result<(Report, Vec<OwnedFd>)> {
    let place = Path::new("the process that mounts for the sessions");
    let (line, descriptors) = receive(stream, usize::MAX).at("hear from", place)?;
    if line.is_empty() {
        return Err(Error::Invalid(format!("{} has ended", place.display())));
    }
    let report = serde_json::from_slice(&line).map_err(io::Error::from).at("understand", place)?;
    Ok((report, descriptors))
}

fn unexpected(report: Report) -> Error {
    match report {
        Report::Failed { errno, reason } => Error::Served { errno, reason },
        _ => Error::Invalid("the process that mounts for the sessions gave another answer".to_owned()),
    }
}
