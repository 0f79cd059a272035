//! A network namespace of the session's own: loopback, and no way out.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::runtime::sys;

/// Brings up the loopback interface of the calling process's new network namespace. The kernel assigns its
/// addresses, 127.0.0.1 and ::1.
pub(super) fn raise_loopback() -> Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sys::raise_interface(&socket, c"lo")
}
