//! The ground: a user and a mount namespace with a range of ids, in which an environment is mounted for the
//! sessions of an ordinary user.
//!
//! A process of its own makes the namespaces, opens and mounts the device there, and hands it to the server,
//! which stays on the host. It remains as long as the mount: only it can look into the mount, unmount it, and
//! abort its connection if the server is killed. [`process`] is what it runs; the two exchange lines of JSON
//! through a socket, its standard input.

pub mod process;

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;

use karapace_fs::session::Handover;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::socket::{receive, transmit};
use crate::engine::At as _;
use crate::engine::{Error, Result};
use crate::runtime::ranges::Ranges;
use crate::runtime::{Namespaces, Seen};

/// The hidden command that the process runs.
pub const COMMAND: &str = "ground";

/// What the server asks of the process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// Mount: the ids are there.
    Mount { dir: PathBuf, source: String },
    /// Read what a session of this user needs to know of the environment.
    Look { user: Option<String> },
    /// Unmount; `lazy`: even while it is in use.
    Unmount { lazy: bool },
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
    /// To `Unmount`.
    Unmounted,
    /// It failed.
    Failed { errno: i32, reason: String },
}

/// The ground of one environment, from the server's side. While it lives, so does the mount.
pub struct Ground {
    namespaces: Namespaces,
    connection: Option<u32>,
    pid: u32,
    holder: Arc<Holder>,
}

/// The process that holds the ground. It ends when this is dropped.
struct Holder {
    /// Where the environment is mounted in the ground.
    dir: PathBuf,
    /// One order at a time.
    stream: Mutex<UnixStream>,
}

impl Ground {
    /// Makes a ground with these ids and mounts on `dir` in it, an empty directory. `source` as in
    /// [`karapace_fs::session::Serving::mount`].
    ///
    /// # Errors
    /// [`Error::NoIds`] if the ids cannot be mapped, and if a step fails in the process.
    pub fn make(dir: &Path, source: &str, ranges: &Ranges) -> Result<(Ground, OwnedFd)> {
        let failed = |e: io::Error| Error::io("make a user namespace for", Path::new("the sessions"), e);
        let (stream, inner) = UnixStream::pair().map_err(failed)?;
        let pid = start(inner).map_err(failed)?;
        let begun = || -> Result<(Ground, OwnedFd)> {
            match answer(&stream)? {
                (Report::Alone, _) => ranges.give(pid).map_err(|source| Error::NoIds { source })?,
                (other, _) => return Err(unexpected(other)),
            }
            let order = Order::Mount { dir: dir.to_owned(), source: source.to_owned() };
            transmit(&stream, &order, &[]).map_err(failed)?;
            let (report, descriptors) = answer(&stream)?;
            let mut descriptors = descriptors.into_iter();
            let (Report::Mounted { namespaces, connection }, Some(device)) = (report, descriptors.next())
            else {
                return Err(Error::Invalid("the sessions' mount has no device".to_owned()));
            };
            let namespaces = Namespaces::from_parts(&namespaces, descriptors)
                .ok_or_else(|| Error::Invalid("the sessions' namespaces do not match".to_owned()))?;
            let stream = Mutex::new(stream.try_clone().map_err(failed)?);
            let holder = Arc::new(Holder { dir: dir.to_owned(), stream });
            Ok((Ground { namespaces, connection, pid, holder }, device))
        };
        let made = begun();
        if made.is_err() {
            // The process ends when its standard input does.
            stream.shutdown(Shutdown::Both).unwrap_or(());
        }
        made
    }

    /// What [`karapace_fs::session::Serving::take_over`] needs.
    pub fn handover(&self, device: OwnedFd) -> Handover {
        let holder = self.holder.clone();
        let unmount = Box::new(move |lazy| holder.unmount(lazy));
        Handover { device, dir: self.holder.dir.clone(), process: self.pid, unmount }
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
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.holder.stream.lock().as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

impl Holder {
    /// Unmounts.
    ///
    /// # Errors
    /// [`karapace_fs::Error::Busy`] while it is in use and not `lazy`, and if the process is gone.
    fn unmount(&self, lazy: bool) -> karapace_fs::Result<()> {
        let failed =
            |e: Error| karapace_fs::Error::host("unmount", &self.dir, io::Error::other(e.to_string()));
        match self.exchange(&Order::Unmount { lazy }) {
            Ok(Report::Unmounted) => Ok(()),
            Ok(Report::Failed { errno: libc::EBUSY, .. }) => Err(karapace_fs::Error::Busy),
            Ok(other) => Err(failed(unexpected(other))),
            Err(error) => Err(failed(error)),
        }
    }

    fn exchange(&self, order: &Order) -> Result<Report> {
        let stream = self.stream.lock();
        transmit(&stream, order, &[]).at("ask the process that holds", &self.dir)?;
        Ok(answer(&stream)?.0)
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
fn start(input: UnixStream) -> io::Result<u32> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("karapace").arg(COMMAND);
    command.stdin(Stdio::from(OwnedFd::from(input))).stdout(Stdio::null());
    let (started, starts) = channel();
    let run = move || {
        let mut child: Option<Child> = None;
        let pid = command.spawn().map(|spawned| child.insert(spawned).id());
        drop(command);
        started.send(pid).unwrap_or(());
        if let Some(Err(error)) = child.map(|mut child| child.wait()) {
            tracing::debug!("cannot wait for {COMMAND}: {error}");
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
