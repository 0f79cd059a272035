//! The system calls that a session is denied.
//!
//! This is a deny list, unlike podman's allow list: a whole distribution runs inside, with its compilers,
//! debuggers and container tools, and each call that an allow list forgets is a program that fails only
//! there. The list is what bubblewrap-based tools deny, minus what a development environment needs
//! (namespaces, mounts, chroot, ptrace, perf): kernel logs and accounting, keyrings (which no namespace
//! separates), memory policies, loading kernels and modules, swap, setting the clock, quotas, opening by
//! handle (which leads out of a mount), and typing into or hanging up the terminal from which the session was
//! started.
//!
//! A deny list goes out of date as the kernel grows. So this one was checked against the kernel's whole
//! table, up to [`LAST_KNOWN`]; later calls fail with ENOSYS, as on a kernel that does not have them.
//!
//! adjtimex and clock_adjtime are allowed, because C libraries also read the clock's state with them. Setting
//! the clock needs CAP_SYS_TIME, which `capabilities` drops.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::runtime::RuntimeError;
use crate::runtime::error::refused;
use crate::runtime::sys::Filter;

/// Calls that fail with EPERM whatever their arguments: the names, which an OCI runtime needs, and the
/// numbers.
pub(super) const DENIED: &[(&str, libc::c_long)] = &[
    ("acct", libc::SYS_acct),
    ("add_key", libc::SYS_add_key),
    ("clock_settime", libc::SYS_clock_settime),
    ("delete_module", libc::SYS_delete_module),
    ("finit_module", libc::SYS_finit_module),
    ("get_mempolicy", libc::SYS_get_mempolicy),
    ("init_module", libc::SYS_init_module),
    #[cfg(target_arch = "x86_64")]
    ("ioperm", libc::SYS_ioperm),
    #[cfg(target_arch = "x86_64")]
    ("iopl", libc::SYS_iopl),
    ("kexec_file_load", libc::SYS_kexec_file_load),
    ("kexec_load", libc::SYS_kexec_load),
    ("keyctl", libc::SYS_keyctl),
    ("mbind", libc::SYS_mbind),
    ("migrate_pages", libc::SYS_migrate_pages),
    ("move_pages", libc::SYS_move_pages),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("quotactl", libc::SYS_quotactl),
    ("quotactl_fd", libc::SYS_quotactl_fd),
    ("request_key", libc::SYS_request_key),
    ("set_mempolicy", libc::SYS_set_mempolicy),
    ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
    ("settimeofday", libc::SYS_settimeofday),
    ("swapoff", libc::SYS_swapoff),
    ("swapon", libc::SYS_swapon),
    ("syslog", libc::SYS_syslog),
    #[cfg(target_arch = "x86_64")]
    ("uselib", libc::SYS_uselib),
    ("vhangup", libc::SYS_vhangup),
];

/// ioctl requests that fail with EPERM: those that type into a terminal, hang it up, or capture the console's
/// output.
pub(super) const DENIED_IOCTLS: [u64; 4] = [libc::TIOCSTI, TIOCLINUX, libc::TIOCCONS, TIOCVHANGUP];

/// Pastes on a Linux console, among others; not in libc.
const TIOCLINUX: u64 = 0x541c;

/// Not in libc; from include/uapi/asm-generic/ioctls.h.
const TIOCVHANGUP: u64 = 0x5437;

/// Combines open_tree and mount_setattr (Linux 6.15); not in libc yet.
const OPEN_TREE_ATTR: libc::c_long = 467;

/// Index of mount's flags argument.
pub(super) const MOUNT_FLAGS: u8 = 3;

/// The last call of Linux 6.18, file_setattr. It has the same number on all architectures, like every call
/// since 5.1. The numbers of x32, which offers every call of x86-64 a second time, are higher too.
const LAST_KNOWN: u32 = 469;

impl Filter {
    /// The filter for this machine. A call with another architecture's number table kills the process; an
    /// unknown call fails with ENOSYS.
    pub fn new() -> Result<Filter, RuntimeError> {
        let mut filter = Filter::from_program(denied())?;
        filter.0.splice(0..0, none_after(LAST_KNOWN));
        Ok(filter)
    }

    /// An additional filter that denies changes of mounts: root inside may otherwise change the mounts of its
    /// own namespace, including shares that are read-only.
    pub fn of_mounts() -> Result<Filter, RuntimeError> {
        Filter::from_program(changes_of_mounts())
    }

