//! The ear of a monitor: a process in the command's group that hears what the terminal sends to that group.
//!
//! With the foreground given to the command, Ctrl-C reaches the command alone. A caller's script must hear of
//! it, as it would if the command were its own, but not of a SIGINT that a program inside sent. Only a
//! receiver can tell: what the keyboard sends has the code SI_KERNEL, which no program can give a signal for
//! another process (sigaction(2)). The monitor cannot be that receiver: in the command's group it could be
//! stopped and killed with it.

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

/// What is heard. SIGUSR1 is the monitor's question whether there is more.
const HEARD: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGWINCH, QUESTION];

/// Higher than SIGINT and SIGQUIT, which are asked about: signals are received in the order of their numbers.
const QUESTION: Signal = Signal::SIGUSR1;

/// How long the answer may take; a program inside may have stopped the ear.
const PATIENCE_MS: u16 = 200;

/// What an ear says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// The terminal sent this signal.
    Signal(i32),
    /// It has said all that it had heard when it was asked.
    All,
    /// It has ended: a program inside killed it.
    Gone,
}

/// The monitor's end.
pub(super) struct Ear {
    process: Pid,
    pipe: OwnedFd,
}

impl Ear {
    /// Makes a group of `command`, which is a child of this process and has executed nothing yet, and the ear
    /// of it. From now on nothing is missed: what is sent waits until the ear listens.
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

    /// The process.
    pub fn process(&self) -> Pid {
        self.process
    }

    /// Where it is heard.
    pub fn fd(&self) -> &OwnedFd {
        &self.pipe
    }

    /// What it says next, once there is something to read.
    pub fn hear(&self) -> Result<Heard, Errno> {
        let mut number = [0];
        Ok(match (read(&self.pipe, &mut number)?, i32::from(number[0])) {
            (0, _) => Heard::Gone,
            (_, number) if number == QUESTION as i32 => Heard::All,
            (_, number) => Heard::Signal(number),
        })
    }

    /// Whether the terminal has sent this signal and the monitor has not heard of it yet: the command may die
    /// of it before the ear has said so.
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

/// Writes the number of each signal that is heard. All are blocked here, so none has another effect.
fn listen(monitor: Pid, to: &OwnedFd) -> Result<(), Errno> {
    // A program inside may kill the monitor, also before this.
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
