//! Namespaces held open by descriptors: what a process enters to be inside.

use std::array;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::runtime::channel::Channel;

/// Each kind's name, where a process finds its own, and its flag. The order is the one to enter them in:
/// entering the user namespace gives the rights to enter the others.
pub(in crate::runtime) const KINDS: [(&str, &CStr, CloneFlags); 6] = [
    ("user", c"/proc/self/ns/user", CloneFlags::CLONE_NEWUSER),
    ("mnt", c"/proc/self/ns/mnt", CloneFlags::CLONE_NEWNS),
    ("pid", c"/proc/self/ns/pid", CloneFlags::CLONE_NEWPID),
    ("uts", c"/proc/self/ns/uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", c"/proc/self/ns/ipc", CloneFlags::CLONE_NEWIPC),
    ("net", c"/proc/self/ns/net", CloneFlags::CLONE_NEWNET),
];

/// Open namespaces, at most one of each kind. They live at least as long as this value: a caller that waits
/// for the mounts in them to end must not hold it.
#[derive(Debug)]
pub struct Namespaces(pub(in crate::runtime) Vec<(CloneFlags, OwnedFd)>);

impl Namespaces {
    /// Moves the calling process, which must be single-threaded, into the namespaces. Only its future
    /// children enter the process namespace.
    pub(in crate::runtime) fn enter(&self) -> Result<(), Errno> {
        self.0.iter().try_for_each(|(kind, fd)| setns(fd, *kind))
    }
}

/// Reports that the inside is ready, and sends this process's namespaces of the kinds in `kinds`: no other
/// process may open those of a process that is not dumpable.
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
