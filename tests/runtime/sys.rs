//! Any system call, to see which are let through. The only unsafe code of these tests.

use nix::errno::Errno;
use nix::libc;

/// Makes the call with two plain numbers.
pub fn call(number: i64, first: i64, second: i64) -> Result<(), Errno> {
    // SAFETY: the tests ask for calls that take no pointers, or fail before they read through them: 0 is
    // none.
    Errno::result(unsafe { libc::syscall(number as libc::c_long, first, second, 0, 0, 0) }).map(drop)
}
