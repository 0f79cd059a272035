//! How karapace keeps namespaces, and hands them from one process to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::sched::CloneFlags;
use nix::sys::stat::fstat;

use crate::runtime::RuntimeError;
use crate::runtime::error::failed;
use crate::runtime::inside::namespaces::{KINDS, Namespaces, open_own};

/// Identifies a namespace by device and inode number of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceId(u64, u64);

impl NamespaceId {
    /// The process namespace of `process`; `None` if it cannot be inspected.
    pub fn of_processes(process: u32) -> Option<NamespaceId> {
        let file = std::fs::metadata(format!("/proc/{process}/ns/pid")).ok()?;
        Some(NamespaceId(file.dev(), file.ino()))
    }
}

impl Namespaces {
    /// This process's own namespaces, of the kinds in `kinds`.
    ///
    /// # Errors
    /// [`RuntimeError::Supervise`], if one cannot be opened.
    pub fn own(kinds: CloneFlags) -> Result<Namespaces, RuntimeError> {
        let wanted = KINDS.into_iter().filter(|(_, _, kind)| kinds.contains(*kind));
        let open = wanted.map(|(_, path, kind)| Ok((kind, open_own(path)?)));
        open.collect::<Result<_, _>>().map(Namespaces).map_err(failed("open the namespaces of the session"))
    }

    /// The namespaces whose descriptors [`announce`] sent, of the kinds in `kinds`. `None` if they do
    /// not match.
    pub(in crate::runtime) fn announced(kinds: CloneFlags, descriptors: Vec<OwnedFd>) -> Option<Namespaces> {
        let names = KINDS.iter().filter(|(_, _, kind)| kinds.contains(*kind));
        let names: Vec<String> = names.map(|(name, ..)| (*name).to_owned()).collect();
        Namespaces::from_parts(&names, descriptors)
    }

    /// Builds the set from names, as [`Namespaces::names`] returns them, and their descriptors. `None` if
    /// they do not fit together.
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

    /// Adds from `other` the kinds that are missing here.
    pub(in crate::runtime) fn complete(mut self, other: Namespaces) -> Namespaces {
        for (kind, fd) in other.0 {
            if !self.0.iter().any(|(own, _)| *own == kind) {
                self.0.push((kind, fd));
            }
        }
        self.0.sort_by_key(|(flag, _)| KINDS.iter().position(|(.., kind)| kind == flag));
        self
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
