//! The errors of commands. Users read the messages, so each one names what was done to what, and the next
//! step.

use std::io;
use std::path::{Path, PathBuf};

use karapace_store::error::{StoreError, hint};

use crate::description::lifecycle::LifecycleError;
use crate::description::lockfile::LockError;
use crate::description::manifest::ManifestError;
use crate::image::ImageError;
use crate::runtime::RuntimeError;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error in the manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// An error in the lock file.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// `--require-pinned-image` was given, and the image is not pinned.
    #[error(
        "{}: base.image {image:?} is not pinned: run `karapace pin {}`", path.display(), path.display()
    )]
    Unpinned {
        /// The manifest.
        path: PathBuf,
        /// The image as written.
        image: String,
    },
    /// The image is not the one that the manifest pins.
    #[error(
        "{}: the content of {image} is {found}, but the manifest pins {pinned}: `karapace pin {}` pins the current content", path.display(), path.display()
    )]
    OtherContent {
        /// The manifest.
        path: PathBuf,
        /// The image, without its digest.
        image: String,
        /// The digest in the manifest.
        pinned: String,
        /// The digest of the image.
        found: String,
    },
    /// `--offline` was given, and packages would have to be installed.
    #[error(
        "{}: no environment has these packages in these versions yet: build once without --offline", path.display()
    )]
    OfflinePackages {
        /// The manifest.
        path: PathBuf,
    },
    /// The image has no known package manager.
    #[error(
        "{image} has no supported package manager (apt, dnf, zypper, pacman, apk, xbps): remove packages and apps from the \
         manifest, or use another image"
    )]
    NoPackageManager {
        /// The image.
        image: String,
    },
    /// The package manager failed.
    #[error("{command} failed with status {status} inside; its last lines:{tail}")]
    Install {
        /// The command, as plain text.
        command: String,
        /// Its exit status.
        status: i32,
        /// The last lines of its log, as plain text, each after a newline.
        tail: String,
    },
    /// An error about the base image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of the view or its mount.
    #[error(transparent)]
    Fs(#[from] karapace_fs::Error),
    /// The environment's state does not allow the change.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// The runtime could not start the command.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// No such environment.
    #[error("there is no environment {reference:?}: see `karapace list`")]
    NoEnvironment {
        /// The reference as given.
        reference: String,
    },
    /// Another environment has the name.
    #[error(
        "an environment named {name} already exists: choose another name, or run `karapace destroy {name}` first"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name requested for a build belongs to another environment.
    #[error(
        "an environment named {name} already exists with other content than {} builds: choose another name, or run `karapace \
         rebuild {} --name {name}`, which replaces it and keeps its snapshots", path.display(), path.display()
    )]
    OtherBuild {
        /// The name.
        name: String,
        /// The manifest.
        path: PathBuf,
    },
    /// The file exists and `--force` was not given.
    #[error("{} already exists: use --force to replace it", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// No such snapshot.
    #[error("{env} has no snapshot {reference:?}: see `karapace snapshots {env}`")]
    NoSnapshot {
        /// The environment.
        env: String,
        /// The reference as given.
        reference: String,
    },
    /// A chosen path does not exist.
    #[error("{path} is {absent}: nothing was changed")]
    NoPath {
        /// The path, from the environment's root.
        path: String,
        /// Where it is missing, as in "PATH is ABSENT".
        absent: String,
    },
    /// The reference is a prefix of several snapshots.
    #[error("{reference:?} matches more than one snapshot of {env}: {}", candidates.join(", "))]
    AmbiguousSnapshot {
        /// The environment.
        env: String,
        /// The reference as given.
        reference: String,
        /// The snapshots that it matches.
        candidates: Vec<String>,
    },
    /// A snapshot with the name exists.
    #[error("{env} already has a snapshot named {name}: choose another name")]
    SnapshotNameTaken {
        /// The environment.
        env: String,
        /// The name.
        name: String,
    },
    /// Named snapshots would be removed.
    #[error(
        "{env} has named snapshots: {}; nothing was removed. `karapace export {env}@NAME` saves one elsewhere; `karapace \
         destroy --snapshots {env}` removes them too",
        names.join(", ")
    )]
    NamedSnapshots {
        /// The environment.
        env: String,
        /// Their names, oldest first.
        names: Vec<String>,
    },
    /// The environment may not change.
    #[error("{env} is {why}: nothing was changed")]
    ReadOnly {
        /// The environment.
        env: String,
        /// `Frozen`, `mounted read-only`, …
        why: String,
    },
    /// Already mounted.
    #[error("{env} is mounted at {} (pid {pid}): use it there, or run `karapace umount {env}` first", dir.display())]
    Mounted {
        /// The environment.
        env: String,
        /// The mount point.
        dir: PathBuf,
        /// The serving process.
        pid: u32,
    },
    /// Mounted where this process cannot see it.
    #[error(
        "{env} has a server, but {} is not a mount here: it is mounted in another mount namespace, where it can be used, or was \
         detached while in use. `karapace umount {env}` unmounts it or lists who uses it, `karapace umount --force {env}` \
         unmounts it in any case",
        dir.display()
    )]
    MountedElsewhere {
        /// The environment.
        env: String,
        /// The mount point, in that namespace.
        dir: PathBuf,
    },
    /// Commands are running inside.
    #[error("{env} is running a command (enter or exec): end it, or run `karapace stop {env}`, first")]
    Running {
        /// The environment.
        env: String,
    },
    /// The running session was started with other options.
    #[error(
        "{env} is running a command that was started with {option} {theirs}, not {ours}: use the same, or run `karapace stop \
         {env}` first"
    )]
    OtherShape {
        /// The environment.
        env: String,
        /// The option.
        option: String,
        /// Its value in the running session.
        theirs: String,
        /// Its requested value.
        ours: String,
    },
    /// newuidmap or newgidmap did not map the user's ids.
    #[error("cannot give a session the ids of /etc/subuid and /etc/subgid: {source}; see `karapace doctor`")]
    NoIds {
        /// The helper's error.
        source: io::Error,
    },
    /// Not mounted.
    #[error("{what} is not mounted")]
    NotMounted {
        /// The target as given.
        what: String,
    },
    /// The mount point is not empty.
    #[error("{} is not empty: mount over an empty or a new directory", dir.display())]
    DirNotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// The mount point is in use.
    #[error("{} is in use{}, then try again", dir.display(), match &**users {
        "" => ": close open files and leave the directory".to_owned(),
        users => format!(" by {users}: end or unmount them, or let them close their files and leave the directory"),
    })]
    DirBusy {
        /// The directory.
        dir: PathBuf,
        /// What uses it, for a message; empty if that is not known.
        users: String,
    },
    /// Unmounted here, but still in use.
    #[error(
        "{env} is no longer mounted here, but processes still use it: {holders}. Its server ends when they do, or at once with \
         `karapace umount --force {env}`"
    )]
    Held {
        /// The environment.
        env: String,
        /// The processes that hold it.
        holders: String,
    },
    /// The serving process refused, or an operation failed with this errno and message.
    #[error("{reason}")]
    Served {
        /// Its errno.
        errno: i32,
        /// The message.
        reason: String,
    },
    /// The serving process does not answer as it should.
    #[error("the server of {env} {what}; see {}", log.display())]
    Serving {
        /// The environment.
        env: String,
        /// What happened.
        what: String,
        /// Its log.
        log: PathBuf,
    },
    /// A system call on a path failed.
    #[error("cannot {action} {}: {source}{}", path.display(), hint(source))]
    Io {
        /// The verb, as in "cannot VERB PATH".
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Any other invalid request. The text is the whole message.
    #[error("{0}")]
    Invalid(String),
}

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what failed and on which path to an error.
pub trait At<T> {
    /// Adds the action (a verb) and the path.
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(action, path, error.into()))
    }
}

