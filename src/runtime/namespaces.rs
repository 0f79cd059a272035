//! Namespaces kept by descriptors: what a process has to enter to be inside.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::RuntimeError;
use super::supervise::failed;

/// The kinds, by their names in /proc/<pid>/ns, in the order in which they can be entered: the rights to enter the others come
/// with the user namespace.
const KINDS: [(&str, CloneFlags); 6] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("net", CloneFlags::CLONE_NEWNET),
];

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
        Namespaces::open("self", kinds)
    }

    /// Those of a process that the caller may look at, of the kinds in `kinds`.
    pub(super) fn of(process: Pid, kinds: CloneFlags) -> Result<Namespaces, RuntimeError> {
        Namespaces::open(&process.to_string(), kinds)
    }

    fn open(process: &str, kinds: CloneFlags) -> Result<Namespaces, RuntimeError> {
        let wanted = KINDS.into_iter().filter(|(_, kind)| kinds.contains(*kind));
        let open = |(name, kind)| {
            let file = File::open(format!("/proc/{process}/ns/{name}")).map_err(|e| {
                failed("open the namespaces of the session")(Errno::from_raw(
                    e.raw_os_error().unwrap_or(libc::EIO),
                ))
            })?;
            Ok((kind, file.into()))
        };
        wanted.map(open).collect::<Result<_, _>>().map(Namespaces)
    }

    /// From names as [`Namespaces::names`] gives them, and as many descriptors. `None` when they do not fit together.
    pub fn from_parts(
        names: &[String],
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Option<Namespaces> {
        let mut descriptors = descriptors.into_iter();
        let mut kept = Vec::new();
        for (name, kind) in KINDS {
            if names.iter().any(|n| n == name) {
                kept.push((kind, descriptors.next()?));
            }
        }
        (kept.len() == names.len() && descriptors.next().is_none()).then_some(Namespaces(kept))
    }

    /// The names of the kinds, in the order of [`Namespaces::descriptors`].
    pub fn names(&self) -> Vec<String> {
        let name = |flag: &CloneFlags| KINDS.iter().find(|(_, kind)| kind == flag).map(|(name, _)| *name);
        self.0.iter().filter_map(|(flag, _)| name(flag)).map(str::to_owned).collect()
    }

    /// The descriptors, for handing them to another process.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd())
    }

    /// Adds from `other` what is not here yet.
    pub(super) fn complete(mut self, other: Namespaces) -> Namespaces {
        for (kind, fd) in other.0 {
            if !self.0.iter().any(|(own, _)| *own == kind) {
                self.0.push((kind, fd));
            }
        }
        self.0.sort_by_key(|(flag, _)| KINDS.iter().position(|(_, kind)| kind == flag));
        self
    }

    /// Puts the calling process, which must have one thread, inside; into the process namespace only its children to come.
    /// Allocates nothing.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        self.0.iter().try_for_each(|(kind, fd)| setns(fd, *kind))
    }
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
