//! A process that enters namespaces, makes another process in them as a child of karapace, and reports its
//! id.

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;

use super::init::{self, Preparation};
use super::namespaces::Namespaces;
use crate::runtime::channel::{Channel, Failure, Report};
use crate::runtime::sys;

/// Runs in a process of its own: enters the ground and makes process 1 there, as a child of karapace.
pub(in crate::runtime) fn from_ground(
    ground: &Namespaces,
    kinds: CloneFlags,
    preparation: &mut Preparation,
    channel: &Channel,
) -> ! {
    let enter = || {
        preparation.strings.erase()?;
        ground.enter()?;
        sys::clone_process(kinds | CloneFlags::CLONE_PARENT)
    };
    match enter() {
        Ok(None) => init::main(preparation, kinds, channel),
        other => sys::exit(announce(other, channel)),
    }
}

/// Reports to karapace whether the process was made for it. Returns the exit status for this process.
pub(in crate::runtime) fn announce(made: Result<Option<Pid>, Errno>, channel: &Channel) -> i32 {
    let report = match made {
        Ok(pid) => Report::Started(pid.map_or(0, Pid::as_raw)),
        Err(errno) => Report::Failed(Failure { action: "enter", path: b"the session", errno }),
    };
    // If karapace no longer listens, only the exit status says so.
    i32::from(channel.report(&report).is_err())
}
