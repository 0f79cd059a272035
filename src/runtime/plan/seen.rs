//! What the environment's own files say of a session.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::account::{Accounts, SELF};
use super::files::Inside;
use super::user::User;
use crate::runtime::RuntimeError;
use crate::runtime::policy::Policy;

/// What of an environment's files a session depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Who runs the command.
    pub user: User,
    /// Whether the user's home directory is there.
    pub has_home: bool,
    /// The environment's own `/etc/hosts`.
    pub hosts: Option<Vec<u8>>,
    /// What the caller becomes a user of, where [`SELF`] is asked for.
    #[serde(default)]
    pub accounts: Option<Box<Accounts>>,
    /// What a session covers with a file of its own and is a directory there: it stays as it is.
    #[serde(default)]
    pub directories: Vec<PathBuf>,
    /// What the session goes without, for the user.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Files that a session has of its own.
const OWN_FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

impl Seen {
    /// Looks below `root`, of which this process must be able to see the inside. `user` as in
    /// [`Session::user`](crate::runtime::Session::user).
    ///
    /// # Errors
    /// [`RuntimeError::Root`], [`RuntimeError::UnknownUser`]. Files that cannot be read are none:
    /// [`Seen::notes`] tells.
    pub fn look(root: &Path, user: Option<&str>) -> Result<Seen, RuntimeError> {
        let inside = Inside::open(root)?;
        let (user, accounts) = match user {
            Some(SELF) => (None, Some(Box::new(Accounts::look(&inside)))),
            named => (named, None),
        };
        let hosts = inside.read(Path::new("/etc/hosts"));
        let user = User::find(&inside, user);
        let notes = inside.take_notes();
        let user = user.inspect_err(|_| notes.iter().for_each(|note| tracing::warn!("{note}")))?;
        let has_home = inside.is_directory(&user.home);
        let directories = OWN_FILES.map(PathBuf::from).into_iter().filter(|path| inside.is_directory(path));
        Ok(Seen { user, has_home, hosts, accounts, directories: directories.collect(), notes })
    }

    /// Makes the calling process's user the one who runs the command, where that was asked for. `many_ids`:
    /// the inside has more than one id.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], where it cannot be.
    pub fn become_caller(&mut self, policy: &Policy, many_ids: bool) -> Result<(), RuntimeError> {
        if let Some(accounts) = &mut self.accounts {
            self.user = accounts.take_in_caller(policy, many_ids)?;
        }
        Ok(())
    }
}
