//! What a process of karapace gives up before a program inside can see it.
//!
//! Process 1, a monitor, its ear and the sender of `stop` are copies of karapace in the process namespace of
//! the inside, and root inside can look at every process there. So before the clone that puts them there they
//! give up what they have of the caller: karapace's environment variables and arguments, its descriptors, its
//! right to make the denied system calls. They are not dumpable, so the kernel refuses to show or trace them
//! ([`ptrace(2)`], "Ptrace access mode checking"): their memory belongs to the caller's user namespace, in
//! which nobody inside has privileges, or, if the inside shares that namespace, CAP_SYS_PTRACE is taken from
//! the commands (`capabilities`).
//!
//! A program executed anew inside would belong to root inside again, so they execute none.
//!
//! [`ptrace(2)`]: https://man7.org/linux/man-pages/man2/ptrace.2.html

use std::ops::Range;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::sys::uio::pwrite;

use crate::runtime::sys::{self, Filter};

/// Zeros, written a block at a time.
const BLOCK: [u8; 4096] = [0; 4096];

/// The memory ranges of the arguments and of the environment variables that karapace was started with.
pub(in crate::runtime) struct StartStrings(pub(in crate::runtime) [Range<u64>; 2]);

impl StartStrings {
    /// Overwrites them with zeros in this process, a copy of karapace that no longer reads them. Must come
    /// before [`conceal`]: a process that is not dumpable may not write its own memory through
    /// /proc/self/mem.
    pub fn erase(&self) -> Result<(), Errno> {
        let memory = open(c"/proc/self/mem", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        for range in &self.0 {
            let mut at = range.start;
            while at < range.end {
                let length =
                    usize::try_from(range.end - at).map_or(BLOCK.len(), |left| left.min(BLOCK.len()));
                let offset = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
                at += pwrite(&memory, &BLOCK[..length], offset)? as u64;
            }
        }
        Ok(())
    }
}

/// Hides this process from those inside. Above descriptor 2, only `keep` and those below `preserved` stay
/// open.
pub(super) fn conceal(
    keep: &[Option<&OwnedFd>],
    preserved: i32,
    filter: Option<&Filter>,
) -> Result<(), Errno> {
    // Needed also after a change of user namespace, which may have made it dumpable
    // (/proc/sys/fs/suid_dumpable).
    prctl::set_dumpable(false)?;
    sys::close_all_but(keep, preserved.max(3))?;
    // Now, while no_new_privs is not needed for it.
    filter.map_or(Ok(()), sys::set_filter)
}
