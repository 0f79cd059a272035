//! Checks of the kernel and its settings.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use karapace_store::wait::Deadline;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::utsname::uname;
use nix::unistd::{AccessFlags, access, geteuid};

use super::{Check, on_path};
use crate::engine::mountpoint;

/// Restore needs FUSE_EXPIRE_ONLY (docs/KERNEL.md).
const KERNEL: (u32, u32) = (6, 2);

/// How long all mounts together may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = match uname() {
        Ok(names) => names.release().to_string_lossy().into_owned(),
        Err(errno) => {
            return Check::warning(NAME, format!("unknown: {errno}"), "check that it is 6.2 or newer");
        }
    };
    match version(&release) {
        Some(found) if found >= KERNEL => Check::ok(NAME, release),
        _ => Check::failed(NAME, format!("{release}: mounts need 6.2 or newer"), "install a newer kernel"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

pub(super) fn fuse_device() -> Check {
    const NAME: &str = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(_) => Check::ok(NAME, "usable"),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOENT) => {
                let mend = "sudo modprobe fuse (in a container: start it with --device /dev/fuse)";
                Check::failed(NAME, "missing: mounting is impossible", mend)
            }
            Some(libc::ENODEV | libc::ENXIO) => {
                Check::failed(NAME, "exists, but the kernel has no FUSE", "sudo modprobe fuse")
            }
            Some(libc::EACCES) => Check::failed(NAME, "only root can open it", "sudo chmod 0666 /dev/fuse"),
            _ => Check::failed(NAME, e.to_string(), "let this container use the device: --device /dev/fuse"),
        },
    }
}

/// Settings that can forbid user namespaces: name, forbidding value, and the command that changes it.
const FORBIDDING: [(&str, &str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user.max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=65536"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (or give karapace an AppArmor profile with userns)",
    ),
];

pub(super) fn user_namespaces(try_namespace: &dyn Fn() -> Result<(), String>) -> Check {
    const NAME: &str = "user namespaces";
    if geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let Err(reason) = try_namespace() else { return Check::ok(NAME, "available") };
    for (setting, value, mend) in FORBIDDING {
        let path = Path::new("/proc/sys").join(setting.replace('.', "/"));
        if fs::read_to_string(path).is_ok_and(|text| text.trim() == value) {
            return Check::failed(
                NAME,
                format!("forbidden by {setting} = {value}: enter and exec are impossible"),
                mend,
            );
        }
    }
    let mend =
        "check that no security policy of this machine or container (seccomp, SELinux) forbids unshare(2)";
    Check::failed(NAME, format!("unavailable ({reason}): enter and exec are impossible"), mend)
}

/// Makes the namespaces and also mounts in them: AppArmor does not forbid a user namespace, but operations in
/// it.
pub(super) fn enter_namespaces() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("unshare: {errno}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| format!("mount: {errno}"))
}

pub(super) fn control_groups() -> Check {
    const NAME: &str = "cgroup v2";
    let mend = "systemd-run --user --scope -p Delegate=yes karapace enter … (as a user of systemd)";
    let top = Path::new("/sys/fs/cgroup");
    if !top.join("cgroup.controllers").exists() {
        return Check::warning(NAME, "not mounted: resource limits cannot be enforced", mend);
    }
    let table = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = table.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let own = top.join(own);
    let writable = ["", "cgroup.procs"].iter().all(|name| access(&own.join(name), AccessFlags::W_OK).is_ok());
    if writable {
        Check::ok(NAME, "delegated")
    } else {
        Check::warning(NAME, "not delegated here: resource limits cannot be enforced", mend)
    }
}

pub(super) fn oci_runtimes() -> Check {
    const NAME: &str = "OCI runtime";
    let found: Vec<&str> =
        ["crun", "runc", "youki"].into_iter().filter(|name| on_path(name).is_some()).collect();
    if found.is_empty() {
        return Check::ok(
            NAME,
            "none (only needed for runtime.backend = \"oci\"; the package crun provides one)",
        );
    }
    Check::ok(NAME, found.join(", "))
}

pub(super) fn stale_mounts() -> Check {
    const NAME: &str = "stale mounts";
    let dirs = match mountpoint::all_of_ours() {
        Ok(dirs) => dirs,
        Err(error) => return Check::warning(NAME, error.to_string(), "mount /proc"),
    };
    let answers: Vec<_> = dirs.into_iter().map(|dir| (ask(&dir), dir)).collect();
    let deadline = Deadline::after(PATIENCE);
    let (mut stale, mut silent) = (Vec::new(), Vec::new());
    for (answer, dir) in answers {
        let dir = dir.display();
        match answer.recv_timeout(deadline.left()) {
            Ok(false) => {}
            Ok(true) => stale.push(format!("karapace umount '{dir}'")),
            Err(_) => silent.push(format!("karapace umount --force '{dir}'")),
        }
    }
    let gone = (!stale.is_empty()).then(|| format!("{} mounts whose server is gone", stale.len()));
    let mute = (!silent.is_empty()).then(|| format!("{} mounts whose server does not answer", silent.len()));
    let found: Vec<String> = gone.into_iter().chain(mute).collect();
    if found.is_empty() {
        return Check::ok(NAME, "none");
    }
    stale.append(&mut silent);
    Check::warning(NAME, found.join(", "), stale.join("; "))
}

/// Asks in a thread whether the mount on `dir` is stale: its server may not answer, as when it is stopped.
fn ask(dir: &Path) -> Receiver<bool> {
    let (tell, told) = channel();
    let dir = dir.to_owned();
    let look = move || tell.send(mountpoint::is_stale(&dir)).unwrap_or(());
    // Without a thread the receiver finds out that nobody answers.
    if let Err(error) = std::thread::Builder::new().name("karapace-look".to_owned()).spawn(look) {
        tracing::warn!("cannot look at a mount: {error}");
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (text, expected) in [
            ("6.18.5", Some((6, 18))),
            ("6.1.0-13-amd64", Some((6, 1))),
            ("6.2-rc1", Some((6, 2))),
            ("x", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_reason_is_given_for_namespaces_that_cannot_be_made() {
        let check = user_namespaces(&|| Err("unshare: EPERM".to_owned()));
        assert!(geteuid().is_root() || check.mend.is_some_and(|mend| !mend.is_empty()));
    }
}
