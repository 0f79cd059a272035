//! Finds what keeps a mount from being unmounted, and what keeps an unmounted one alive: it still exists in
//! another mount namespace, or has open files.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::engine::{Result, mountpoint};

/// How many holders a message names at most.
const MOST: usize = 5;

/// A process that keeps a mount alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    name: String,
    /// The process is the first one found in another mount namespace that has the mount too.
    elsewhere: bool,
    /// The process has open files on the mount.
    open: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elsewhere = if self.elsewhere { ", in another mount namespace" } else { "" };
        write!(f, "{} ({}{elsewhere})", self.pid, self.name)
    }
}

/// The processes, but this one, that hold the FUSE mount with this minor device number: those with open
/// files, and one for each other mount namespace, as far as this process may look. Sends no request to the
/// mount.
pub fn holders(minor: u32) -> Vec<Holder> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: Vec<Option<PathBuf>> = vec![namespace("self")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let place = entry.path();
        let elsewhere = namespace(&pid.to_string()).is_some_and(|own| {
            let own = Some(own);
            if seen.contains(&own) {
                return false;
            }
            let table = fs::read(place.join("mountinfo")).unwrap_or_default();
            let table = String::from_utf8_lossy(&table);
            seen.push(own);
            mountpoint::has_device(&table, minor)
        });
        let open = has_open(&place, minor);
        if elsewhere || open {
            let comm = fs::read_to_string(place.join("comm")).unwrap_or_default();
            found.push(Holder { pid, name: comm.trim_end().to_owned(), elsewhere, open });
        }
    }
    found
}

/// The holders as a list for a message.
pub fn named(holders: &[Holder]) -> String {
    listed(holders.iter().map(Holder::to_string).collect())
}

/// What keeps the mount on `dir` from being unmounted, as a list for a message: processes with open files, as
/// far as this process may look, and what is mounted below. Empty if nothing is found.
pub fn users(dir: &Path) -> Result<String> {
    let processes = mountpoint::fuse_device(dir)?.map(holders).unwrap_or_default();
    let processes = processes.iter().filter(|holder| holder.open).map(Holder::to_string);
    let mounts = mountpoint::mounts_below(dir)?;
    let mounts = mounts.iter().map(|point| format!("the mount on {}", point.display()));
    Ok(listed(processes.chain(mounts).collect()))
}

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MOST);
    names.truncate(MOST);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

/// Whether a process has an open file, its working or root directory, or its program on the mount.
fn has_open(place: &Path, minor: u32) -> bool {
    let fixed = ["cwd", "root", "exe"].map(|name| place.join(name));
    let open = fs::read_dir(place.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    fixed.into_iter().chain(open).any(|link| {
        // Only the device number is needed; the kernel has it without asking the server, which may not
        // answer.
        let found = statx(CWD, &link, AtFlags::STATX_DONT_SYNC, StatxFlags::empty());
        found.is_ok_and(|found| (found.stx_dev_major, found.stx_dev_minor) == (0, minor))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn messages_name_the_first_holders() {
        let holder = |pid, elsewhere| Holder { pid, name: "sh".to_owned(), elsewhere, open: !elsewhere };
        assert_eq!(named(&[holder(1, false), holder(2, true)]), "1 (sh), 2 (sh, in another mount namespace)");
        let many: Vec<_> = (1..=7).map(|pid| holder(pid, false)).collect();
        assert!(named(&many).ends_with("5 (sh), 2 more"));
    }

    #[test]
    fn a_process_with_a_file_open_is_found() {
        // A file system without a disk has the major number 0, as FUSE has.
        let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
        let device = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::empty()).unwrap();
        assert_eq!(device.stx_dev_major, 0);
        let mut reader = Command::new("sleep").arg("60").stdin(file.try_clone().unwrap()).spawn().unwrap();
        let found = holders(device.stx_dev_minor);
        reader.kill().and_then(|()| reader.wait()).unwrap();
        assert!(found.iter().any(|holder| holder.pid == reader.id() && holder.open && !holder.elsewhere));
        assert!(found.iter().all(|holder| holder.pid != std::process::id()), "not the process that asks");
        drop(file);
    }
}
