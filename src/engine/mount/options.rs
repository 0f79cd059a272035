//! Options of a mount, and which user may use them.

use std::path::PathBuf;

use karapace_fs::session::{MountOptions, SubIds};
use karapace_store::metadata::Metadata;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::description::lifecycle;
use crate::engine::{Error, Result};
use crate::runtime::ranges;

/// Options of a mount, as the serving process receives them: what is asked of the engine, and of the file
/// system. Where to mount is not an option.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Mount this snapshot, read-only, instead of the environment's view.
    pub snapshot: Option<String>,
    /// Serve only `enter` and `exec`, until the last session ends. The options of the file system have no
    /// effect then.
    pub session: bool,
    /// The options of the file system.
    pub mount: MountOptions,
}

impl Options {
    /// Options of a mount that is for the host's programs. For an ordinary user it shows the sub-ids.
    pub fn on_host(mount: MountOptions) -> Options {
        Options { mount: MountOptions { sub_ids: sub_ids(), ..mount }, ..Options::default() }
    }
}

/// The sub-ids of an ordinary user that has some of both kinds.
fn sub_ids() -> Option<SubIds> {
    if geteuid().is_root() {
        return None;
    }
    match ranges::listed() {
        Ok((uids, gids)) => Some(SubIds { uids, gids }),
        Err(reason) => {
            tracing::debug!("a mount shows no sub-ids: {reason}");
            None
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
/// see later writes, so passthrough also needs a read-only mount. A user's mount has no default_permissions,
/// which the kernel needs for id mapping.
pub(super) fn check_root_options(options: &Options) -> Result<()> {
    let read_only = options.mount.read_only || options.snapshot.is_some();
    if options.mount.passthrough && !(read_only && geteuid().is_root()) {
        let reason =
            "--passthrough works only for root, with --read-only or --snapshot: leave it out otherwise";
        return Err(Error::Invalid(reason.to_owned()));
    }
    if options.mount.idmap && !geteuid().is_root() {
        let reason = "--idmap works only for root: the kernel lets nobody else make id-mapped mounts of FUSE file systems";
        return Err(Error::Invalid(reason.to_owned()));
    }
    Ok(())
}
