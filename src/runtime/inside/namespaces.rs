//! Namespaces kept by descriptors: what a process has to enter to be inside.

use std::array;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::runtime::channel::Channel;

/// The kinds: their names, where a process finds its own, and their flags; in the order in which they can be
/// entered: the rights to enter the others come with the user namespace.
pub(in crate::runtime) const KINDS: [(&str, &CStr, CloneFlags); 6] = [
    ("user", c"/proc/self/ns/user", CloneFlags::CLONE_NEWUSER),
    ("mnt", c"/proc/self/ns/mnt", CloneFlags::CLONE_NEWNS),
    ("pid", c"/proc/self/ns/pid", CloneFlags::CLONE_NEWPID),
    ("uts", c"/proc/self/ns/uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", c"/proc/self/ns/ipc", CloneFlags::CLONE_NEWIPC),
    ("net", c"/proc/self/ns/net", CloneFlags::CLONE_NEWNET),
];

/// Open namespaces, at most one of a kind. They last at least as long as this does: whoever waits for what is
/// mounted in them to end must not hold it.
#[derive(Debug)]
pub struct Namespaces(pub(in crate::runtime) Vec<(CloneFlags, OwnedFd)>);

impl Namespaces {
    /// Puts the calling process, which must have one thread, inside; into the process namespace only its
    /// children to come.
    pub(in crate::runtime) fn enter(&self) -> Result<(), Errno> {
        self.0.iter().try_for_each(|(kind, fd)| setns(fd, *kind))
    }
}

/// Reports that the inside is ready, with the namespaces of this process of the kinds in `kinds`: nobody else
/// may open those of a process that is closed to others.
pub(in crate::runtime) fn announce(kinds: CloneFlags, channel: &Channel) -> Result<(), Errno> {
    let mut open: [Option<OwnedFd>; KINDS.len()] = array::from_fn(|_| None);
    let mut count = 0;
    for (_, path, _) in KINDS.iter().filter(|(.., kind)| kinds.contains(*kind)) {
        open[count] = Some(open_own(path)?);
        count += 1;
    }
    let sent: [BorrowedFd<'_>; KINDS.len()] =
        array::from_fn(|at| open[at].as_ref().map_or(channel.as_fd(), AsFd::as_fd));
    channel.report_ready(&sent[..count])
}

pub(in crate::runtime) fn open_own(path: &CStr) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}
