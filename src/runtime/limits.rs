//! Limits on the resources of a session, by version 2 cgroups, if the kernel and the cgroup manager permit
//! it.
//!
//! ```text
//! DIR/karapace-<instance>/          cpu.weight, memory.max: all sessions of the environment together
//! DIR/karapace-<instance>/<pid>/    one session
//! ```
//!
//! DIR is karapace's own cgroup if groups with controllers can be made in it; else its parent (the kernel
//! allows no processes beside such groups); else, for root, the root of the hierarchy.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Limits that all sessions of an environment share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU weight relative to other groups, in cgroup v1 shares (2 to 262144); the usual value is 1024.
    pub cpu_shares: Option<u64>,
    /// Memory limit, in MiB.
    pub memory_mb: Option<u64>,
    /// Names the environment's cgroup; the same for all its sessions.
    pub name: String,
}

/// The cgroup of one session; removed on drop.
#[derive(Debug)]
pub(super) struct Group {
    dir: PathBuf,
    entry: File,
}

impl Group {
    /// A descriptor through which a process enters the group, by writing "0" to it.
    pub(super) fn entry(&self) -> Result<OwnedFd, Errno> {
        let copy =
            self.entry.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(copy.into())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The upper group goes with the last session; while it is populated, the kernel returns EBUSY and it
        // stays.
        for dir in [Some(self.dir.as_path()), self.dir.parent()].into_iter().flatten() {
            if let Err(error) = fs::remove_dir(dir) {
                tracing::debug!("cannot remove {}: {error}", dir.display());
            }
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = [("cpu_shares", self.cpu_shares), ("memory_limit_mb", self.memory_mb)];
        let given: Vec<_> =
            given.iter().filter_map(|(name, value)| Some(format!("{name} {}", (*value)?))).collect();
        f.write_str(&if given.is_empty() { "none".to_owned() } else { given.join(", ") })
    }
}

impl Limits {
    /// Makes a cgroup with these limits. `None` if there are no limits, or if they cannot be enforced; then a
    /// warning is logged.
    pub(super) fn enforce(&self) -> Option<Group> {
        if self.cpu_shares.is_none() && self.memory_mb.is_none() {
            return None;
        }
        self.group()
            .inspect_err(|reason| tracing::warn!("the resource_limits are not enforced: {reason}"))
            .ok()
    }

