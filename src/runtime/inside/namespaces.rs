//! Namespaces kept by descriptors: what a process has to enter to be inside.

use std::array;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, fstat};

use crate::runtime::RuntimeError;
use crate::runtime::channel::Channel;
use crate::runtime::supervise::running::failed;

/// The kinds: their names, where a process finds its own, and their flags; in the order in which they can be entered: the rights
/// to enter the others come with the user namespace.
const KINDS: [(&str, &CStr, CloneFlags); 6] = [
    ("user", c"/proc/self/ns/user", CloneFlags::CLONE_NEWUSER),
    ("mnt", c"/proc/self/ns/mnt", CloneFlags::CLONE_NEWNS),
    ("pid", c"/proc/self/ns/pid", CloneFlags::CLONE_NEWPID),
    ("uts", c"/proc/self/ns/uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", c"/proc/self/ns/ipc", CloneFlags::CLONE_NEWIPC),
    ("net", c"/proc/self/ns/net", CloneFlags::CLONE_NEWNET),
];

/// Which namespace: the device and the number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceId(u64, u64);

impl NamespaceId {
    /// The process namespace of a process that this one may look at.
    pub fn of_processes(process: u32) -> Option<NamespaceId> {
        let file = std::fs::metadata(format!("/proc/{process}/ns/pid")).ok()?;
        Some(NamespaceId(file.dev(), file.ino()))
    }
}

/// Open namespaces, at most one of a kind. They last at least as long as this does: whoever waits for what is mounted in
/// them to end must not hold it.
#[derive(Debug)]
pub struct Namespaces(Vec<(CloneFlags, OwnedFd)>);

impl Namespaces {
    /// Those of this process, of the kinds in `kinds`.
    ///
    /// # Errors
    /// What the kernel says, as [`RuntimeError::Supervise`].
    pub fn own(kinds: CloneFlags) -> Result<Namespaces, RuntimeError> {
        let wanted = KINDS.into_iter().filter(|(_, _, kind)| kinds.contains(*kind));
        let open = wanted.map(|(_, path, kind)| Ok((kind, open_own(path)?)));
        open.collect::<Result<_, _>>().map(Namespaces).map_err(failed("open the namespaces of the session"))
    }

    /// From the descriptors that [`announce`] sent, of the kinds in `kinds`. `None` when they do not fit.
    pub(in crate::runtime) fn announced(kinds: CloneFlags, descriptors: Vec<OwnedFd>) -> Option<Namespaces> {
        let names = KINDS.iter().filter(|(_, _, kind)| kinds.contains(*kind));
        let names: Vec<String> = names.map(|(name, ..)| (*name).to_owned()).collect();
        Namespaces::from_parts(&names, descriptors)
    }

    /// From names as [`Namespaces::names`] gives them, and as many descriptors. `None` when they do not fit together.
    pub fn from_parts(
        names: &[String],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Option<Namespaces> {
        let mut descriptors = descriptors.into_iter();
        let mut kept = Vec::new();
        for (name, _, kind) in KINDS {
            if names.iter().any(|n| n == name) {
                kept.push((kind, descriptors.next()?));
            }
        }
        (kept.len() == names.len() && descriptors.next().is_none()).then_some(Namespaces(kept))
    }

    /// The names of the kinds, in the order of [`Namespaces::descriptors`].
    pub fn names(&self) -> Vec<String> {
        let name = |flag: &CloneFlags| KINDS.iter().find(|(.., kind)| kind == flag).map(|(name, ..)| *name);
        self.0.iter().filter_map(|(flag, _)| name(flag)).map(str::to_owned).collect()
    }

    /// The descriptors, for handing them to another process.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd())
    }

    /// The process namespace, if it is among them.
    pub fn of_processes(&self) -> Option<NamespaceId> {
        let (_, fd) = self.0.iter().find(|(kind, _)| *kind == CloneFlags::CLONE_NEWPID)?;
        let file = fstat(fd).ok()?;
        Some(NamespaceId(file.st_dev, file.st_ino))
    }

    /// Adds from `other` what is not here yet.
    pub(in crate::runtime) fn complete(mut self, other: Namespaces) -> Namespaces {
        for (kind, fd) in other.0 {
            if !self.0.iter().any(|(own, _)| *own == kind) {
                self.0.push((kind, fd));
            }
        }
        self.0.sort_by_key(|(flag, _)| KINDS.iter().position(|(.., kind)| kind == flag));
        self
    }

    /// Puts the calling process, which must have one thread, inside; into the process namespace only its children to come.
    /// Allocates nothing.
    pub(in crate::runtime) fn enter(&self) -> Result<(), Errno> {
        self.0.iter().try_for_each(|(kind, fd)| setns(fd, *kind))
    }
}

/// Reports that the inside is ready, with the namespaces of this process of the kinds in `kinds`: nobody else may open those of a
/// process that is closed to others. Allocates nothing.
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

fn open_own(path: &CStr) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_descriptors_keep_their_order() {
        let all = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER;
        let own = Namespaces::own(all).unwrap();
        assert_eq!(own.names(), ["user", "mnt", "net"]);
        let copies = || own.descriptors().map(|fd| fd.try_clone_to_owned().unwrap()).collect::<Vec<_>>();
        assert_eq!(Namespaces::from_parts(&own.names(), copies()).unwrap().names(), own.names());
        assert!(Namespaces::from_parts(&own.names()[1..], copies()).is_none());
        assert!(Namespaces::from_parts(&["user".to_owned(), "odd".to_owned()], copies()).is_none());
        let uts = Namespaces::own(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNS).unwrap();
        assert_eq!(uts.complete(own).names(), ["user", "mnt", "uts", "net"]);
    }
}
