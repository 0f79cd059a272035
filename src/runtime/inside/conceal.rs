//! What a process of karapace gives up before a program inside can see it.
//!
//! Process 1, a monitor, its ear and the sender of `stop` are copies of karapace in the process namespace of the inside, and root inside
//! looks at every process there. So before the clone that puts them there they lose what the caller has: the variables and
//! arguments of karapace, its descriptors, its right to make the denied system calls. They are not dumpable, so the kernel
//! refuses to show or trace them ([`ptrace(2)`], "Ptrace access mode checking"): their memory belongs to the user namespace of
//! the caller, in which nobody inside has rights, or, where the inside shares it, CAP_SYS_PTRACE is taken from the commands
//! (`capabilities`).
//!
//! A program executed anew inside would belong to root inside again, so none is.
//!
//! What runs after `clone`, erasing and concealing, allocates nothing.
//!
//! [`ptrace(2)`]: https://man7.org/linux/man-pages/man2/ptrace.2.html

use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::sys::uio::pwrite;

use crate::runtime::plan::seccomp::Filter;
use crate::runtime::supervise::running::failed;
use crate::runtime::{RuntimeError, sys};

/// Zeros that are written at once.
const BLOCK: [u8; 4096] = [0; 4096];

/// Where the arguments and the variables that karapace was started with lie in its memory.
pub(in crate::runtime) struct StartStrings([Range<u64>; 2]);

impl StartStrings {
    /// Those of this process: arg_start, arg_end, env_start and env_end of proc_pid_stat(5).
    ///
    /// # Errors
    /// [`RuntimeError::Supervise`], when /proc does not say.
    pub fn find() -> Result<StartStrings, RuntimeError> {
        let unknown = || failed("find the arguments of this process")(Errno::ENODATA);
        let stat = fs::read("/proc/self/stat").map_err(|_| unknown())?;
        // The second field, the name, may hold anything but ends with the last parenthesis; the third follows it.
        let name = stat.iter().rposition(|byte| *byte == b')').ok_or_else(unknown)?;
        let rest = std::str::from_utf8(&stat[name + 1..]).map_err(|_| unknown())?;
        let mut fields = rest.split_ascii_whitespace().skip(48 - 3).map(str::parse::<u64>);
        let mut field = || fields.next().and_then(Result::ok).ok_or_else(unknown);
        Ok(StartStrings([field()?..field()?, field()?..field()?]))
    }

    /// Overwrites them in this process, a copy of karapace that reads them no more. Must come first: a process that is closed to
    /// others may not write its own memory by the file.
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

/// Closes this process to those inside. Of the descriptors above 2 only `keep` and those below `preserved` stay open.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strings_are_those_of_the_process() {
        let StartStrings([arguments, variables]) = StartStrings::find().unwrap();
        let read = |range: &Range<u64>| {
            let memory = fs::File::open("/proc/self/mem").unwrap();
            let mut bytes = vec![0; (range.end - range.start) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, range.start).unwrap();
            bytes
        };
        assert_eq!(read(&arguments), fs::read("/proc/self/cmdline").unwrap());
        assert_eq!(read(&variables), fs::read("/proc/self/environ").unwrap());
    }
}
