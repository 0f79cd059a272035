//! Sharing a terminal with the command.
//!
//! In a pipeline, with output redirected or in the background, the command stays in karapace's own process
//! group: the terminal and the caller's shell treat both as one job, and nothing needs to be done. But when
//! all three standard streams are the terminal, in the foreground, the command gets a group of its own and the
//! foreground. A group that began outside has the number 0 as seen inside, and shells that find themselves in
//! such a group cannot give the terminal back. The price is that stopping must be passed on by hand.

use std::io::{IsTerminal, stderr, stdin, stdout};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp, ttyname};

use super::sys;

/// A terminal whose foreground the command takes over.
pub(super) struct Terminal;

impl Terminal {
    /// The terminal, if the command should get its foreground.
    pub fn of_job() -> Option<Terminal> {
        let all = stdin().is_terminal() && stdout().is_terminal() && stderr().is_terminal();
        (all && Terminal.is_ours()).then_some(Terminal)
    }

    /// Whether our own process group is the foreground one.
    pub fn is_ours(&self) -> bool {
        tcgetpgrp(sys::stdin()) == Ok(getpgrp())
    }

    /// Stops our job as the command was stopped (SIGTSTP is blocked otherwise), so that the caller's shell notices; returns when the shell
    /// lets it go on, or at once where the kernel ignores stops (no shell above to undo them).
    /// Returns whether we are in the foreground then.
    pub fn stop_job(&self, signal: i32) -> Result<bool, Errno> {
        let wants_terminal = signal == libc::SIGTTIN || signal == libc::SIGTTOU;
        if !(wants_terminal && self.is_ours()) {
            killpg(getpgrp(), Signal::SIGTSTP)?;
            let mut stop = SigSet::empty();
            stop.add(Signal::SIGTSTP);
            stop.thread_unblock()?;
            stop.thread_block()?;
        }
        Ok(self.is_ours())
    }

    /// Takes the foreground back when the command is over, if nobody else did.
    pub fn reclaim(&self) -> Result<(), Errno> {
        let foreground = tcgetpgrp(sys::stdin())?;
        if foreground == getpgrp() || killpg(foreground, None) != Err(Errno::ESRCH) {
            return Ok(());
        }
        give_to(getpgrp())
    }
}

/// Makes a process group the foreground one of the terminal on standard input.
pub(super) fn give_to(group: Pid) -> Result<(), Errno> {
    // A background process that does this would be stopped by SIGTTOU, were it not blocked.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTTOU);
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let given = tcsetpgrp(sys::stdin(), group);
    before.thread_set_mask()?;
    given
}

/// The path on the host of the terminal that the session has on one of its standard streams.
pub(super) fn path() -> Option<PathBuf> {
    ttyname(stdin()).or_else(|_| ttyname(stdout())).or_else(|_| ttyname(stderr())).ok()
}
