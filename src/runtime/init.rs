//! Process 1 of an inside: prepares everything, then only lives, so that the inside does.
//!
//! What runs here and in `monitor` runs after `clone` in a copy of karapace that has one thread. It must not allocate, take
//! locks, print or panic; everything it needs was worked out before.
//!
//! Nothing of the host can be reached through these processes by root inside: they are closed to others (not dumpable; their
//! memory belongs to the caller's user namespace, in which nobody inside has rights), so that what /proc shows of their
//! descriptors and their program is out of reach.

use std::ffi::CStr;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, sethostname, setsid, write};

use super::channel::{Channel, Failure, MessageBuffer, Order, Report};
use super::plan::{IdMap, Preparation};
use super::{network, sys};

/// Runs as process 1 of the new namespaces, with all signals blocked, until nobody holds the other end of the channel.
pub(super) fn main(preparation: &mut Preparation, channel: &Channel) -> ! {
    let mut buffer = MessageBuffer::new();
    // Karapace died before it began.
    if !matches!(channel.next_order(&mut buffer), Ok(Some(Order::Prepare))) {
        sys::exit(125);
    }
    let report = match prepare(preparation, channel) {
        Ok(()) => Report::Ready,
        Err(failure) => Report::Failed(failure),
    };
    if channel.report(&report).is_err() || report != Report::Ready {
        sys::exit(125);
    }
    // Nothing is ordered any more; what is waited for is the end.
    while let Ok(Some(_)) = channel.next_order(&mut buffer) {}
    // All else that lives here, so that nobody uses what is taken away; nobody there is no error.
    sys::kill(Pid::from_raw(-1), libc::SIGKILL).ok();
    preparation.mounts.leave();
    // The kernel kills whatever may be left.
    sys::exit(0)
}

/// A failure of a process of the session itself.
pub(super) fn fail(action: &'static str) -> impl Fn(Errno) -> Failure<'static> {
    move |errno| Failure { action, path: b"the session", errno }
}

/// Makes the inside.
fn prepare<'p>(preparation: &'p mut Preparation, channel: &Channel) -> Result<(), Failure<'p>> {
    // It outlives the session that began it, and the terminal of that.
    setsid().map_err(fail("detach"))?;
    if let Some(map) = &preparation.id_map {
        map.write_own()?;
    }
    prctl::set_dumpable(false).map_err(fail("close"))?;
    prctl::set_name(c"karapace-init").map_err(fail("name"))?;
    // It inherits orphans and has no use for their statuses.
    sys::ignore_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    sethostname(&preparation.hostname).map_err(fail("name the host of"))?;
    if preparation.isolate_network {
        network::raise_loopback().map_err(fail("bring up the network of"))?;
    }
    preparation.mounts.enter(channel)?;
    release(&[channel], 0).map_err(fail("let go of the descriptors of"))
}

impl IdMap {
    /// Gives the calling process, alone in a new user namespace, its one id.
    fn write_own(&self) -> Result<(), Failure<'_>> {
        // A group map may be written without privileges only where setgroups is given up.
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", &self.uid)?;
        write_file(c"/proc/self/gid_map", &self.gid)
    }
}

fn write_file(path: &'static CStr, bytes: &[u8]) -> Result<(), Failure<'static>> {
    open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| write(&file, bytes))
        .map(drop)
        .map_err(|errno| Failure { action: "write", path: path.to_bytes(), errno })
}

/// Closes what a process of the session has no use for: it would keep files of the caller open, and hold up whoever waits for
/// the end of a pipe that the command has closed. Standard streams below `first` stay.
pub(super) fn release(channels: &[&Channel; 1], first: i32) -> Result<(), Errno> {
    sys::close_all_but(&channels.map(Channel::fd))?;
    let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    (first..=2).try_for_each(|number| sys::replace_fd(&null, number))
}