impl Error {
    /// An error of a system call on a path; `action` is a verb.
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io { action, path: path.to_owned(), source }
    }

    /// Whether the message has several lines, in which quoted text is already escaped. In any other message a
    /// newline belongs to quoted text.
    pub fn is_of_lines(&self) -> bool {
        matches!(self, Error::Install { .. })
    }

    /// The errno for this error, for control files and the control socket.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Store(e) => karapace_fs::errno::store_errno(e),
            Error::Fs(e) => e.errno(),
            Error::Served { errno, .. } => *errno,
            Error::NoSnapshot { .. } | Error::NoEnvironment { .. } | Error::NoPath { .. } => libc::ENOENT,
            Error::SnapshotNameTaken { .. }
            | Error::NameTaken { .. }
            | Error::OtherBuild { .. }
            | Error::FileExists { .. } => libc::EEXIST,
            Error::ReadOnly { .. } => libc::EROFS,
            Error::Mounted { .. }
            | Error::MountedElsewhere { .. }
            | Error::Running { .. }
            | Error::Held { .. }
            | Error::DirBusy { .. } => libc::EBUSY,
            Error::DirNotEmpty { .. } => libc::ENOTEMPTY,
            Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Error::Serving { .. } => libc::EIO,
            _ => libc::EINVAL,
        }
    }
}
