//! Advisory locks between processes: one for the store, one for each environment.
//!
//! They are `flock`s, so they end with the process that holds them. Each holder writes its pid and command
//! line into the lock file, for messages only: the kernel holds the lock. A `flock` may not reach other
//! machines: see `host`.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{IoContext, Result, StoreError};
use crate::host::HostClaim;
use crate::id::InstanceId;
use crate::open::Store;
use crate::wait::Deadline;

/// How long to wait for a lock before saying so: most holders are done by then.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The lock on the whole store; released on drop.
///
/// Held shared by operations that add references to objects (import, build, commit, restore), from before the
/// first object is written or found until the reference is durable. Held exclusively by gc while it deletes,
/// one directory at a time. A process must not hold two of them at once when one is exclusive: the second
/// would wait for the first forever.
#[derive(Debug)]
pub struct StoreLock {
    _file: Flock<File>,
    _claim: HostClaim,
}

impl StoreLock {
    /// Waits until nobody holds the lock exclusively; after a second it logs who holds it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] at once if the store does not wait ([`Store::set_waits`]);
    /// [`StoreError::OtherHost`] when another machine uses the store.
    pub fn shared(store: &Store) -> Result<StoreLock> {
        Self::wait(store, false)
    }

    /// Like [`StoreLock::shared`], but waits until nobody else holds the lock at all.
    pub fn exclusive(store: &Store) -> Result<StoreLock> {
        Self::wait(store, true)
    }

    /// Like [`StoreLock::shared`], but fails with [`StoreError::Locked`] instead of waiting.
    pub fn try_shared(store: &Store) -> Result<StoreLock> {
        Self::attempt(store, false)
    }

    /// Like [`StoreLock::exclusive`], but fails with [`StoreError::Locked`] instead of waiting.
    pub fn try_exclusive(store: &Store) -> Result<StoreLock> {
        Self::attempt(store, true)
    }

    fn attempt(store: &Store, exclusive: bool) -> Result<StoreLock> {
        let path = store.layout().lock_file();
        let claim = HostClaim::take(store)?;
        match try_lock(open(store, &path)?, exclusive, &path)? {
            Attempt::Got(file) => Ok(StoreLock { _file: signed(store, file, &path)?, _claim: claim }),
            Attempt::Busy(_) => Err(StoreError::Locked { path: path.clone(), holder: holder(store, &path) }),
        }
    }

    fn wait(store: &Store, exclusive: bool) -> Result<StoreLock> {
        if !store.waits() {
            return Self::attempt(store, exclusive);
        }
        let path = store.layout().lock_file();
        let deadline = Deadline::after(PATIENCE);
        let claim = HostClaim::take(store)?;
        let mut file = open(store, &path)?;
        while !deadline.has_passed() {
            match try_lock(file, exclusive, &path)? {
                Attempt::Got(file) => {
                    return Ok(StoreLock { _file: signed(store, file, &path)?, _claim: claim });
                }
                Attempt::Busy(back) => file = back,
            }
            deadline.pause();
        }
        tracing::warn!("waiting for the store's lock {}: {} holds it", path.display(), holder(store, &path));
        loop {
            let kind = if exclusive { FlockArg::LockExclusive } else { FlockArg::LockShared };
            match Flock::lock(file, kind) {
                Ok(file) => return Ok(StoreLock { _file: signed(store, file, &path)?, _claim: claim }),
                Err((back, Errno::EINTR)) => file = back,
                Err((_, errno)) => return Err(errno).at("lock", &path),
            }
        }
    }
}

/// Lets one collection at a time run on a store; released on drop.
#[derive(Debug)]
pub struct CollectionLock {
    _file: Flock<File>,
    _claim: HostClaim,
}

impl CollectionLock {
    /// Takes the lock, or fails with [`StoreError::Locked`] naming the holder; never waits.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another collection runs, [`StoreError::OtherHost`] when another machine
    /// uses the store.
    pub fn try_acquire(store: &Store) -> Result<CollectionLock> {
        let path = store.layout().collection_lock();
        let claim = HostClaim::take(store)?;
        match try_lock(open(store, &path)?, true, &path)? {
            Attempt::Got(file) => Ok(CollectionLock { _file: signed(store, file, &path)?, _claim: claim }),
            Attempt::Busy(_) => Err(StoreError::Locked { holder: holder(store, &path), path }),
        }
    }
}

/// The lock that the process serving or changing an environment holds; released on drop.
#[derive(Debug)]
pub struct EnvLock {
    _file: Flock<File>,
    path: PathBuf,
    _claim: HostClaim,
}

