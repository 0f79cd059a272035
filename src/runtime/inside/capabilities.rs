//! The capabilities that commands of root do without where the inside shares the caller's user ids.
//!
//! There root inside would have them on the host. Without CAP_SYS_PTRACE it cannot look into the processes of
//! karapace that live inside (`conceal`), nor into another user's: podman and docker take it as well. The
//! others would be second ways to what the filter denies (`seccomp`): a clock through /dev/rtc, memory
//! through /dev/mem, the kernel's log through /dev/kmsg.
//!
//! In a user namespace of its own root inside keeps all of them: they reach no further than the namespace.

use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set,
    set_capabilities,
};

/// Those taken.
const TAKEN: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_PACCT)
    .union(CapabilitySet::SYSLOG);

/// A set of capabilities, a bit each, without those taken.
pub(in crate::runtime) fn without(set: u64) -> u64 {
    set & !TAKEN.bits()
}

/// Takes them from the calling thread and from all that it will execute.
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
