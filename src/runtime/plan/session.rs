//! What a session is asked for.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::seen::Seen;
use crate::runtime::RuntimeError;
use crate::runtime::policy::Policy;

/// A command to be run inside an environment.
#[derive(Debug, Clone)]
pub struct Session {
    /// The directory of the host where the environment is mounted. Any other root file system does as well.
    pub root: PathBuf,
    /// The root is a FUSE mount: anything else that is found there lies below one that has ended, and is left
    /// alone.
    pub served: bool,
    /// The command and its arguments. A name without a slash is looked for in the PATH of the inside. Empty:
    /// the login shell of the user, `/bin/sh` where that is missing.
    pub argv: Vec<OsString>,
    /// Who runs the command: `name`, `uid`, `name:group` or `uid:gid`, from the environment's own lists.
    /// `None`: root.
    pub user: Option<String>,
    /// What stands below `root`, where it is known already: whoever cannot see it must have it from another.
    /// `None`: it is looked up.
    pub seen: Option<Seen>,
    /// Where the command starts, a path inside. `None`: `/`, and for a login shell the user's home if it is
    /// there.
    pub workdir: Option<PathBuf>,
    /// Variables that the command gets beside PATH, HOME, USER, LOGNAME, SHELL, XDG_RUNTIME_DIR, and the
    /// caller's TERM and LANG; they win over those.
    pub env: Vec<(OsString, OsString)>,
    /// The host name inside, of 1 to 64 bytes.
    pub hostname: String,
    /// Hide the control directory `/.karapace`, if there is one, behind an empty read-only one. This keeps
    /// programs from stumbling into it; root inside can take it away.
    pub mask_control: bool,
    /// What of the host is let in, and what is kept away.
    pub policy: Policy,
    /// A file that takes standard output and error; the command reads nothing then and shares no terminal.
    /// `None`: the caller's own streams.
    pub output: Option<Arc<File>>,
    /// How many descriptors of the caller's, from 3 on, the command has beside its standard streams.
    pub preserved: u32,
}

impl Session {
    pub(in crate::runtime) fn seen(&self) -> Result<Seen, RuntimeError> {
        match &self.seen {
            Some(seen) => Ok(seen.clone()),
            None => Seen::look(&self.root, self.user.as_deref()),
        }
    }
}
