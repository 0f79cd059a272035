//! The machine that uses a store: `store/.host`.
//!
//! The locks of a store are flocks, which on a network file system may not reach other machines. So a process
//! that takes a lock also claims the store for this machine: by a file that names the machine, for as long as
//! any process here holds a lock. If another machine has a claim, the lock is refused. The last holder erases
//! the text. A claim left by a killed process is taken over if it is this machine's; otherwise it must be
//! removed by hand, since it is not known here whether that machine still runs.
//!
//! Machines are the same if they have the same boot id (containers have machine ids of their own, but share a
//! kernel, whose flocks reach all of them) or, after a reboot, the same machine id.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{self, fstatfs};

use crate::error::{IoContext as _, Result, StoreError};
use crate::id::ObjectId;
use crate::open::Store;

/// A machine, as named in a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The host name, for messages.
    name: String,
    /// A hash of /etc/machine-id (which is confidential); `-` if there is none.
    machine: String,
    /// The kernel's boot id; `-` if there is none.
    boot: String,
}

const UNKNOWN: &str = "-";

impl Host {
    /// This machine.
    fn this() -> Host {
        let read =
            |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let name =
            nix::unistd::gethostname().unwrap_or_default().to_string_lossy().replace(char::is_whitespace, "");
        let machine = read("/etc/machine-id");
        let hashed = || ObjectId::of(format!("karapace host {machine}").as_bytes()).to_hex()[..32].to_owned();
        let machine = if machine.is_empty() { UNKNOWN.to_owned() } else { hashed() };
        let known = |text: String| if text.is_empty() { UNKNOWN.to_owned() } else { text };
        Host { name: known(name), machine, boot: known(read("/proc/sys/kernel/random/boot_id")) }
    }

    fn text(&self) -> String {
        format!("host {} machine {} boot {}\n", self.name, self.machine, self.boot)
    }

    /// `None` for an empty file and for one that a crash left incomplete: nobody's claim.
    fn parse(text: &str) -> Option<Host> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["host", name, "machine", machine, "boot", boot] if text.ends_with('\n') => {
                let [name, machine, boot] = [name, machine, boot].map(str::to_owned);
                Some(Host { name, machine, boot })
            }
            _ => None,
        }
    }

    fn is_same(&self, other: &Host) -> bool {
        let same = |a: &str, b: &str| a == b && a != UNKNOWN;
        same(&self.boot, &other.boot)
            || same(&self.machine, &other.machine)
            || (self.machine == UNKNOWN && other.machine == UNKNOWN && self.name == other.name)
    }
}

/// This machine's claim of a store, shared by the processes that hold its locks; the last one gives it up.
#[derive(Debug)]
pub(crate) struct HostClaim {
    path: PathBuf,
    /// Locked shared. `None` for a read-only store, in which this process can do no harm.
    file: Option<Flock<File>>,
}

impl HostClaim {
    /// Claims the store.
    ///
    /// # Errors
    /// [`StoreError::OtherHost`] when another machine has claimed the store.
    pub fn take(store: &Store) -> Result<HostClaim> {
        let path = store.layout().host_file();
        if store.is_read_only() {
            return Ok(HostClaim { path, file: None });
        }
        let file = store.files().open_or_make(&path);
        // Only the last holder takes it exclusively, for a moment.
        let file = Flock::lock(file.at("open", &path)?, FlockArg::LockShared)
            .map_err(|(_, errno)| errno)
            .at("lock", &path)?;
        let mut text = String::new();
        (&*file).take(1024).read_to_string(&mut text).at("read", &path)?;
        let this = Host::this();
        match Host::parse(&text) {
            Some(found) if !found.is_same(&this) => {
                return Err(StoreError::OtherHost { path, host: found.name });
            }
            Some(found) if found == this => {}
            // Several processes may write it at once, all with the same text.
            _ => match write(&file, &this.text(), &path) {
                // A full disk must not prevent locking: making room takes locks too.
                Err(error) if error.is_full() => {
                    tracing::debug!("{error}; use by other hosts is not detected")
                }
                other => other?,
            },
        }
        Ok(HostClaim { path, file: Some(file) })
    }
}

fn write(file: &File, text: &str, path: &Path) -> Result<()> {
    file.write_all_at(text.as_bytes(), 0).at("write", path)?;
    file.set_len(text.len() as u64).at("write", path)?;
    // Other machines see it once it has reached the server; on a local disk only this kernel reads it.
    match fstatfs(file).at("stat the file system of", path)?.filesystem_type() {
        statfs::EXT4_SUPER_MAGIC
        | statfs::XFS_SUPER_MAGIC
        | statfs::BTRFS_SUPER_MAGIC
        | statfs::TMPFS_MAGIC
        | statfs::OVERLAYFS_SUPER_MAGIC => Ok(()),
        _ => file.sync_data().at("sync", path),
    }
}

impl Drop for HostClaim {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        // If another process of this machine holds the claim, that process gives it up.
        if file.relock(FlockArg::LockExclusiveNonblock).is_err() {
            return;
        }
        if let Err(error) = file.set_len(0) {
            tracing::warn!("cannot give up {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::lock::{EnvLock, StoreLock};

    fn store() -> (tempfile::TempDir, std::sync::Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn claim_of(store: &Store) -> String {
        fs::read_to_string(store.layout().host_file()).unwrap()
    }

    #[test]
    fn the_claim_lasts_as_long_as_any_lock() {
        let (_dir, store) = store();
        let one = StoreLock::shared(&store).unwrap();
        let two = EnvLock::try_acquire(&store, &InstanceId::random().unwrap()).unwrap();
        let this = Host::this();
        assert_eq!(Host::parse(&claim_of(&store)), Some(this));
        drop(one);
        assert_ne!(claim_of(&store), "");
        drop(two);
        assert_eq!(claim_of(&store), "");
    }

    #[test]
    fn another_host_is_refused_by_name_until_its_claim_is_removed() {
        let (_dir, store) = store();
        let other = Host { name: "far".into(), machine: "ab".repeat(16), boot: "another".into() };
        fs::write(store.layout().host_file(), other.text()).unwrap();
        let instance = InstanceId::random().unwrap();
        let refused = [
            StoreLock::try_shared(&store).unwrap_err(),
            StoreLock::exclusive(&store).unwrap_err(),
            EnvLock::try_acquire(&store, &instance).unwrap_err(),
            crate::lock::CollectionLock::try_acquire(&store).unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, StoreError::OtherHost { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("host far") && text.contains("rm "), "{text}");
        }
        assert_eq!(claim_of(&store), other.text());
        fs::remove_file(store.layout().host_file()).unwrap();
        StoreLock::exclusive(&store).unwrap();
    }

    #[test]
    fn a_claim_of_this_machine_is_taken_over() {
        let (_dir, store) = store();
        let this = Host::this();
        let restarted = Host { boot: "before".into(), ..this.clone() };
        let container = Host { machine: "cd".repeat(16), name: "inside".into(), ..this.clone() };
        for text in [restarted.text(), container.text(), "host ha".to_owned(), "\0\0\0".to_owned()] {
            fs::write(store.layout().host_file(), &text).unwrap();
            let same = this.machine != UNKNOWN && this.boot != UNKNOWN;
            match StoreLock::exclusive(&store) {
                Ok(_) => {}
                Err(error) => assert!(!same, "{text:?}: {error}"),
            }
        }
    }
}
