//! Reading files of an environment from outside of it, as a process inside would see them.

use std::cell::RefCell;
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
use crate::runtime::{RuntimeError, User};

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
    /// [`RuntimeError::Root`], [`RuntimeError::UnknownUser`]. Files that cannot be read are none: [`Seen::notes`] tells.
    pub fn look(root: &Path, user: Option<&str>) -> Result<Seen, RuntimeError> {
        let inside = Inside::open(root)?;
        let (user, accounts) = match user {
            Some(SELF) => (None, Some(Box::new(Accounts::look(&inside)))),
            named => (named, None),
        };
        let hosts = inside.read(Path::new("/etc/hosts"));
        let user = User::find(&inside, user);
        let notes = inside.notes.take();
        let user = user.inspect_err(|_| notes.iter().for_each(|note| tracing::warn!("{note}")))?;
        let has_home = inside.is_directory(&user.home);
        let directories = OWN_FILES.map(PathBuf::from).into_iter().filter(|path| inside.is_directory(path));
        Ok(Seen { user, has_home, hosts, accounts, directories: directories.collect(), notes })
    }
}

/// The root directory of an environment. Paths are resolved below it: a symlink, absolute or full of `..`,
/// never leads outside.
pub(super) struct Inside {
    root: OwnedFd,
    /// What could not be read, and why.
    notes: RefCell<Vec<String>>,
}

impl Inside {
    pub fn open(root: &Path) -> Result<Inside, RuntimeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |errno| root_error(root, errno);
        let fd = open(root, flags, Mode::empty()).map_err(failed)?;
        // O_PATH asks nobody, not even the process that serves the mount.
        fstat(&fd).map_err(failed)?;
        Ok(Inside { root: fd, notes: RefCell::default() })
    }

    /// The bytes of a regular file; `None` when there is none by that name, and where it cannot be read, which is noted: no image
    /// shall keep its user out by what it has there.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.try_read(path).unwrap_or_else(|error| {
            let note = format!(
                "cannot read {} inside the environment ({error}); going on without it",
                path.display()
            );
            let mut notes = self.notes.borrow_mut();
            if !notes.contains(&note) {
                notes.push(note);
            }
            None
        })
    }

    fn try_read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open_file(path, OFlag::O_PATH)? else { return Ok(None) };
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        // What stands there may be another by now, but nobody is waited for.
        let Some(file) = self.open_file(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(io::Error::other("it is far too long for what it should be"));
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
pub(in crate::runtime) fn open_below<P: NixPath + ?Sized>(
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
