//! Who is at the other end of a control socket.
//!
//! A program inside a session reaches the socket where the host's directories are shared, also through a
//! read-only mount, and may have its user's ids. So what counts is where the process that connected lives.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use karapace_fs::pid_namespace;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

/// Whether the process that connected lives in this process's own process namespace.
///
/// From Linux 6.5 on the kernel gives a descriptor of that very process (SO_PEERPIDFD). Before, there is its
/// number only, which may be another process's by now if that one has ended.
pub(super) fn is_of_ours(stream: &UnixStream) -> bool {
    // The number is that of this process's namespace, and zero for who is in none below it.
    let number = getsockopt(stream, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
    let Ok(number @ 1..) = u32::try_from(number) else { return false };
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(process) => fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))
            .is_ok_and(|text| pid_namespace::has_our_depth(&text)),
        Err(Errno::ENOPROTOOPT) => pid_namespace::is_ours(number),
        Err(_) => false,
    }
}
