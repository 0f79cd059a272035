//! Looks up a path below a root that is not this process's own.

use std::os::fd::OwnedFd;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// How often a look-up is retried after it raced with a rename (the kernel returns EAGAIN).
const RACES: u32 = 16;

/// Opens what a process whose root is `root` would find at `path`. Does not allocate if `path` is a C string.
pub(in crate::runtime) fn open_below<P: NixPath + ?Sized>(
    root: &OwnedFd,
    path: &P,
    flags: OFlag,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut left = RACES;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            other => return other,
        }
    }
}