impl EnvLock {
    /// Takes an environment's lock, or fails with [`StoreError::Locked`] naming the holder; never waits.
    /// Makes the environment's directory if it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another process holds it, [`StoreError::OtherHost`] when another machine
    /// uses the store.
    pub fn try_acquire(store: &Store, instance: &InstanceId) -> Result<EnvLock> {
        let dir = store.env_dir(instance);
        let path = dir.join("lock");
        let claim = HostClaim::take(store)?;
        loop {
            store.files().make_dirs(&dir).at("create", &dir)?;
            let file = match open(store, &path) {
                Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                other => other?,
            };
            let file = match try_lock(file, true, &path)? {
                Attempt::Got(file) => file,
                Attempt::Busy(_) => {
                    return Err(StoreError::Locked { path: path.clone(), holder: holder(store, &path) });
                }
            };
            if store.is_read_only() {
                return Ok(EnvLock { _file: file, path, _claim: claim });
            }
            // A destroy may have removed the file between open and lock; then the lock protects nothing.
            let held = file.metadata().at("read", &path)?;
            match path.symlink_metadata() {
                Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => {
                    return Ok(EnvLock { _file: signed(store, file, &path)?, path, _claim: claim });
                }
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).at("read", &path),
            }
        }
    }

    /// The holder of an environment's lock, as `pid 12 (command)`; `None` when nobody holds it.
    pub fn holder(store: &Store, instance: &InstanceId) -> Result<Option<String>> {
        let path = store.env_dir(instance).join("lock");
        let file = match store.files().open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at("open", &path),
        };
        Ok(match try_lock(file, false, &path)? {
            Attempt::Got(_) => None,
            Attempt::Busy(_) => Some(holder(store, &path)),
        })
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

enum Attempt {
    Got(Flock<File>),
    Busy(File),
}

fn open(store: &Store, path: &Path) -> Result<File> {
    let files = store.files();
    if !store.is_read_only() {
        return files.open_or_make(path).at("open", path);
    }
    match files.open(path) {
        // If the lock file was never made, lock its directory instead.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let dir = path.parent().unwrap_or(path);
            files.open_dir(dir).at("open", dir)
        }
        other => other.at("open", path),
    }
}

fn try_lock(file: File, exclusive: bool, path: &Path) -> Result<Attempt> {
    let kind = if exclusive { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    match Flock::lock(file, kind) {
        Ok(file) => Ok(Attempt::Got(file)),
        Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(Attempt::Busy(file)),
        Err((_, errno)) => Err(errno).at("lock", path),
    }
}

/// Writes our pid and command line into the lock file.
fn signed(store: &Store, mut file: Flock<File>, path: &Path) -> Result<Flock<File>> {
    if store.is_read_only() {
        return Ok(file);
    }
    let text = format!("pid {} ({})\n", std::process::id(), command_line());
    let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.set_len(0));
    match written.and_then(|()| file.write_all(text.as_bytes())).at("write", path) {
        // A full disk must not prevent locking; then other processes are not told who holds the lock.
        Err(error) if error.is_full() => tracing::debug!("{error}"),
        other => other?,
    }
    Ok(file)
}

/// The command line of this process, shortened to 80 characters: `karapace commit dev`.
fn command_line() -> String {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = std::iter::once(program).chain(args.map(|arg| arg.to_string_lossy().into_owned()));
    let line = words.collect::<Vec<_>>().join(" ").replace(char::is_control, " ");
    line.chars().take(80).collect()
}

/// What the holder wrote into the lock file; if several share the lock, the latest of them.
fn holder(store: &Store, path: &Path) -> String {
    let read = store.files().read(path, 512).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match read.as_deref().map(str::trim) {
        Some(known) if !known.is_empty() => known.replace(char::is_control, " "),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, std::sync::Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn shared_holders_keep_an_exclusive_one_out() {
        let (_dir, store) = store();
        let one = StoreLock::shared(&store).unwrap();
        let two = StoreLock::try_shared(&store).unwrap();
        let error = StoreLock::try_exclusive(&store).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop((one, two));
        let _all = StoreLock::exclusive(&store).unwrap();
        assert!(matches!(StoreLock::try_shared(&store), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn a_store_that_does_not_wait_says_who_holds_it() {
        let (_dir, store) = store();
        let _held = StoreLock::exclusive(&store).unwrap();
        store.set_waits(false);
        assert!(matches!(StoreLock::shared(&store), Err(StoreError::Locked { .. })));
    }

    #[test]
    fn a_wait_ends_when_the_holder_releases_the_lock() {
        let (_dir, store) = store();
        let held = StoreLock::exclusive(&store).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| StoreLock::shared(&store).map(|_| ()));
            std::thread::sleep(Duration::from_millis(1200));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn an_environment_has_one_holder() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        assert_eq!(EnvLock::holder(&store, &instance).unwrap(), None);
        let held = EnvLock::try_acquire(&store, &instance).unwrap();
        assert!(matches!(EnvLock::try_acquire(&store, &instance), Err(StoreError::Locked { .. })));
        let holder = EnvLock::holder(&store, &instance).unwrap().unwrap();
        assert!(holder.starts_with(&format!("pid {} (", std::process::id())), "{holder}");
        assert!(held.path().ends_with("lock"));
        drop(held);
        assert_eq!(EnvLock::holder(&store, &instance).unwrap(), None);
        EnvLock::try_acquire(&store, &instance).unwrap();
    }

    #[test]
    fn a_lock_file_that_was_removed_locks_nothing() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        let stale = EnvLock::try_acquire(&store, &instance).unwrap();
        std::fs::remove_dir_all(store.env_dir(&instance)).unwrap();
        EnvLock::try_acquire(&store, &instance).unwrap();
        drop(stale);
    }
}
