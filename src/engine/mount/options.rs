//! Options of a mount, and which user may use them.

use std::path::PathBuf;

use karapace_fs::session::{CtlDir, Flag};
use karapace_store::metadata::Metadata;
use nix::unistd::geteuid;

use crate::description::lifecycle;
use crate::engine::{Error, Result};
use crate::runtime::ranges::Ranges;

/// Default number of serving threads. More do not speed up a single caller; the second keeps a slow request
/// (a cold read) from blocking the others.
pub const DEFAULT_THREADS: usize = 2;

/// Options of a mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// The mount point.
    pub dir: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// Mount flags that the kernel enforces.
    pub flags: Vec<Flag>,
    /// Mount this snapshot, read-only, instead of the environment's view.
    pub snapshot: Option<String>,
    /// Whether the control directory is visible, hidden or disabled.
    pub ctl_dir: CtlDir,
    /// Give other users access (`allow_other`).
    pub allow_other: bool,
    /// Number of serving threads.
    pub threads: usize,
    /// FUSE passthrough: the kernel reads large files without asking the server. Needs root and a read-only
    /// mount.
    pub passthrough: bool,
    /// Allow id-mapped mounts of this mount. Needs root; such a mount has no control directory.
    pub idmap: bool,
    /// The mount is only for `enter` and `exec`, and ends with the last session.
    pub session: bool,
    /// Serve in a separate user and mount namespace with these ids.
    pub ranges: Option<Ranges>,
    /// The serving process is in such namespaces.
    pub has_ground: bool,
}

impl Options {
    /// The defaults, on `dir`.
    pub fn new(dir: PathBuf) -> Options {
        Options {
            dir,
            read_only: false,
            flags: Vec::new(),
            snapshot: None,
            ctl_dir: CtlDir::default(),
            allow_other: false,
            threads: DEFAULT_THREADS,
            passthrough: false,
            idmap: false,
            session: false,
            ranges: None,
            has_ground: false,
        }
    }
}

/// The default mount point of an environment, `~/karapace/<name>`.
pub fn default_dir(env: &Metadata) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| Error::Invalid("HOME is not set: name a directory to mount on".to_owned()))?;
    Ok(PathBuf::from(home).join("karapace").join(&env.name))
}

pub(super) fn check_mountable(env: &Metadata) -> Result<()> {
    if lifecycle::is_enterable(env.state) {
        return Ok(());
    }
    let state = env.state.to_string().to_lowercase();
    Err(Error::Invalid(format!("{} is {state} and cannot be mounted or entered", env.name)))
}

/// Refuses options that only root may use. The kernel accepts passthrough files from root only, and would not
/// see later writes, so passthrough also needs a read-only mount. On a user's mount there is only one id, so
/// id mapping needs root.
pub(super) fn check_root_options(options: &Options) -> Result<()> {
    let read_only = options.read_only || options.snapshot.is_some();
    if options.passthrough && !(read_only && geteuid().is_root()) {
        let reason = "--passthrough is for root, with --read-only or --snapshot: leave it out, and requests are answered as usual";
        return Err(Error::Invalid(reason.to_owned()));
    }
    if options.idmap && !geteuid().is_root() {
        let reason =
            "--idmap is for root: the kernel lets nobody else make id-mapped mounts of FUSE file systems";
        return Err(Error::Invalid(reason.to_owned()));
    }
    Ok(())
}
