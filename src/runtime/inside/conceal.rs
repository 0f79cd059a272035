//! What a process of karapace gives up before a program inside can see it.
//!
//! Process 1, a monitor, its ear and the sender of `stop` are copies of karapace in the process namespace of
//! the inside, and root inside looks at every process there. So before the clone that puts them there they
//! lose what the caller has: the variables and arguments of karapace, its descriptors, its right to make the
//! denied system calls. They are not dumpable, so the kernel refuses to show or trace them ([`ptrace(2)`],
//! "Ptrace access mode checking"): their memory belongs to the user namespace of the caller, in which nobody
//! inside has rights, or, where the inside shares it, CAP_SYS_PTRACE is taken from the commands
//! (`capabilities`).
//!
//! A program executed anew inside would belong to root inside again, so none is.
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

/// Zeros that are written at once.
const BLOCK: [u8; 4096] = [0; 4096];

/// Where the arguments and the variables that karapace was started with lie in its memory.
pub(in crate::runtime) struct StartStrings(pub(in crate::runtime) [Range<u64>; 2]);

impl StartStrings {
    /// Overwrites them in this process, a copy of karapace that reads them no more. Must come first: a
    /// process that is closed to others may not write its own memory by the file.
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

/// Closes this process to those inside. Of the descriptors above 2 only `keep` and those below `preserved`
/// stay open.
pub(super) fn conceal(
    keep: &[Option<&OwnedFd>],
    preserved: i32,
    filter: Option<&Filter>,
) -> Result<(), Errno> {
    // Also after a change of the user namespace, which may have opened it (/proc/sys/fs/suid_dumpable).
    prctl::set_dumpable(false)?;
    sys::close_all_but(keep, preserved.max(3))?;
    // While we may without giving up privileges.
    filter.map_or(Ok(()), sys::set_filter)
}
