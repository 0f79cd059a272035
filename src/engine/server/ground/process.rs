//! The process that makes a ground and holds it.
//!
//! If the server is killed while one of its threads waits in the kernel for a lock that a process inside
//! holds, that thread keeps the connection open, and both would wait for ever. So this process is told when
//! the server's other threads are gone (PR_SET_PDEATHSIG is about the thread that started it), and then
//! aborts the connection, which root of the user namespace may do (umount2(2), MNT_FORCE).

use std::io::{self, stdin};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karapace_fs::session::{MountOptions, abort, mount_device};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use parking_lot::Mutex;

use super::{Order, Report};
use crate::engine::At as _;
use crate::engine::mountpoint;
use crate::engine::server::socket::{receive, transmit};
use crate::engine::{Error, Result};
use crate::process;
use crate::runtime::{Namespaces, Seen};

/// The namespaces of a ground.
const KINDS: CloneFlags = CloneFlags::CLONE_NEWUSER.union(CloneFlags::CLONE_NEWNS);

/// The signal that says that the server is gone, or asks for the same as if it were.
pub(super) const SERVER_GONE: rustix::process::Signal = rustix::process::Signal::USR1;

/// Signals to the server's group or session, which ends this process by itself.
const NOT_FOR_US: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The mount of which this process has charge, if there is one.
type Mounted = Arc<Mutex<Option<Charge>>>;

#[derive(Clone)]
struct Charge {
    dir: PathBuf,
    /// Its connection, if it is on the host.
    connection: Option<u32>,
}

/// Runs until the server closes standard input, or is gone. `on_host`: only guards a mount on the host. The
/// calling process must be single-threaded.
///
/// # Errors
/// If it cannot begin; what fails later is reported to the server.
pub fn run(on_host: bool) -> Result<()> {
    let place = Path::new("the server");
    let stream = stdin().as_fd().try_clone_to_owned().map(UnixStream::from).at("hear from", place)?;
    let signals = prepare().map_err(io::Error::from).at("prepare for the end of", place)?;
    let alone = if on_host { Ok(()) } else { unshare(KINDS) };
    // Only now: a change of credentials takes the signal back.
    let begun = alone.and_then(|()| prctl::set_pdeathsig(signal()?)).map_err(io::Error::from);
    let begun = begun.at("make a user namespace for", Path::new("the sessions"));
    let first = begun.map_or_else(|error| failed(&error), |()| Report::Alone);
    transmit(&stream, &first, &[]).at("report to", place)?;
    let mounted = Mounted::default();
    while is_asked(&stream, &signals).map_err(io::Error::from).at("wait for", place)? {
        let (line, _) = receive(&stream, usize::MAX).at("hear from", place)?;
        if line.is_empty() {
            break;
        }
        let order = serde_json::from_slice(&line).map_err(io::Error::from).at("understand", place)?;
        obey(order, &stream, &mounted).at("report to", place)?;
    }
    let left = mounted.lock().clone();
    if let Some(Charge { dir, connection }) = left {
        abort(&dir, connection).at("abort the connection of", &dir)?;
    }
    Ok(())
}

/// Sets up the signals; returns what becomes readable when the server is gone.
fn prepare() -> nix::Result<SignalFd> {
    process::become_server()?;
    NOT_FOR_US.into_iter().try_for_each(process::ignore_signal)?;
    let gone = SigSet::from(signal()?);
    gone.thread_block()?;
    SignalFd::with_flags(&gone, SfdFlags::SFD_CLOEXEC)
}

fn signal() -> nix::Result<Signal> {
    Signal::try_from(SERVER_GONE.as_raw())
}

/// Waits for an order. False if the server is gone.
fn is_asked(stream: &UnixStream, signals: &SignalFd) -> nix::Result<bool> {
    let mut waiting =
        [PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    while poll(&mut waiting, PollTimeout::NONE) == Err(Errno::EINTR) {}
    Ok(!waiting[1].any().unwrap_or(true))
}

/// Carries out an order and reports.
fn obey(order: Order, stream: &UnixStream, mounted: &Mounted) -> io::Result<()> {
    match order {
        Order::Mount { dir, source } => match mount_on(&dir, &source) {
            Ok((report, descriptors)) => {
                *mounted.lock() = Some(Charge { dir, connection: None });
                let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                transmit(stream, &report, &descriptors)
            }
            Err(error) => transmit(stream, &failed(&error), &[]),
        },
        Order::Look { user } => {
            let dir = mounted.lock().as_ref().map(|charge| charge.dir.clone());
            apart(stream, move || look(dir, user.as_deref()))
        }
        Order::Guard { dir, connection } => {
            *mounted.lock() = Some(Charge { dir, connection });
            transmit(stream, &Report::Done, &[])
        }
        Order::Forget => {
            *mounted.lock() = None;
            transmit(stream, &Report::Done, &[])
        }
        Order::Unmount { lazy } => {
            let mounted = mounted.clone();
            apart(stream, move || unmount(&mounted, lazy).map(|()| Report::Done))
        }
    }
}

/// Opens a device and mounts it. The descriptors are the device's and those of the namespaces.
fn mount_on(dir: &Path, source: &str) -> Result<(Report, Vec<OwnedFd>)> {
    let device = mount_device(dir, source, &MountOptions::default())?;
    let connection = mountpoint::fuse_device(dir)?;
    let namespaces = Namespaces::own(KINDS)?;
    let mut descriptors = vec![device];
    for open in namespaces.descriptors() {
        descriptors.push(open.try_clone_to_owned().at("keep the namespaces of", dir)?);
    }
    Ok((Report::Mounted { namespaces: namespaces.names(), connection }, descriptors))
}

/// Does something on a thread of its own, which reports: the mount may not answer, and this process must go
/// on waiting for the end of the server.
fn apart(stream: &UnixStream, work: impl FnOnce() -> Result<Report> + Send + 'static) -> io::Result<()> {
    let stream = stream.try_clone()?;
    let work = move || {
        let report = work().unwrap_or_else(|error| failed(&error));
        // The server may be gone.
        transmit(&stream, &report, &[]).unwrap_or(());
    };
    std::thread::Builder::new().name("karapace-order".to_owned()).spawn(work).map(drop)
}

fn look(dir: Option<PathBuf>, user: Option<&str>) -> Result<Report> {
    let dir = dir.ok_or_else(|| Error::NotMounted { what: "the environment".to_owned() })?;
    Ok(Report::Seen(Box::new(Seen::look(&dir, user)?)))
}

fn unmount(mounted: &Mounted, lazy: bool) -> Result<()> {
    // Not locked meanwhile: the connection is aborted if the server ends.
    let Some(Charge { dir, .. }) = mounted.lock().clone() else { return Ok(()) };
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(dir.as_path(), flags) {
        // EINVAL: nothing is mounted there any more.
        Ok(()) | Err(Errno::EINVAL) => {
            *mounted.lock() = None;
            Ok(())
        }
        Err(errno) => Err(Error::io("unmount", &dir, errno.into())),
    }
}

fn failed(error: &Error) -> Report {
    Report::Failed { errno: error.errno(), reason: error.to_string() }
}
