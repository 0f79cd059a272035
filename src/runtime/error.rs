//! Why a session could not be run, in words for the person who asked for it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// Why a session could not be run. A command that ran and failed is not an error: its status is the result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The directory of the environment cannot be used.
    #[error("cannot use {path} as the root of a session: {source}{hint}")]
    Root {
        /// The directory asked for.
        path: PathBuf,
        /// The error from the kernel.
        source: io::Error,
        /// What to do about it; empty, or text that continues the error message.
        hint: &'static str,
    },
    /// A value of the request that is invalid for any session.
    #[error("{what} {value:?} {reason}")]
    Invalid {
        /// Which value.
        what: &'static str,
        /// The value, made printable.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something of the host that is not let in, or does not exist.
    #[error("{what}: {reason}")]
    Policy {
        /// What asks for it: a key of the manifest, an option, a variable.
        what: String,
        /// Why it is refused, and what to do.
        reason: String,
    },
    /// The user or group is not known inside.
    #[error("the environment has no {kind} {name:?} in {file}; use a name from there, or a number")]
    UnknownUser {
        /// "user" or "group".
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The file inside that was searched.
        file: &'static str,
    },
    /// The kernel refuses to make the namespaces of a session.
    #[error("cannot make the namespaces of a session: {source}; {hint}")]
    Namespaces {
        /// The error from the kernel.
        source: io::Error,
        /// The likely cause, and how to fix it.
        hint: String,
    },
    /// A step of preparing the inside failed.
    #[error("cannot {action} {path}: {source}{hint}")]
    Setup {
        /// The step, as a verb.
        action: String,
        /// What the step worked on: a path inside, unless the step concerns the host.
        path: PathBuf,
        /// The error from the kernel.
        source: io::Error,
        /// What to do about it; empty, or text that continues the error message.
        hint: &'static str,
    },
    /// The session's changes cannot go to an overlay; without one the session may succeed.
    #[error("cannot use overlayfs: {reason}")]
    NoOverlay {
        /// Why.
        reason: String,
    },
    /// The directory to start in cannot be entered.
    #[error("cannot change to {path} inside the environment: {source}")]
    Workdir {
        /// The directory asked for, as it is inside.
        path: PathBuf,
        /// The error from the kernel.
        source: io::Error,
    },
    /// No such program inside.
    #[error("{program}: not found inside the environment (or its interpreter is not)")]
    NotFound {
        /// The program as it was asked for.
        program: String,
    },
    /// The program exists but cannot be executed.
    #[error("{program}: cannot be run inside the environment: {source}")]
    NotExecutable {
        /// The program as it was asked for.
        program: String,
        /// The error from the kernel.
        source: io::Error,
    },
    /// Karapace's own side of a running session failed.
    #[error("cannot {action}: {source}")]
    Supervise {
        /// The step, as a verb.
        action: &'static str,
        /// The error from the kernel.
        source: io::Error,
    },
}

impl RuntimeError {
    /// The exit status of `enter` and `exec` for this error: 127 if the program does not exist, 126 if it
    /// cannot be executed, 125 for everything else, which is karapace's own failure.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            RuntimeError::NotFound { .. } => 127,
            RuntimeError::NotExecutable { .. } => 126,
            _ => 125,
        }
    }
}

/// Builds an error of karapace's own side of a session.
pub(super) fn failed(action: &'static str) -> impl Fn(Errno) -> RuntimeError {
    move |errno| RuntimeError::Supervise { action, source: errno.into() }
}

/// A policy refusal: what asks for something, and why it is refused.
pub(super) fn refused(what: impl Into<String>, reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Policy { what: what.into(), reason: reason.into() }
}
