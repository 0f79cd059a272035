//! Explains why a kernel refuses a session, and what to do about it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::runtime::RuntimeError;
use crate::runtime::channel::Failure;
use crate::runtime::inside::overlay;

/// Sysctls that turn user namespaces off: (file, the value that does, how to fix it).
const SWITCHES: [(&str, &str, &str); 3] = [
    ("/proc/sys/user/max_user_namespaces", "0", "as root, run: sysctl -w user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "as root, run: sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "as root, run: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give karapace an AppArmor profile \
         that allows userns",
    ),
];

/// The error for a refused `clone`.
pub(super) fn namespaces(errno: Errno) -> RuntimeError {
    let hint = match switched_off() {
        Some(cure) if !geteuid().is_root() => cure,
        _ if geteuid().is_root() => {
            "root lacks CAP_SYS_ADMIN here, as in most containers: start the container with that capability"
                .to_owned()
        }
        _ => "a security module or a container may forbid it".to_owned(),
    };
    RuntimeError::Namespaces { source: errno.into(), hint }
}

/// The error for a failed step of preparing the inside.
pub(super) fn setup(failure: &Failure<'_>) -> RuntimeError {
    let denied = matches!(failure.errno, Errno::EPERM | Errno::EACCES);
    let user = !geteuid().is_root();
    if denied
        && user
        && let Some(hint) = switched_off()
    {
        return RuntimeError::Namespaces { source: failure.errno.into(), hint };
    }
    if failure.action == overlay::ACTION {
        return RuntimeError::NoOverlay { reason: std::io::Error::from(failure.errno).to_string() };
    }
    let hint = match failure.path {
        b"/proc" if denied && user => {
            "; the kernel allows an ordinary user a new /proc only if nothing is mounted over parts of the present one, as \
             container engines do"
        }
        b"/proc" | b"/sys" | b"/dev"
            if matches!(failure.errno, Errno::ENOTDIR | Errno::ENOENT | Errno::ELOOP) =>
        {
            "; the environment has no directory there: mount it (karapace mount) and create one"
        }
        _ if failure.errno == Errno::EROFS => {
            "; create the directory in the environment while it is mounted writable"
        }
        _ => "",
    };
    RuntimeError::Setup {
        action: failure.action.to_owned(),
        path: PathBuf::from(OsStr::from_bytes(failure.path)),
        source: failure.errno.into(),
        hint,
    }
}

pub(super) fn switched_off() -> Option<String> {
    let (file, value, cure) =
        SWITCHES.iter().find(|(file, off, _)| fs::read_to_string(file).is_ok_and(|v| v.trim() == *off))?;
    Some(format!("{file} is {value}; {cure}"))
}
