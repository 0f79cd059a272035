//! The unsafe code of this module.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal};

/// Whether a descriptor is open.
pub(super) fn is_open(number: RawFd) -> bool {
    // SAFETY: plain integers.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Sets close-on-exec on every descriptor from `first` on (Linux 5.11).
pub(super) fn close_on_exec(first: libc::c_uint) -> Result<(), Errno> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: plain integers; no descriptor is closed now.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) }).map(drop)
}

/// Resets a signal to its default disposition.
pub(crate) fn default_signal(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SIG_DFL installs no handler, so no code can run in signal context because of it.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.map(drop)
}

/// Ignores a signal. With SIGCHLD ignored, children leave no zombies and their exit statuses are lost.
pub(crate) fn ignore_signal(signal: Signal) -> Result<(), Errno> {
    // SAFETY: SIG_IGN installs no handler, so no code can run in signal context because of it.
    unsafe { nix::sys::signal::signal(signal, SigHandler::SigIgn) }.map(drop)
}
