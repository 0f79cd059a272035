//! The process at the other end of a control socket.
//!
//! A program inside a session can reach the socket through a shared directory of the host, even a read-only
//! one, and may have its user's ids. So the check is in which process namespace the peer lives.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use karapace_fs::pid_namespace;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

/// Whether the peer lives in this process's own process namespace.
///
/// Since Linux 6.5 the kernel returns a pidfd of the peer (SO_PEERPIDFD). Older kernels return only its
/// process id, which may have been reused if the peer has ended.
pub(super) fn is_of_ours(stream: &UnixStream) -> bool {
    // The id is translated into this process's namespace; it is zero for a process that is neither in it nor
    // in one below it.
    let number = getsockopt(stream, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
    let Ok(number @ 1..) = u32::try_from(number) else { return false };
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(process) => fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))
            .is_ok_and(|text| pid_namespace::has_our_depth(&text)),
        Err(Errno::ENOPROTOOPT) => pid_namespace::is_ours(number),
        Err(_) => false,
    }
}
