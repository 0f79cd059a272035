//! Checks of the store and its file system.

use std::fs::File;
use std::path::{Path, PathBuf};

use karapace_store::Store;
use karapace_store::durability::{Barrier, FileSystem};
use karapace_store::inode::Timestamp;
use karapace_store::metadata::Metadata;
use karapace_store::rfc3339;
use nix::sys::statvfs::statvfs;

use super::Check;

/// Free bytes below which a commit or an import soon runs out of space.
const LITTLE_SPACE: u64 = 1 << 30;

/// The same for free inodes.
const FEW_FILES: u64 = 10_000;

pub(super) fn checks(root: &Path) -> Vec<Check> {
    let place = existing(root);
    let mut checks = vec![store(root), file_system(&place), reflink(&place), space(&place), files(&place)];
    if Store::is_at(root) {
        checks.push(clock(root));
    }
    checks
}

/// The store's directory, or the nearest existing directory above it.
fn existing(root: &Path) -> PathBuf {
    root.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn store(root: &Path) -> Check {
    const NAME: &str = "store";
    if !Store::is_at(root) {
        return Check::ok(NAME, format!("{}: does not exist yet", root.display()));
    }
    match Store::open(root) {
        Ok(_) => Check::ok(NAME, root.display().to_string()),
        Err(error) => Check::failed(
            NAME,
            error.to_string(),
            "run karapace migrate, or choose another store with --store",
        ),
    }
}

fn file_system(place: &Path) -> Check {
    const NAME: &str = "file system";
    let found = match File::open(place).and_then(|dir| FileSystem::of(&dir)) {
        Ok(found) => found,
        Err(error) => {
            return Check::warning(NAME, format!("unknown: {error}"), "choose another store with --store");
        }
    };
    let mend = "put the store on a local file system: --store PATH, or KARAPACE_STORE";
    let name = &found.name;
    if matches!(name.as_str(), "vfat" | "msdos") {
        return Check::failed(NAME, format!("{name}: supports neither modes nor links"), mend);
    }
    let trait_of = match name.as_str() {
        "nfs" | "nfs4" => Some("slow, and its locks work on one machine only"),
        "cifs" | "smb3" => Some("slow, and without owners and modes"),
        "9p" => Some("slow, and without reliable locks"),
        _ => None,
    };
    let mut said: Vec<String> = trait_of.map(|what| format!("{name}: {what}")).into_iter().collect();
    said.extend(found.remark());
    match said.is_empty() {
        false => Check::warning(NAME, said.join("; "), mend),
        true if found.barrier == Barrier::Whole => Check::ok(NAME, name),
        true => Check::ok(NAME, format!("{name}: each file is synced separately, which takes longer")),
    }
}

/// Tries a reflink between two unnamed files.
fn reflink(place: &Path) -> Check {
    const NAME: &str = "reflink";
    let attempt = || -> std::io::Result<()> {
        let (from, to) = (tempfile::tempfile_in(place)?, tempfile::tempfile_in(place)?);
        std::os::unix::fs::FileExt::write_all_at(&from, &[1; 4096], 0)?;
        Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
    };
    match attempt() {
        Ok(()) => Check::ok(NAME, "works"),
        Err(e) => match e.raw_os_error() {
            Some(libc::EACCES | libc::EROFS | libc::EPERM) => {
                let mend = format!(
                    "let this user write to {}, or choose another store with --store",
                    place.display()
                );
                Check::failed(NAME, format!("cannot test it: {e}"), mend)
            }
            _ => Check::ok(NAME, "none: the first write into a large file of a snapshot copies its block"),
        },
    }
}

fn space(place: &Path) -> Check {
    const NAME: &str = "space";
    let stat = match statvfs(place) {
        Ok(stat) => stat,
        Err(errno) => return Check::warning(NAME, format!("unknown: {errno}"), "df"),
    };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let found = format!("{} free", indicatif::BinaryBytes(free));
    if free < LITTLE_SPACE {
        return Check::warning(NAME, found, "run karapace gc; karapace du shows what uses the space");
    }
    Check::ok(NAME, found)
}

fn files(place: &Path) -> Check {
    const NAME: &str = "inodes";
    match statvfs(place) {
        // Some file systems allocate inodes dynamically and report 0.
        Ok(stat) if stat.files() == 0 => Check::ok(NAME, "without limit"),
        Ok(stat) => {
            let free = stat.files_available();
            let found = format!("{free} free");
            if free < FEW_FILES { Check::warning(NAME, found, "karapace gc") } else { Check::ok(NAME, found) }
        }
        Err(errno) => Check::warning(NAME, format!("unknown: {errno}"), "df -i"),
    }
}

/// If the clock was set back, new records look older than existing ones.
fn clock(root: &Path) -> Check {
    const NAME: &str = "clock";
    let newest = newest_record(root);
    let now = Timestamp::now();
    match newest {
        Some(newest) if newest.secs > now.secs => {
            let found = format!(
                "it is {}, but the store has a record of {}",
                rfc3339::format(now),
                rfc3339::format(newest)
            );
            Check::warning(NAME, found, "run sudo timedatectl set-ntp true, or set the clock with date")
        }
        _ => Check::ok(NAME, "not behind the newest record"),
    }
}

fn newest_record(root: &Path) -> Option<Timestamp> {
    let store = Store::open(root).ok()?;
    let mut newest = None;
    for env in Metadata::list(&store).ok()?.into_iter().flatten() {
        let times = env.snapshots.iter().map(|s| s.created_at).chain([env.created_at, env.updated_at]);
        newest = newest.max(times.max_by_key(|time| time.secs).map(|time| (time.secs, time.nanos)));
    }
    newest.map(|(secs, nanos)| Timestamp { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::doctor::Outcome;
    use std::fs;

    #[test]
    fn a_path_without_a_store_is_examined_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b/store");
        let checks = checks(&root);
        assert!(checks.iter().all(|check| check.outcome != Outcome::Failed), "{checks:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(existing(&root), dir.path());
    }

    #[test]
    fn a_store_of_another_format_fails_the_check() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap();
        assert!(checks(dir.path()).iter().any(|check| check.name == "clock" && check.outcome == Outcome::Ok));
        fs::write(dir.path().join("store/version"), "99\n").unwrap();
        assert!(
            checks(dir.path()).iter().any(|check| check.name == "store" && check.outcome == Outcome::Failed)
        );
    }
}
