//! Keeps the size of a container's terminal up to date. crun makes a terminal of its own for the container
//! and, in the versions tested, does not resize it when the outer one changes. Runs in the monitor.

use std::ffi::CStr;
use std::io::{Write as _, stdin};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, read};

use super::lookup::open_below;

/// Sets the terminal of the container that `runtime` runs to the size of the terminal on standard input.
pub(in crate::runtime) fn follow(runtime: Pid) -> Result<(), Errno> {
    let mut path = [0; 64];
    let list = open(
        proc_path(&mut path, runtime, "task", Some(runtime))?,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = [0; 32];
    let length = read(&list, &mut text)?;
    let first =
        text[..length].split(|byte| *byte == b' ').next().and_then(|pid| std::str::from_utf8(pid).ok());
    let command = Pid::from_raw(first.and_then(|pid| pid.parse().ok()).ok_or(Errno::ESRCH)?);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(proc_path(&mut path, command, "root", None)?, flags, Mode::empty())?;
    // Where every runtime puts the container's terminal.
    let terminal = open_below(&root, c"/dev/console", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK)?;
    let failed = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    let size = rustix::termios::tcgetwinsize(stdin()).map_err(failed)?;
    rustix::termios::tcsetwinsize(&terminal, size).map_err(failed)
}

/// `/proc/PROCESS/WHAT`, or the list of a thread's children below it.
fn proc_path<'b>(
    buffer: &'b mut [u8; 64],
    process: Pid,
    what: &str,
    thread: Option<Pid>,
) -> Result<&'b CStr, Errno> {
    let mut rest = &mut buffer[..];
    let written = match thread {
        Some(thread) => write!(rest, "/proc/{process}/{what}/{thread}/children\0"),
        None => write!(rest, "/proc/{process}/{what}\0"),
    };
    written.map_err(|_| Errno::ENAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::ENAMETOOLONG)
}
