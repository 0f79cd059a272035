//! How an environment is mounted, and who may ask for it.

use std::path::PathBuf;

use karapace_fs::session::{CtlDir, Flag};
use karapace_store::metadata::Metadata;
use nix::unistd::geteuid;

use crate::description::lifecycle;
use crate::engine::{Error, Result};
use crate::runtime::ranges::Ranges;

/// Threads that serve a mount unless told otherwise: one caller is not served faster by more, and two keep a
/// slow request (a cold read) from holding up the others.
pub const DEFAULT_THREADS: usize = 2;

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub dir: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// What the kernel is to see to.
    pub flags: Vec<Flag>,
    /// Mount this snapshot, read-only, instead of the environment's view.
    pub snapshot: Option<String>,
    /// How the control directory shows.
    pub ctl_dir: CtlDir,
    /// Let other users in.
    pub allow_other: bool,
    /// Serving threads.
    pub threads: usize,
    /// Let the kernel read large files by itself; read-only, and by root.
    pub passthrough: bool,
    /// Let root make id-mapped mounts of it, which has no control directory then; by root.
    pub idmap: bool,
    /// The mount is for `enter` and `exec` only and ends with the last of them.
    pub session: bool,
    /// Serve in a user and mount namespace of its own that has these ids.
    pub ranges: Option<Ranges>,
    /// The process is in such namespaces.
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

/// Where an environment is mounted when nothing else is said: `~/karapace/<name>`.
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

/// Refuses what is for root. The kernel takes objects from root only, and would not see what is written; on a
/// user's mount all ids are one.
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
