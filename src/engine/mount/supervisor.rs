//! The supervisor (the process of `mount --all`), as other processes see it.

use std::io::{self, Read};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::engine::At as _;
use crate::engine::server::info::MountInfo;
use crate::engine::{Engine, Error, Result};

/// The content of `mount-all` in the store's directory: the supervisor and where it mounts. Valid only while
/// that process holds the file's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervisor {
    /// Its process id.
    pub pid: u32,
    /// The directory below which every environment is mounted.
    pub dir: PathBuf,
}

pub(super) fn record_path(engine: &Engine) -> PathBuf {
    engine.store().supervisor_file()
}

impl Engine {
    /// The supervisor, if one runs.
    pub fn supervisor(&self) -> Result<Option<Supervisor>> {
        let path = record_path(self);
        let mut file = match self.store().files().open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let mut text = String::new();
        file.read_to_string(&mut text).at("read", &path)?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(None),
            Err((_, Errno::EWOULDBLOCK)) => Ok(serde_json::from_str(&text).ok()),
            Err((_, errno)) => Err(Error::io("lock", &path, errno.into())),
        }
    }

    /// Whether the supervisor made this mount, and would make it again.
    pub(super) fn is_supervised(&self, mount: &MountInfo) -> Result<bool> {
        Ok(self.supervisor()?.is_some_and(|supervisor| mount.dir.parent() == Some(&supervisor.dir)))
    }
}
