//! Errors of the store: each names what was being done and to what.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Result of an operation on the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused or failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb ("read", "rename").
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something that was asked for, or that is referred to, is not there.
    #[error(
        "{kind} {id} is not in the store; if something refers to it, `karapace verify-store` lists what is affected"
    )]
    Missing {
        /// What kind of thing ("object", "layer").
        kind: &'static str,
        /// Its name.
        id: String,
    },
    /// Bytes are not what their name or their format says.
    #[error("{kind} {id} is corrupt: {reason}; `karapace verify-store` lists what is affected")]
    Corrupt {
        /// What kind of thing ("object", "tree").
        kind: &'static str,
        /// Its name or path.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store has a format that this program does not read.
    #[error(
        "{} says store format {found:?}, this program reads format {supported}: use the karapace that wrote it, or another store (--store)",
        path.display()
    )]
    Version {
        /// The format found.
        found: String,
        /// The format that this program reads and writes.
        supported: u32,
        /// The version file.
        path: PathBuf,
    },
    /// Another process holds a lock.
    #[error("{} is locked by {holder}: wait for it to end, or stop it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The caller's input cannot be accepted; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// The operation was asked to stop.
    #[error("stopped on request; what is not done yet is left as it was")]
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

    /// Names the thing that a decoder, which sees bytes only, found corrupt.
    pub(crate) fn named(self, name: impl Display) -> Self {
        match self {
            Self::Corrupt { kind, reason, .. } => Self::corrupt(kind, name, reason),
            other => other,
        }
    }

    /// Whether this is [`StoreError::Missing`].
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }
}

/// Turns a system error into a [`StoreError::Io`] that says what failed and where.
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
