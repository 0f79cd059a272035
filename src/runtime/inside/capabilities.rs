//! The capabilities that are taken from root's commands if the inside shares the caller's user ids.
//!
//! Root inside would then hold them on the host. Without CAP_SYS_PTRACE it cannot look into karapace's
//! processes inside (`conceal`), nor into those of another user; podman and docker drop it as well. The
//! others would be ways around the seccomp filter (`seccomp`): the clock through /dev/rtc, memory through
//! /dev/mem, the kernel log through /dev/kmsg.
//!
//! In a user namespace of its own, root inside keeps all capabilities: they reach no further than that
//! namespace.

use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set,
    set_capabilities,
};

const TAKEN: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_PACCT)
    .union(CapabilitySet::SYSLOG);

/// Returns a capability set (one bit each) without those in [`TAKEN`].
pub(in crate::runtime) fn without(set: u64) -> u64 {
    set & !TAKEN.bits()
}

/// Drops [`TAKEN`] from the calling thread and from every program that it executes.
pub(super) fn give_up() -> Result<(), Errno> {
    let errno = |errno: rustix::io::Errno| Errno::from_raw(errno.raw_os_error());
    for capability in TAKEN.iter() {
        if capability_is_in_bounding_set(capability).map_err(errno)? {
            remove_capability_from_bounding_set(capability).map_err(errno)?;
        }
    }
    let mut sets = capabilities(None).map_err(errno)?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        set.remove(TAKEN);
    }
    set_capabilities(None, sets).map_err(errno)
}
