//! Reading files of an environment from outside of it, as a process inside would see them.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};

use serde::{Deserialize, Serialize};

use super::account::{Accounts, SELF};
use super::{RuntimeError, User};

/// Most bytes read of any file of an environment: a list of users that is longer is not a list of users.
const FILE_MAX: u64 = 16 << 20;

/// How often a look-up is tried again when it raced with a rename (the kernel says EAGAIN then).
const RACES: u32 = 16;

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
}

impl Seen {
    /// Looks below `root`, of which this process must be able to see the inside. `user` as in
    /// [`Session::user`](super::Session::user).
    ///
    /// # Errors
    /// [`RuntimeError::Root`], [`RuntimeError::Read`], [`RuntimeError::UnknownUser`].
    pub fn look(root: &Path, user: Option<&str>) -> Result<Seen, RuntimeError> {
        let inside = Inside::open(root)?;
        let (user, accounts) = match user {
            Some(SELF) => (None, Some(Box::new(Accounts::look(&inside)?))),
            named => (named, None),
        };
        let user = User::find(&inside, user)?;
        let has_home = inside.is_directory(&user.home);
        Ok(Seen { user, has_home, hosts: inside.read(Path::new("/etc/hosts"))?, accounts })
    }
}

/// The root directory of an environment. Paths are resolved below it: a symlink, absolute or full of `..`,
/// never leads outside.
pub(super) struct Inside {
    root: OwnedFd,
}

impl Inside {
    pub fn open(root: &Path) -> Result<Inside, RuntimeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |errno| root_error(root, errno);
        let fd = open(root, flags, Mode::empty()).map_err(failed)?;
        // O_PATH asks nobody, not even the process that serves the mount.
        fstat(&fd).map_err(failed)?;
        Ok(Inside { root: fd })
    }

    /// The bytes of a regular file; `None` when there is none by that name.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, RuntimeError> {
        let failed = |source: io::Error| RuntimeError::Read { path: path.to_owned(), source };
        let Some(file) = self.open_file(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(failed)? else {
            return Ok(None);
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(failed(io::Error::other("far too long for what it should be")));
        }
        Ok(Some(bytes))
    }

    /// Whether the path leads to a regular file with an execute bit.
    pub fn is_program(&self, path: &Path) -> bool {
        let Ok(Some(file)) = self.open_file(path, OFlag::O_PATH) else { return false };
        file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    }

    /// Whether the path leads to a directory.
    pub fn is_directory(&self, path: &Path) -> bool {
        self.open_file(path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok_and(|found| found.is_some())
    }

    fn open_file(&self, path: &Path, flags: OFlag) -> io::Result<Option<File>> {
        match open_below(&self.root, path, flags) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Opens what a process with this root would find at `path`. Allocates nothing, if `path` is a C string.
pub(super) fn open_below<P: NixPath + ?Sized>(
    root: &OwnedFd,
    path: &P,
    flags: OFlag,
) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut left = RACES;
    loop {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            other => return other,
        }
    }
}

/// Explains a root that cannot be opened, in the two ways that occur with mounts.
pub(super) fn root_error(path: &Path, errno: Errno) -> RuntimeError {
    let hint = match errno {
        Errno::ENOTCONN => "; the process that served it is gone: unmount it and mount it again",
        Errno::EACCES => "; a mount made by an ordinary user is open to that user only, not even to root",
        _ => "",
    };
    RuntimeError::Root { path: PathBuf::from(path), source: errno.into(), hint }
}
