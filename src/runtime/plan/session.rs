//! The request for a session.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::seen::Seen;
use crate::runtime::RuntimeError;
use crate::runtime::policy::Policy;

/// A command to run inside an environment.
#[derive(Debug, Clone)]
pub struct Session {
    /// The directory on the host where the environment, or any other root file system, is mounted.
    pub root: PathBuf,
    /// Whether the root must be a FUSE mount. Once the mount has ended, the directory below it shows, which
    /// must be left alone.
    pub served: bool,
    /// Where the session's changes go instead of into the root, which must be served; an OCI runtime refuses
    /// this.
    pub overlay: Option<Overlay>,
    /// The command and its arguments. A name without a slash is searched for in the PATH of the inside. If
    /// empty, the user's login shell is run, or `/bin/sh` if that is missing.
    pub argv: Vec<OsString>,
    /// The user that runs the command: `name`, `uid`, `name:group` or `uid:gid`, looked up in the
    /// environment's own files, or [`SELF`](super::account::SELF). `None`: root.
    pub user: Option<String>,
    /// What the files below `root` say, if it is known already: a process that cannot see them must get it
    /// from another. `None`: they are read.
    pub seen: Option<Seen>,
    /// The directory inside in which the command starts. `None`: `/`, or for a login shell the user's home if
    /// it exists.
    pub workdir: Option<PathBuf>,
    /// Variables for the command besides PATH, HOME, USER, LOGNAME, SHELL, XDG_RUNTIME_DIR, and the caller's
    /// TERM and LANG; they override those.
    pub env: Vec<(OsString, OsString)>,
    /// The host name inside, 1 to 64 bytes.
    pub hostname: String,
    /// Hide the control directory `/.karapace`, if it exists, behind an empty read-only one. This keeps
    /// programs from finding it by accident; root inside can unmount the cover.
    pub mask_control: bool,
    /// What of the host is let in, and what is kept out.
    pub policy: Policy,
    /// Redirects standard output and error to this file; the command then has no input and no terminal.
    /// `None`: the caller's own streams.
    pub output: Option<Arc<File>>,
    /// How many of the caller's descriptors, from 3 on, the command inherits besides the standard streams.
    pub preserved: u32,
}

/// Directories of one file system, that of the store, in which the kernel's overlayfs keeps the changes of
/// one session or of several. A power failure may leave anything in them.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// The changes, in overlayfs's own form.
    pub upper: PathBuf,
    /// For the kernel; empty at first.
    pub work: PathBuf,
}

impl Session {
    pub(in crate::runtime) fn seen(&self) -> Result<Seen, RuntimeError> {
        match &self.seen {
            Some(seen) => Ok(seen.clone()),
            None => Seen::look(&self.root, self.user.as_deref()),
        }
    }
}
