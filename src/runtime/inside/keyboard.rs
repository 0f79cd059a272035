//! The ear of a monitor: a process in the command's process group that receives what the terminal sends to
//! that group.
//!
//! While the command has the foreground, Ctrl-C reaches the command alone. A script that runs karapace must
//! learn of it, as if the command were the script's own child, but must not learn of a SIGINT that a program
//! inside sent. Only a receiver can tell the two apart: a signal from the keyboard has the code SI_KERNEL,
//! which no program can set on a signal to another process (sigaction(2)). The monitor cannot be that
//! receiver: in the command's group it could be stopped and killed with it.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getpid, getppid, pipe2, read, setpgid, write};

use crate::runtime::sys;

/// The signals that the ear receives. With SIGUSR1 the monitor asks whether there are more.
const HEARD: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH, QUESTION];

/// Must be higher than SIGINT and SIGQUIT, which it asks about: pending signals are received in numerical
/// order.
const QUESTION: Signal = Signal::SIGUSR1;

/// How long to wait for the answer, in milliseconds; a program inside may have stopped the ear.
const PATIENCE_MS: u16 = 200;

/// A message from the ear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The terminal sent this signal.
    Signal(i32),
    /// It has reported everything that it received before the question.
    All,
    /// It has ended: a program inside killed it.
    Gone,
}

/// The monitor's end of the connection to the ear.
pub(super) struct Ear {
    process: Pid,
    pipe: OwnedFd,
}

impl Ear {
    /// Makes a process group for `command`, a child of this process that has not executed anything yet, and
    /// starts the ear in it. From now on no signal is lost: it stays pending until the ear listens.
    pub fn open(command: Pid) -> Result<Ear, Errno> {
        setpgid(command, command)?;
        let (pipe, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let monitor = getpid();
        let Some(process) = sys::clone_process(CloneFlags::empty())? else {
            sys::exit(i32::from(listen(monitor, &theirs).is_err()))
        };
        setpgid(process, command)?;
        Ok(Ear { process, pipe })
    }

    /// The process id of the ear.
    pub fn process(&self) -> Pid {
        self.process
    }

    /// The descriptor to poll: it is readable when the ear has a message.
    pub fn fd(&self) -> &OwnedFd {
        &self.pipe
    }

    /// Reads the next message. Blocks unless [`Ear::fd`] is readable.
    pub fn hear(&self) -> Result<Heard, Errno> {
        let mut number = [0];
        Ok(match (read(&self.pipe, &mut number)?, i32::from(number[0])) {
            (0, _) => Heard::Gone,
            (_, number) if number == QUESTION as i32 => Heard::All,
            (_, number) => Heard::Signal(number),
        })
    }

    /// Whether the terminal has sent this signal but the monitor has not read the ear's message yet: the
    /// command may die of it before the ear has reported it.
    pub fn has_heard(&self, signal: i32) -> Result<bool, Errno> {
        sys::kill(self.process, QUESTION as i32)?;
        loop {
            let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Ok(false),
                other => other?,
            };
            match self.hear()? {
                Heard::Signal(heard) if heard == signal => return Ok(true),
                Heard::Signal(_) => {}
                Heard::All | Heard::Gone => return Ok(false),
            }
        }
    }
}

impl AsFd for Ear {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Writes the number of each signal that arrives, one byte each. All signals are blocked here, so none has
/// another effect.
fn listen(monitor: Pid, to: &OwnedFd) -> Result<(), Errno> {
    // A program inside may kill the monitor, possibly before this call: hence the check below.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != monitor {
        return Err(Errno::ESRCH);
    }
    sys::close_all_but(&[Some(to)], 0)?;
    let signals = SignalFd::with_flags(&HEARD.into_iter().collect::<SigSet>(), SfdFlags::SFD_CLOEXEC)?;
    loop {
        let Some(info) = signals.read_signal()? else { continue };
        let number = info.ssi_signo as i32;
        let asked = number == QUESTION as i32;
        if asked || info.ssi_code == libc::SI_KERNEL {
            write(to, &[number as u8])?;
        }
    }
}
