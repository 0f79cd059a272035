//! What a session must know from the environment's own files.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::account::{Accounts, SELF};
use super::files::Inside;
use super::user::User;
use crate::runtime::RuntimeError;
use crate::runtime::policy::Policy;

/// The contents of an environment's files that a session depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The user that runs the command.
    pub user: User,
    /// Whether the user's home directory exists.
    pub has_home: bool,
    /// The environment's own `/etc/hosts`, unless it is empty.
    pub hosts: Option<Vec<u8>>,
    /// The files to which the caller is added, if [`SELF`] was asked for.
    #[serde(default)]
    pub accounts: Option<Box<Accounts>>,
    /// Paths of `OWN_FILES` that are directories in the environment: they are not covered.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
    /// Messages for the user: what the session goes without.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Files that a session covers with its own.
const OWN_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

impl Seen {
    /// Reads the files below `root`, which must be visible to this process. `user` as in
    /// [`Session::user`](crate::runtime::Session::user).
    ///
    /// # Errors
    /// [`RuntimeError::Root`], [`RuntimeError::UnknownUser`]. A file that cannot be read counts as absent,
    /// and [`Seen::notes`] says so.
    pub fn look(root: &Path, user: Option<&str>) -> Result<Seen, RuntimeError> {
        let inside = Inside::open(root)?;
        let (user, accounts) = match user {
            Some(SELF) => (None, Some(Box::new(Accounts::look(&inside)))),
            named => (named, None),
        };
        // An empty one is what another session, or an earlier version, mounts on.
        let hosts = inside.read(Path::new("/etc/hosts")).filter(|text| !text.is_empty());
        let user = User::find(&inside, user);
        let notes = inside.take_notes();
        let user = user.inspect_err(|_| notes.iter().for_each(|note| tracing::warn!("{note}")))?;
        let has_home = inside.is_directory(&user.home);
        let directories = OWN_FILES.map(PathBuf::from).into_iter().filter(|path| inside.is_directory(path));
        Ok(Seen { user, has_home, hosts, accounts, directories: directories.collect(), notes })
    }

    /// Makes the calling process's user the one that runs the command, if [`SELF`] was asked for. `many_ids`:
    /// the inside has more than one id.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], if `policy` or the ids of the inside do not permit it.
    pub fn become_caller(&mut self, policy: &Policy, many_ids: bool) -> Result<(), RuntimeError> {
        if let Some(accounts) = &mut self.accounts {
            self.user = accounts.take_in_caller(policy, many_ids)?;
        }
        Ok(())
    }
}