    /// The filter for an OCI runtime and what it runs. The runtime's own filter is given by name, and its
    /// library may not know new names: open_tree_attr and all later calls fail with ENOSYS here.
    pub fn of_runtime() -> Filter {
        let mut filter = none_after(OPEN_TREE_ATTR as u32 - 1).to_vec();
        filter.push(step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
        Filter(filter)
    }

    fn from_program(program: Result<BpfProgram, BackendError>) -> Result<Filter, RuntimeError> {
        let program = program.map_err(|error| refused("system call filter", error.to_string()))?;
        let steps = program
            .iter()
            .map(|step| libc::sock_filter { code: step.code, jt: step.jt, jf: step.jf, k: step.k })
            .collect();
        Ok(Filter(steps))
    }
}

fn denied() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|(_, number)| (*number, Vec::new())).collect();
    let ioctls = DENIED_IOCTLS.map(|request| {
        // The kernel reads only the low 32 bits of the request, so only those are compared.
        let asked = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)?;
        SeccompRule::new(vec![asked])
    });
    rules.insert(libc::SYS_ioctl, ioctls.into_iter().collect::<Result<_, _>>()?);
    compile(rules)
}

fn changes_of_mounts() -> Result<BpfProgram, BackendError> {
    let flag = SeccompCmpOp::MaskedEq(libc::MS_REMOUNT);
    let changed = SeccompCondition::new(MOUNT_FLAGS, SeccompCmpArgLen::Qword, flag, libc::MS_REMOUNT)?;
    let mount = (libc::SYS_mount, vec![SeccompRule::new(vec![changed])?]);
    compile(BTreeMap::from([(libc::SYS_mount_setattr, vec![]), (OPEN_TREE_ATTR, vec![]), mount]))
}

/// A call in `rules` fails with EPERM if one of its rules matches, or if its list of rules is empty. All
/// other calls are allowed.
fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), architecture)?
        .try_into()
}

fn step(code: u32, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf, k }
}

/// Instructions that fail calls with a number above `number` with ENOSYS.
fn none_after(number: u32) -> [libc::sock_filter; 3] {
    [
        // The call's number is the first field of `seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, number),
        step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the filter as the kernel would, as far as the filter needs: loads, jumps and returns.
    fn verdict(filter: &Filter, arch: u32, number: i64, argument: u64) -> u32 {
        let mut data = [0_u32; 16];
        (data[0], data[1]) = (number as u32, arch);
        (data[6], data[7]) = (argument as u32, (argument >> 32) as u32);
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = &filter.0[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match u32::from(step.code) {
                0x20 => accumulator = data[step.k as usize / 4],
                0x05 => at += step.k as usize,
                0x15 => at += jump(accumulator == step.k),
                0x25 => at += jump(accumulator > step.k),
                0x35 => at += jump(accumulator >= step.k),
                0x54 => accumulator &= step.k,
                0x06 => return step.k,
                other => panic!("step {other:#x}"),
            }
        }
    }

    #[test]
    fn denies_what_is_listed_and_nothing_else() {
        let filter = Filter::new().unwrap();
        let here = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for (name, number) in DENIED {
            assert_eq!(verdict(&filter, here, *number, 0), refused, "{name}");
        }
        let passed = [libc::SYS_read, libc::SYS_clone, libc::SYS_unshare, libc::SYS_mount, libc::SYS_ptrace];
        for number in passed.into_iter().chain([i64::from(LAST_KNOWN)]) {
            assert_eq!(verdict(&filter, here, number, 0), libc::SECCOMP_RET_ALLOW, "{number}");
        }
        // Bits in the upper half of the request must not hide it.
        for request in DENIED_IOCTLS.into_iter().chain([libc::TIOCSTI | 1 << 40]) {
            assert_eq!(verdict(&filter, here, libc::SYS_ioctl, request), refused, "{request:#x}");
        }
        assert_eq!(verdict(&filter, here, libc::SYS_ioctl, libc::TIOCGWINSZ), libc::SECCOMP_RET_ALLOW);
        // A call of i386.
        assert_eq!(verdict(&filter, 0x4000_0003, libc::SYS_read, 0), libc::SECCOMP_RET_KILL_PROCESS);
        // Calls of a later kernel, and of x32.
        let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        for number in [i64::from(LAST_KNOWN) + 1, 0x4000_0000 + libc::SYS_keyctl, -1] {
            assert_eq!(verdict(&filter, here, number, 0), unknown, "{number}");
        }
    }

    #[test]
    fn what_is_read_only_stays_so() {
        let (open, kept) = (Filter::new().unwrap(), Filter::of_mounts().unwrap());
        let here = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let refused = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        assert_eq!(verdict(&open, here, libc::SYS_mount_setattr, 0), libc::SECCOMP_RET_ALLOW);
        for number in [libc::SYS_mount_setattr, OPEN_TREE_ATTR] {
            assert_eq!(verdict(&kept, here, number, 0), refused, "{number}");
        }
        assert_eq!(verdict(&kept, here, libc::SYS_mount, 0), libc::SECCOMP_RET_ALLOW);
        let runtime = Filter::of_runtime();
        let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(verdict(&runtime, here, OPEN_TREE_ATTR, 0), unknown);
        assert_eq!(verdict(&runtime, here, libc::SYS_mount_setattr, 0), libc::SECCOMP_RET_ALLOW);
    }
}
