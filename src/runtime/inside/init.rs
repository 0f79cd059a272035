//! Process 1 of an inside: sets everything up, then only waits, which keeps the inside alive.
//!
//! Root inside gains nothing through this process or through monitors; see `conceal`.

use std::ffi::{CStr, OsString};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{sethostname, setsid, write};

use super::conceal::{StartStrings, conceal};
use super::mounts::Mounts;
use super::{namespaces, network};
use crate::process;
use crate::runtime::channel::{Channel, Failure, MessageBuffer, Order, Report};
use crate::runtime::sys::{self, Filter};

/// What process 1 sets up.
pub(in crate::runtime) struct Preparation {
    /// The id maps of a new user namespace; `None` if the session uses an existing one.
    pub id_map: Option<IdMap>,
    pub hostname: OsString,
    /// The inside has a network namespace of its own: bring its loopback up.
    pub isolate_network: bool,
    pub mounts: Mounts,
    /// The system calls that are denied to process 1 itself.
    pub filter: Option<Filter>,
    pub strings: StartStrings,
}

/// The lines for `/proc/<pid>/uid_map` and `gid_map`.
pub(in crate::runtime) struct IdMap {
    pub uid: Vec<u8>,
    pub gid: Vec<u8>,
}

/// Like [`main`], but erases the start strings first.
pub(in crate::runtime) fn begin(preparation: &mut Preparation, kinds: CloneFlags, channel: &Channel) -> ! {
    if let Err(errno) = preparation.strings.erase() {
        // Karapace may be gone; then nobody needs the report.
        channel.report(&Report::Failed(fail("clear the arguments of")(errno))).ok();
        sys::exit(125);
    }
    main(preparation, kinds, channel)
}

/// Runs as process 1 of the new namespaces, whose kinds are in `kinds`, with all signals blocked, until the
/// other end of the channel is closed. Its start strings must have been erased.
pub(in crate::runtime) fn main(preparation: &mut Preparation, kinds: CloneFlags, channel: &Channel) -> ! {
    let mut buffer = MessageBuffer::new();
    // An error or the end of the stream: karapace died before it gave the first order.
    if !matches!(channel.next_order(&mut buffer), Ok(Some(Order::Prepare))) {
        sys::exit(125);
    }
    if let Err(failure) = prepare(preparation, kinds, channel) {
        // Karapace may be gone; then nobody needs the report.
        channel.report(&Report::Failed(failure)).ok();
        sys::exit(125);
    }
    // No further orders come; wait for the end of the stream.
    while let Ok(Some(_)) = channel.next_order(&mut buffer) {}
    // The kernel kills whatever is left in the process namespace.
    sys::exit(0)
}

/// Builds the failure of a step that concerns the session itself rather than a path.
pub(super) fn fail(action: &'static str) -> impl Fn(Errno) -> Failure<'static> {
    move |errno| Failure { action, path: b"the session", errno }
}

/// Sets up the inside, and reports that it is ready.
fn prepare<'p>(
    preparation: &'p mut Preparation,
    kinds: CloneFlags,
    channel: &Channel,
) -> Result<(), Failure<'p>> {
    // Process 1 outlives the session that started it, and that session's terminal.
    setsid().map_err(fail("detach"))?;
    // Before the process becomes undumpable, for then root would own the map files. No other process is in
    // this process namespace yet, so none can look.
    if let Some(map) = &preparation.id_map {
        map.write_own()?;
    }
    let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
    null.and_then(|null| stand_in(&null, 0)).map_err(fail("close the streams of"))?;
    conceal(&[Some(channel.fd())], 0, preparation.filter.as_ref()).map_err(fail("close"))?;
    prctl::set_name(c"karapace-init").map_err(fail("name"))?;
    // It inherits orphans and does not need their exit statuses.
    process::ignore_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    sethostname(&preparation.hostname).map_err(fail("set the host name of"))?;
    if preparation.isolate_network {
        network::raise_loopback().map_err(fail("bring up the network of"))?;
    }
    preparation.mounts.enter(channel)?;
    namespaces::announce(kinds, channel).map_err(fail("hand over the namespaces of"))?;
    // Close the detached mounts: all of them are attached now.
    sys::close_all_but(&[Some(channel.fd())], 3).map_err(fail("close the descriptors of"))
}

impl IdMap {
    /// Maps the one id of the calling process, which is alone in a new user namespace.
    fn write_own(&self) -> Result<(), Failure<'_>> {
        // Without privileges the group map may be written only after setgroups is denied.
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

/// Replaces the standard streams from `first` on with `null`: they would keep the caller's files open, and a
/// reader would wait in vain for the end of a pipe that the command has closed.
pub(super) fn stand_in(null: &OwnedFd, first: i32) -> Result<(), Errno> {
    (first..=2).try_for_each(|number| sys::replace_fd(null, number))
}
