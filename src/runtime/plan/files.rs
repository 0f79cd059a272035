//! Reads files of an environment from outside, as a process inside would see them.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use crate::runtime::RuntimeError;
use crate::runtime::inside::lookup::open_below;

/// Most bytes to read of a file of an environment: a longer list of users is not a list of users.
const FILE_MAX: u64 = 16 << 20;

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
        // Opening with O_PATH does not ask the file system, nor the process that serves it; fstat does.
        fstat(&fd).map_err(failed)?;
        Ok(Inside { root: fd, notes: RefCell::default() })
    }

    /// Returns and clears the notes: what could not be read, and why.
    pub fn take_notes(&self) -> Vec<String> {
        self.notes.take()
    }

    /// The bytes of a regular file; `None` if it does not exist or cannot be read. The latter is noted and is
    /// no error: no file of an image may keep its user out.
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.try_read(path).unwrap_or_else(|error| {
            let note = format!(
                "cannot read {} inside the environment ({error}); continuing without it",
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
            return Err(io::Error::other("it is not a regular file"));
        }
        // The file may have been replaced since the check; O_NONBLOCK keeps a FIFO from blocking.
        let Some(file) = self.open_file(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(io::Error::other("it is too large for such a file"));
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

/// The error for a root that cannot be opened, with a hint for the two cases that occur with mounts.
pub(super) fn root_error(path: &Path, errno: Errno) -> RuntimeError {
    let hint = match errno {
        Errno::ENOTCONN => "; its server is gone: unmount it and mount it again",
        Errno::EACCES => "; an ordinary user's mount can be accessed only by that user, not even by root",
        _ => "",
    };
    RuntimeError::Root { path: PathBuf::from(path), source: errno.into(), hint }
}
