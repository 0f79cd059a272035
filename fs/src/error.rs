//! Errors of operations on a view.
//!
//! The variants are what the caller of a file system can be told; [`errno`](crate::errno) maps each to the
//! number that the kernel expects.

use std::io;
use std::path::{Path, PathBuf};

use karapace_store::error::{StoreError, hint};
use karapace_store::id::ObjectId;

/// Why an operation on a view, a mount or a control file failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such name or inode (`ENOENT`).
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken (`EEXIST`).
    #[error("the name exists")]
    Exists,
    /// A directory was needed (`ENOTDIR`).
    #[error("not a directory")]
    NotDirectory,
    /// A non-directory was needed (`EISDIR`).
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries (`ENOTEMPTY`).
    #[error("the directory is not empty")]
    NotEmpty,
    /// Invalid argument or combination of arguments (`EINVAL`).
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name longer than 255 bytes, or a link target longer than 4095 (`ENAMETOOLONG`).
    #[error("the name is too long")]
    NameTooLong,
    /// The view is read-only (`EROFS`).
    #[error("the file system is read-only")]
    ReadOnly,
    /// No such extended attribute (`ENODATA`).
    #[error("no such extended attribute")]
    NoData,
    /// The result does not fit into the caller's buffer (`ERANGE`).
    #[error("the result does not fit")]
    Range,
    /// The argument is larger than allowed (`E2BIG`).
    #[error("the argument is too large")]
    TooBig,
    /// An offset at or beyond the end, in a search for data or holes (`ENXIO`).
    #[error("no data or hole at or after the offset")]
    NoSuchOffset,
    /// The operation is not permitted on this inode (`EPERM`).
    #[error("operation not permitted")]
    NotPermitted,
    /// The caller lacks permission (`EACCES`).
    #[error("permission denied")]
    Access,
    /// In use (`EBUSY`).
    #[error("in use")]
    Busy,
    /// The two names are in different views (`EXDEV`).
    #[error("across two file systems")]
    CrossDevice,
    /// The inode has the maximum number of names (`EMLINK`).
    #[error("too many links")]
    TooManyLinks,
    /// Not supported for this type of inode or mode of the call (`EOPNOTSUPP`).
    #[error("operation not supported")]
    NotSupported,
    /// The size exceeds the maximum file size (`EFBIG`).
    #[error("the file would be too large")]
    FileTooBig,
    /// The inode is gone, but the kernel does not know that yet (`ESTALE`).
    #[error("the inode is gone")]
    Stale,
    /// The file system under the store is full (`ENOSPC`).
    #[error("no space left on the store's disk; free some, or run `karapace gc`")]
    NoSpace,
    /// The operation cannot be completed now (`EAGAIN`).
    #[error("cannot be done now; try again")]
    TryAgain,
    /// The upper on disk is damaged; the text says where and how (`EIO`).
    #[error("{0}")]
    Corrupt(String),
    /// Content in the store is damaged or missing (`EIO`).
    #[error(transparent)]
    Damaged(Box<Damage>),
    /// Error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A call on a host file (in the upper, a mount point) failed: the action and the path.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Host {
        /// The verb, as in "cannot VERB PATH".
        action: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A system call failed; there is no path to report.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Content that cannot be read because an object is damaged or gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}object {object} is damaged: {reason}; `karapace verify-store` lists what is affected",
    place(path, environment)
)]
pub struct Damage {
    /// The object; or the content's block list, if that does not match the data.
    pub object: ObjectId,
    /// What is wrong with it.
    pub reason: String,
    /// The file's path from the environment's root, once known.
    pub path: Option<String>,
    /// The environment's name, once known.
    pub environment: Option<String>,
}

fn place(path: &Option<String>, environment: &Option<String>) -> String {
    match (path, environment) {
        (Some(path), Some(environment)) => format!("{path} in {environment}: "),
        (Some(path), None) => format!("{path}: "),
        _ => String::new(),
    }
}

impl Error {
    /// The error for a failed call on a host path.
    pub fn host(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Host { action, path: path.to_owned(), source }
    }
}

/// Adds to an error what failed, and on which host path.
pub(crate) trait At<T> {
    /// Adds the action (a verb) and the path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::host(action, path, error.into()))
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Error {
        Error::Io(errno.into())
    }
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
