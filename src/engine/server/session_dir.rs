//! Where the mount of an environment's sessions is made.

use std::io;
use std::path::{Path, PathBuf};

use karapace_store::id::InstanceId;

use crate::engine::At as _;
use crate::engine::{Engine, Result};
use crate::private_dir;

impl Engine {
    /// Checks that a directory of the store does not lead elsewhere; makes it if it is missing.
    fn check_place(&self, dir: &Path) -> io::Result<()> {
        match self.store().files().hold(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.store().files().make_dirs(dir),
            // A stale mount that a killed process left.
            Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => Ok(()),
            other => other.map(drop),
        }
    }

    /// A directory for session mounts that no other user can reach: in the user's runtime directory, or
    /// beside the upper. Set-user-ID programs take effect on root's mounts, so the directory above must be
    /// closed to others.
    pub(in crate::engine) fn session_dir(&self, instance: &InstanceId) -> Result<PathBuf> {
        let (parent, name) = match private_dir::for_sessions() {
            Some(dir) => (dir, instance.to_hex()),
            None => {
                let parent = self.env_dir(instance);
                let dir = parent.join("mnt");
                self.check_place(&dir).at("mount on", &dir)?;
                (parent, "mnt".to_owned())
            }
        };
        private_dir::make(&parent).at("mount below", &parent)?;
        Ok(parent.join(name))
    }
}
