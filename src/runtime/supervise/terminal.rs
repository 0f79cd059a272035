//! Shares a terminal with the command.
//!
//! The command always has a process group of its own, so that what it sends to its group (`kill 0`) stays
//! inside. Also, a group that was made outside has the number 0 inside, and shells that find themselves in
//! such a group cannot give the terminal back. So karapace does for the command what a shell does for a job:
//!
//! - If all three standard streams are on a terminal and karapace is in the foreground, the command's group
//!   gets the foreground at once.
//! - In a pipeline, or with redirected streams, karapace's own group keeps the foreground, because the other
//!   processes in it read the keyboard too. Signals from keys then reach karapace, which forwards them. A
//!   command that is stopped because it wants the terminal (SIGTTIN, SIGTTOU) is lent the foreground.
//! - In the background the command is stopped when it wants the terminal, and karapace stops in the same way,
//!   so that the caller's shell sees an ordinary stopped job.

use std::fs::OpenOptions;
use std::io::{IsTerminal, stderr, stdin, stdout};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::runtime::inside::terminal::give_to;

/// If a stop took less than this, the kernel ignored it: there is no shell above that would continue the job.
const NO_STOP: Duration = Duration::from_millis(5);

/// How long to wait then before the command is continued: it may ask for the terminal again at once.
const PAUSE: Duration = Duration::from_millis(100);

/// The caller's terminal.
pub(in crate::runtime) struct Terminal {
    /// The controlling terminal.
    handle: OwnedFd,
    /// Whether the command's group starts in the foreground.
    pub foreground: bool,
}

impl Terminal {
    /// The controlling terminal, if there is one.
    #[expect(clippy::disallowed_methods, reason = "nothing is written")]
    pub fn of_job() -> Option<Terminal> {
        let open =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok()?;
        let mut terminal = Terminal { handle: open.into(), foreground: false };
        let streams = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
        terminal.foreground = streams && terminal.is_ours();
        Some(terminal)
    }

    /// A copy of the handle, for [`give_to`].
    pub fn handle(&self) -> Result<OwnedFd, Errno> {
        self.handle.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// Whether our own process group is the foreground one.
    fn is_ours(&self) -> bool {
        tcgetpgrp(&self.handle) == Ok(getpgrp())
    }

    /// Stops our own job in the way the command was stopped (SIGTSTP is otherwise blocked), so that the
    /// caller's shell notices. Returns when the shell continues it, or at once if the kernel ignores stops.
    /// If the command only wants the terminal and our group has it, nothing is stopped. Returns whether the
    /// command may have the foreground.
    pub fn stop_job(&self, signal: i32) -> Result<bool, Errno> {
        let stop = match signal {
            libc::SIGTTIN => Signal::SIGTTIN,
            libc::SIGTTOU => Signal::SIGTTOU,
            _ => Signal::SIGTSTP,
        };
        if stop != Signal::SIGTSTP && self.is_ours() {
            return Ok(true);
        }
        let start = Instant::now();
        killpg(getpgrp(), stop)?;
        let mut stops = SigSet::empty();
        stops.add(stop);
        let before = stops.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
        before.thread_set_mask()?;
        let foreground = self.is_ours();
        if !foreground && start.elapsed() < NO_STOP {
            std::thread::sleep(PAUSE);
        }
        Ok(foreground)
    }

    /// Takes the foreground back after the command has ended, unless another living group has it.
    pub fn reclaim(&self) -> Result<(), Errno> {
        let foreground = tcgetpgrp(&self.handle)?;
        if foreground == getpgrp() || killpg(foreground, None) != Err(Errno::ESRCH) {
            return Ok(());
        }
        give_to(&self.handle, getpgrp())
    }
}
