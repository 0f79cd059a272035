//! The foreground process group of a terminal.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, tcsetpgrp};

/// Makes `group` the foreground process group of the terminal, which must control the calling process.
pub(in crate::runtime) fn give_to(terminal: &OwnedFd, group: Pid) -> Result<(), Errno> {
    // SIGTTOU would stop a background process that does this, unless it is blocked.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTTOU);
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let given = tcsetpgrp(terminal, group);
    before.thread_set_mask()?;
    given
}
