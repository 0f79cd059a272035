//! Errors of the store: each says what was being done, and to what.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use nix::libc;

/// Result of an operation on the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused or failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// What was attempted, as a verb ("read", "rename").
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that was requested or is referred to is missing.
    #[error(
        "{kind} {id} is not in the store; if something refers to it, `karapace verify-store` lists what is affected"
    )]
    Missing {
        /// The kind of thing ("object", "layer").
        kind: &'static str,
        /// Its name.
        id: String,
    },
    /// Bytes do not match their name or format.
    #[error("{kind} {id} is corrupt: {reason}; `karapace verify-store` lists what is affected")]
    Corrupt {
        /// The kind of thing ("object", "tree").
        kind: &'static str,
        /// Its name or path.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store has a format that this program does not support.
    #[error("{} {}", path.display(), version_reason(found, *supported))]
    Version {
        /// The content of the version file.
        found: String,
        /// The format that this program reads and writes.
        supported: u32,
        /// The version file.
        path: PathBuf,
    },
    /// There is no store, and none was to be created.
    #[error(
        "{}: `karapace import` or `build` creates one there. If there should be one, check that --store or KARAPACE_STORE names \
         the right directory and that its disk is mounted. Nothing was changed",
        no_store(path, *is_there)
    )]
    NoStore {
        /// Where the store would be.
        path: PathBuf,
        /// Whether the directory exists, but has no store in it.
        is_there: bool,
    },
    /// A part of the store that must have held something is missing, so this is not a new store.
    #[error("{} is missing, and {reason}: nothing was changed", path.display())]
    NotWhole {
        /// The missing part.
        path: PathBuf,
        /// The evidence, and what to do.
        reason: String,
    },
    /// The store belongs to another user.
    #[error(
        "{} belongs to {owner}, who controls which files are read and written through it: run karapace as {owner}, or choose \
         another store (--store); commands that only read accept it with --foreign-store",
        path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Name or number of its owner.
        owner: String,
    },
    /// Users other than the owner can write to the store.
    #[error(
        "{} is writable by other users (mode {mode:04o}), who can then control which files are read and written through this \
         store: run `chmod go-w {}`, then `karapace verify-store` to find what does not belong there",
        path.display(), path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another machine uses the store.
    #[error(
        "the store is in use on host {host}, and two hosts must not use one store at a time: stop what uses it there. If \
         nothing does any more (it was killed, or the host is down), remove that host's mark: rm {}",
        path.display()
    )]
    OtherHost {
        /// The file with the other machine's claim.
        path: PathBuf,
        /// Its host name.
        host: String,
    },
    /// Another process holds a lock.
    #[error("{} is locked by {holder}: wait for it to end, or stop it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The caller's input is not accepted; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// The operation was cancelled.
    #[error("stopped on request; nothing more was changed")]
    Cancelled,
}

impl StoreError {
    /// A [`StoreError::Missing`].
    pub fn missing(kind: &'static str, id: impl Display) -> Self {
        Self::Missing { kind, id: id.to_string() }
    }

    /// A [`StoreError::Corrupt`].
    pub fn corrupt(kind: &'static str, id: impl Display, reason: impl Into<String>) -> Self {
        Self::Corrupt { kind, id: id.to_string(), reason: reason.into() }
    }

    /// An [`StoreError::Invalid`].
    pub fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    /// Sets the name of a thing that a decoder, which only sees bytes, found corrupt.
    pub(crate) fn named(self, name: impl Display) -> Self {
        match self {
            Self::Corrupt { kind, reason, .. } => Self::corrupt(kind, name, reason),
            other => other,
        }
    }

    /// Whether there was no space left, on the disk or in a quota.
    pub fn is_full(&self) -> bool {
        let full = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
        matches!(self, Self::Io { source, .. } if full(source))
    }

    /// Whether this is [`StoreError::Missing`].
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Advice for a system error, to be appended to its text; empty for most.
pub fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "; free some space there (`karapace gc` removes what nothing refers to) and try again"
        }
        Some(libc::EROFS) => "; on a read-only file system only commands that read work",
        _ => "",
    }
}

fn no_store(path: &Path, is_there: bool) -> String {
    match is_there {
        true => format!("{} is not a store (it has no file store/version)", path.display()),
        false => format!("there is no store at {}", path.display()),
    }
}

/// What is wrong with the version, and what to do.
fn version_reason(found: &str, supported: u32) -> String {
    let other = "or choose another store (--store)";
    match found.parse::<u32>() {
        Ok(newer) if newer > supported => format!(
            "says store format {newer}, but this program reads format {supported}: use the newer karapace that wrote it, {other}"
        ),
        Ok(older) => format!(
            "says store format {older}, but this program reads format {supported}: use the older karapace that wrote it, {other}"
        ),
        Err(_) => format!(
            "is damaged: it contains {found:?} instead of a number. If this is a store of format {supported}, write {supported} \
             into it"
        ),
    }
}

/// Converts a system error to a [`StoreError::Io`] that says what failed and where.
pub trait IoContext<T> {
    /// Adds the action (a verb) and the path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}