    /// Makes a cgroup with these limits for a session of this process. The error says why it cannot be made.
    fn group(&self) -> Result<Group, String> {
        // Names of mount points need not be UTF-8.
        let read = |path: &str| match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Err(format!("{path}: {error}")),
        };
        let places = places(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        let mut reasons: Vec<String> = Vec::new();
        for place in places {
            match self.group_in(&place) {
                Ok(group) => return Ok(group),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    /// Makes the group below `dir`.
    fn group_in(&self, dir: &Path) -> Result<Group, String> {
        let files = self.files();
        let has = words(&dir.join("cgroup.controllers"))?;
        for (controller, ..) in &files {
            if !has.iter().any(|word| word == controller) {
                return Err(format!("no {controller} controller is delegated to {}", dir.display()));
            }
        }
        let switch = dir.join("cgroup.subtree_control");
        let on = words(&switch)?;
        for (controller, ..) in
            files.iter().filter(|(controller, ..)| !on.iter().any(|word| word == controller))
        {
            write(&switch, &format!("+{controller}"))?;
        }
        let upper = dir.join(format!("karapace-{}", self.name));
        // Another session that ends right now may remove the upper group; then it is made again.
        for _ in 0..3 {
            make(&upper)?;
            forget_dead(&upper);
            for (_, file, value) in &files {
                write(&upper.join(file), value)?;
            }
            let own = upper.join(std::process::id().to_string());
            match fs::create_dir(&own) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(said(&own, &e)),
                _ => {}
            }
            let entry = own.join("cgroup.procs");
            let open = OpenOptions::new().write(true).create(true).truncate(false).open(&entry);
            return match open {
                Ok(entry) => Ok(Group { dir: own, entry }),
                Err(e) => {
                    let reason = said(&entry, &e);
                    fs::remove_dir(&own).and_then(|()| fs::remove_dir(&upper)).map_err(|e| said(&own, &e))?;
                    Err(reason)
                }
            };
        }
        Err(format!("{} is removed as fast as it is made", upper.display()))
    }

    /// Controller, file and value of each limit.
    fn files(&self) -> Vec<(&'static str, &'static str, String)> {
        let cpu = self.cpu_shares.map(|shares| ("cpu", "cpu.weight", weight(shares).to_string()));
        let memory =
            self.memory_mb.map(|mb| ("memory", "memory.max", (mb.saturating_mul(1 << 20)).to_string()));
        cpu.into_iter().chain(memory).collect()
    }
}

/// Converts version 1 shares (2 to 262144) to a version 2 weight (1 to 10000), as OCI runtimes do.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The directories in which groups may be made, best first, from `/proc/self/mountinfo` and
/// `/proc/self/cgroup`.
fn places(mountinfo: &str, cgroup: &str) -> Result<Vec<PathBuf>, String> {
    let mount = mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup2 ").then(|| (root.to_owned(), PathBuf::from(at)))
    });
    let Some((root, at)) = mount else {
        return Err("no cgroup v2 hierarchy is mounted".to_owned());
    };
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let own = own.ok_or("this process is in no cgroup v2")?;
    let own = Path::new(own);
    let Ok(relative) = own.strip_prefix(&root) else {
        return Err(format!("the cgroup {} is not below {}", own.display(), at.display()));
    };
    let own: PathBuf = at.join(relative).components().collect();
    let mut places = vec![own.clone()];
    if own != at {
        places.extend(own.parent().map(Path::to_owned));
    }
    if nix::unistd::geteuid().is_root() && !places.contains(&at) {
        places.push(at);
    }
    Ok(places)
}

/// Removes the groups that killed sessions left: their names are ids of processes that no longer exist.
fn forget_dead(upper: &Path) {
    for entry in fs::read_dir(upper).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists()
            && let Err(error) = fs::remove_dir(entry.path())
        {
            tracing::debug!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

fn make(dir: &Path) -> Result<(), String> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(said(dir, &e)),
        _ => Ok(()),
    }
}

fn words(path: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(path).map_err(|e| said(path, &e))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn write(path: &Path, value: &str) -> Result<(), String> {
    fs::write(path, value).map_err(|e| said(path, &e))
}

fn said(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { cpu_shares: Some(1024), memory_mb: Some(64), name: "e1".into() }
    }

    /// A directory that looks like a cgroup. The kernel's own files are created when they are written.
    fn fake(controllers: &str, enabled: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), enabled).unwrap();
        dir
    }

    #[test]
    fn a_group_has_the_limits() {
        let dir = fake("cpuset cpu io memory pids\n", "cpu memory\n");
        let group = limits().group_in(dir.path()).unwrap();
        let upper = dir.path().join("karapace-e1");
        let read = |name: &str| fs::read_to_string(upper.join(name)).unwrap();
        assert_eq!((read("cpu.weight"), read("memory.max")), ("39".into(), "67108864".into()));
        assert_eq!(group.dir, upper.join(std::process::id().to_string()));
        // A second session of the same environment removes what a killed one left: no process has this id.
        fs::create_dir(upper.join("4294967290")).unwrap();
        limits().group_in(dir.path()).unwrap();
        assert!(!upper.join("4294967290").exists());
    }

    #[test]
    fn a_controller_is_enabled_only_where_it_is_not() {
        let dir = fake("cpu memory", "cpu");
        limits().group_in(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap(), "+memory");
    }

    #[test]
    fn the_error_gives_the_reason() {
        let none = fake("", "");
        let error = limits().group_in(none.path()).unwrap_err();
        assert!(error.starts_with("no cpu controller is delegated to /"), "{error}");
        let memory_only = Limits { cpu_shares: None, ..limits() };
        let error = memory_only.group_in(fake("cpu", "").path()).unwrap_err();
        assert!(error.starts_with("no memory controller"), "{error}");
        let missing = limits().group_in(Path::new("/no/such/cgroup")).unwrap_err();
        assert!(missing.contains("/no/such/cgroup/cgroup.controllers: No such file"), "{missing}");
    }

    #[test]
    fn where_groups_are_made() {
        let v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let scope = "0::/user.slice/app.slice/shell.scope\n";
        let found = places(v2, scope).unwrap();
        let dir = Path::new("/sys/fs/cgroup/user.slice/app.slice");
        assert_eq!(found[..2], [dir.join("shell.scope"), dir.to_owned()]);
        assert_eq!(places(v2, "0::/\n").unwrap(), [Path::new("/sys/fs/cgroup")]);
        let part = "30 24 0:26 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(places(part, "0::/box/x\n").unwrap()[0], Path::new("/sys/fs/cgroup/x"));
        for (mountinfo, cgroup, reason) in [
            ("30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", scope, "no cgroup v2 hierarchy"),
            (v2, "4:memory:/x\n", "in no cgroup v2"),
            (part, "0::/other\n", "is not below"),
        ] {
            let error = places(mountinfo, cgroup).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn weights() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected);
        }
    }
}
