//! How a process on the host receives the signals that ask it to end: SIGINT, SIGTERM and SIGHUP.
//!
//! There is one way: a handler (of the crate ctrlc) that wakes a thread, which calls one function. It can be
//! installed at any time, whatever threads there are, and programs that this process starts are unaffected.
//! Blocked signals (sigwait, signalfd) would have to be blocked before the first thread starts, and every
//! program that is started would inherit the mask, such as a package manager in a build. The price is that
//! the function does not learn which of the signals came. Only a server blocks them too
//! ([`on_request_to_end_server`]), because a signal that interrupts a request's thread can fail the request.
//!
//! The runtime has a way of its own, signalfd, for the processes that run a command for the user
//! (`runtime/supervise/running.rs`, `runtime/inside`): they receive all signals, not to end but to pass them
//! on, wait for them and for the command at once, and hand the caller's mask to the command. Those inside run
//! after `clone`, where neither a thread can be started nor memory allocated.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// From now on, calls `act` on a thread of its own for each signal that asks this process to end, which no
/// longer ends it.
///
/// # Errors
/// If the process does this already, or the system refuses.
pub fn on_request_to_end(act: impl FnMut() + Send + 'static) -> io::Result<()> {
    ctrlc::set_handler(act).map_err(io::Error::other)
}

/// Like [`on_request_to_end`], even if the caller has blocked these signals. This thread and those that it
/// starts later are not interrupted by them. Programs that are started inherit the mask.
///
/// # Errors
/// If the process does this already, or the system refuses.
pub fn on_request_to_end_server(act: impl FnMut() + Send + 'static) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // The handler's thread inherits the mask.
    signals.thread_unblock()?;
    on_request_to_end(act)?;
    Ok(signals.thread_block()?)
}
