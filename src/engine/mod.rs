//! The work of each command: the engine combines the store, the view and the runtime. One verb a file, in
//! wings:
//!
//! | | |
//! |---|---|
//! | [`session`] | commands inside: enter, exec, run, stop |
//! | [`make`] | environments come to be: build, rebuild, import, clone, pin, new |
//! | [`record`] | list, inspect, rename, freeze, retention, destroy |
//! | [`export`] | images, and entries of the desktop's menu |
//! | [`doctor`] | what the machine lacks |
//! | [`mount`] | serving through FUSE, and unmounting |
//! | [`server`] | a server's mounts, the control socket, control files, and how commands reach a server |
//! | [`upkeep`] | gc, verify, du |
//! | [`overlay`] | the changes of sessions that overlayfs keeps: where they are, and how they become a tree |
//! | [`instance`] | one environment, open: commit, restore, snapshots, diff |
//!
//! The first five may use the wings below them, but not each other, except that `session` uses `make`; from
//! `mount` down, each uses only those below it. What all share is here: the [`Engine`], its [`Error`],
//! [`mountpoint`]. A method of [`Engine`] is in the lowest wing that has what it needs: `server` has commit,
//! restore and diff, because another process may have the environment open; `instance` has what they do.
//!
//! Nothing here prints or parses arguments; progress and remarks go to a [`Report`].

pub mod doctor;
pub mod error;
pub mod export;
pub mod instance;
pub mod make;
pub mod mount;
pub mod mountpoint;
pub mod overlay;
pub mod record;
pub mod server;
pub mod session;
#[cfg(test)]
mod tests;
pub mod upkeep;

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_store::Store;
use karapace_store::durability::{Doubt, FileSystem};
use karapace_store::error::StoreError;
use karapace_store::id::InstanceId;
use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;
use karapace_store::wait::Deadline;
use karapace_store::wal;
use nix::fcntl::{Flock, FlockArg};

pub use crate::report::{Report, Silent};
pub use error::{At, Error, Result};

/// The user's data directory: $XDG_DATA_HOME, or else ~/.local/share.
pub fn user_data() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")))
}

/// The user's default store.
pub fn default_store() -> Option<PathBuf> {
    user_data().map(|data| data.join("karapace"))
}

/// How long the hidden name of a removed open file may last: the file server learns of the last close only
/// after close has returned.
const HIDDEN_FILES_GO: Duration = Duration::from_secs(5);

/// An open store, and the commands on it.
#[derive(Clone)]
pub struct Engine {
    store: Arc<Store>,
    root: PathBuf,
}

impl Engine {
    /// Opens the store at `root`, and makes it if there is none. First undoes what killed commands left
    /// half-done.
    pub fn open(root: &Path) -> Result<Engine> {
        Engine::begin(root, Store::open)
    }

    /// Opens the store at `root`, which must exist.
    pub fn open_existing(root: &Path) -> Result<Engine> {
        Engine::begin(root, Store::open_existing)
    }

    /// Opens the store at `root`, which must exist and may belong to any user. Another user's store can only
    /// be read (see [`Store::open_foreign`]).
    pub fn open_foreign(root: &Path) -> Result<Engine> {
        Engine::begin(root, Store::open_foreign)
    }

    fn begin(root: &Path, open: impl Fn(&Path) -> karapace_store::Result<Arc<Store>>) -> Result<Engine> {
        let root = std::path::absolute(root).at("resolve", root)?;
        let store = open(&root)?;
        let engine = Engine { store, root };
        let ended = match engine.end_abandoned_builds() {
            Ok(ended) => ended,
            Err(error) => {
                tracing::warn!("cannot clean up after commands that were killed: {error}");
                return Ok(engine);
            }
        };
        for intent in wal::replay(&engine.store, &ended)? {
            tracing::info!("cleaned up after a command that was killed: {intent:?}");
        }
        Ok(engine)
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Remarks on how durable the store is on its file systems. With `all`, includes that a store in memory
    /// is not durable.
    ///
    /// # Errors
    /// If a file system cannot be examined.
    pub fn durability_remarks(&self, all: bool) -> Result<Vec<String>> {
        let found = self.store.file_systems()?.iter();
        let found = found.filter(|found| all || found.doubt != Some(Doubt::Memory));
        let place = self.root.display();
        Ok(found.filter_map(FileSystem::remark).map(|said| format!("the store {place}: {said}")).collect())
    }

    /// The store's root directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Finds an environment by name, id or unique prefix of an id.
    ///
    /// # Errors
    /// [`Error::NoEnvironment`].
    pub fn find(&self, reference: &str) -> Result<Metadata> {
        Metadata::find(&self.store, reference).map_err(|error| match error {
            StoreError::Missing { kind: "environment", .. } => {
                Error::NoEnvironment { reference: reference.to_owned() }
            }
            other => other.into(),
        })
    }

    fn env_dir(&self, instance: &InstanceId) -> PathBuf {
        self.store.env_dir(instance)
    }

    /// The environments whose records can be read, and the errors of the others.
    fn readable(&self) -> Result<(Vec<Metadata>, Vec<StoreError>)> {
        let (mut environments, mut unreadable) = (Vec::new(), Vec::new());
        for loaded in Metadata::list(self.store())? {
            match loaded {
                Ok(env) => environments.push(env),
                Err(error) => unreadable.push(error),
            }
        }
        Ok((environments, unreadable))
    }

    /// Removes the directory of an environment whose record is gone, and releases its lock.
    ///
    /// On NFS and most FUSE servers, a removed file that is open keeps a hidden name. The lock file's hidden
    /// name keeps the directory from being removed, and goes shortly after the file was closed.
    fn remove_env_dir(&self, dir: &Path, lock: EnvLock) -> io::Result<()> {
        let remove = || self.store().files().remove_tree(dir);
        let mut removed = remove();
        drop(lock);
        let deadline = Deadline::after(HIDDEN_FILES_GO);
        let is_kept = |error: &io::Error| {
            matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy)
        };
        while removed.as_ref().is_err_and(is_kept) && !deadline.has_passed() {
            deadline.pause();
            removed = remove();
        }
        removed
    }

    /// Makes the check that a name is free and the save that takes the name one atomic step. Held briefly.
    fn lock_names(&self) -> Result<Flock<File>> {
        let dir = Metadata::dir(&self.store);
        let file = self.store.files().open_dir(&dir).at("open", &dir)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io("lock", &dir, errno.into()))
    }

    /// Refuses a name that another environment has.
    fn check_name_free(&self, name: &str, except: Option<&InstanceId>) -> Result<()> {
        karapace_store::metadata::check_name(name)?;
        if Metadata::name_is_free(&self.store, name, except)? {
            Ok(())
        } else {
            Err(Error::NameTaken { name: name.to_owned() })
        }
    }
}
