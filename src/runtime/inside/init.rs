//! Process 1 of an inside: prepares everything, then only lives, so that the inside does.
//!
//! Root inside can reach nothing through this process nor through monitors: `conceal` says how.

use std::ffi::{CStr, OsString};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, sethostname, setsid, write};

use super::conceal::{StartStrings, conceal};
use super::mounts::Mounts;
use super::{namespaces, network};
use crate::process;
use crate::runtime::channel::{Channel, Failure, MessageBuffer, Order, Report};
use crate::runtime::sys::{self, Filter};

/// What process 1 does.
pub(in crate::runtime) struct Preparation {
    /// The ids of a new user namespace; `None` when the session shares those that there are.
    pub id_map: Option<IdMap>,
    pub hostname: OsString,
    /// The inside has a network of its own: bring its loopback up.
    pub isolate_network: bool,
    pub mounts: Mounts,
    /// What process 1 itself may not ask the kernel for.
    pub filter: Option<Filter>,
    pub strings: StartStrings,
}

/// The lines for `/proc/<pid>/uid_map` and `gid_map`.
pub(in crate::runtime) struct IdMap {
    pub uid: Vec<u8>,
    pub gid: Vec<u8>,
}

/// As [`main`], and erases the start strings before.
pub(in crate::runtime) fn begin(preparation: &mut Preparation, kinds: CloneFlags, channel: &Channel) -> ! {
    if let Err(errno) = preparation.strings.erase() {
        // When nobody listens any more there is nobody to tell.
        channel.report(&Report::Failed(fail("hide the arguments of")(errno))).ok();
        sys::exit(125);
    }
    main(preparation, kinds, channel)
}

/// Runs as process 1 of the new namespaces, of the kinds in `kinds`, with all signals blocked, until nobody
/// holds the other end of the channel. Its start strings are erased.
pub(in crate::runtime) fn main(preparation: &mut Preparation, kinds: CloneFlags, channel: &Channel) -> ! {
    let mut buffer = MessageBuffer::new();
    // Karapace died before it began.
    if !matches!(channel.next_order(&mut buffer), Ok(Some(Order::Prepare))) {
        sys::exit(125);
    }
    if let Err(failure) = prepare(preparation, kinds, channel) {
        // When nobody listens any more there is nobody to tell.
        channel.report(&Report::Failed(failure)).ok();
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

/// Makes the inside, and reports that it is ready.
fn prepare<'p>(
    preparation: &'p mut Preparation,
    kinds: CloneFlags,
    channel: &Channel,
) -> Result<(), Failure<'p>> {
    // It outlives the session that began it, and the terminal of that.
    setsid().map_err(fail("detach"))?;
    // Before it is closed to others, for then the map is root's. There is nobody else in its process
    // namespace yet.
    if let Some(map) = &preparation.id_map {
        map.write_own()?;
    }
    let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    null.and_then(|null| stand_in(&null, 0)).map_err(fail("let go of the streams of"))?;
    conceal(&[Some(channel.fd())], 0, preparation.filter.as_ref()).map_err(fail("close"))?;
    prctl::set_name(c"karapace-init").map_err(fail("name"))?;
    // It inherits orphans and has no use for their statuses.
    process::ignore_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    sethostname(&preparation.hostname).map_err(fail("name the host of"))?;
    if preparation.isolate_network {
        network::raise_loopback().map_err(fail("bring up the network of"))?;
    }
    preparation.mounts.enter(channel)?;
    namespaces::announce(kinds, channel).map_err(fail("hand over"))?;
    // What was mounted by descriptor is mounted now.
    sys::close_all_but(&[Some(channel.fd())], 3).map_err(fail("let go of the descriptors of"))
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

/// Puts `null` in the place of the standard streams from `first` on: they would keep files of the caller
/// open, and hold up whoever waits for the end of a pipe that the command has closed.
pub(super) fn stand_in(null: &OwnedFd, first: i32) -> Result<(), Errno> {
    (first..=2).try_for_each(|number| sys::replace_fd(null, number))
}
