//! Facts about a mount: where it is and which process serves it.

use std::io;
use std::path::PathBuf;

use karapace_store::id::InstanceId;
use karapace_store::metadata::Metadata;
use serde::{Deserialize, Serialize};

use crate::engine::mountpoint;
use crate::engine::server::client::Client;
use crate::engine::{Engine, Error, Result};

/// The largest mount.json that is read, in bytes.
const MAX_INFO: u64 = 64 << 10;

/// `env/<instance>/mount.json`: where a mount is and which process serves it. Valid only while the control
/// socket answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// The mount point.
    pub dir: PathBuf,
    /// The serving process.
    pub pid: u32,
    /// Whether this is the mount of the sessions, and the host has none.
    #[serde(default)]
    pub session: bool,
    /// Where the sessions have a mount of their own beside it, as they see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions_dir: Option<PathBuf>,
    /// The minor device number of the mount, which finds it in any mount namespace. Not shown to users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
}

impl MountInfo {
    /// Whether sessions, if there are any, use another mount than this.
    pub fn is_apart_from_sessions(&self) -> bool {
        !self.session && self.sessions_dir.is_some()
    }

    /// Detaches what a killed server left on the mount points.
    ///
    /// # Errors
    /// If the system refuses.
    pub(in crate::engine) fn clear_stale(&self) -> Result<()> {
        mountpoint::clear_stale(&self.dir)?;
        self.sessions_dir.iter().try_for_each(|dir| mountpoint::clear_stale(dir))
    }

    /// Whether this process sees a live mount. One made inside a user namespace is in another mount
    /// namespace.
    pub fn is_seen_here(&self) -> bool {
        mountpoint::is_ours(&self.dir)
    }
}

pub(in crate::engine) fn info_path(engine: &Engine, instance: &InstanceId) -> PathBuf {
    engine.env_dir(instance).join("mount.json")
}

/// The log of an environment's background mounts.
pub fn log_path(engine: &Engine, instance: &InstanceId) -> PathBuf {
    engine.env_dir(instance).join("mount.log")
}

impl Engine {
    /// The environment's mount, if a process serves it now.
    pub fn live_mount(&self, instance: &InstanceId) -> Result<Option<MountInfo>> {
        if Client::connect(self.store().files(), &self.env_dir(instance))?.is_none() {
            return Ok(None);
        }
        self.recorded_mount(instance)
    }

    /// The content of mount.json, whether or not the mount still exists.
    pub(in crate::engine) fn recorded_mount(&self, instance: &InstanceId) -> Result<Option<MountInfo>> {
        let path = info_path(self, instance);
        match self.store().files().read(&path, MAX_INFO) {
            // A file that does not parse counts as missing: the next mount rewrites it.
            Ok(bytes) => {
                Ok(serde_json::from_slice(&bytes).ok().filter(|info: &MountInfo| info.dir.is_absolute()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    pub(in crate::engine) fn mounted_error(&self, env: &Metadata) -> Error {
        match self.recorded_mount(&env.instance) {
            Ok(Some(info)) if info.session => Error::Running { env: env.name.clone() },
            Ok(Some(info)) if !info.is_seen_here() => {
                Error::MountedElsewhere { env: env.name.clone(), dir: info.dir }
            }
            Ok(Some(info)) => Error::Mounted { env: env.name.clone(), dir: info.dir, pid: info.pid },
            _ => self.serving_error(env, "is starting or ending"),
        }
    }

    /// The environment's mount for listings. Errors are logged, and the environment is shown as not mounted.
    pub(in crate::engine) fn shown_mount(&self, env: &Metadata) -> Option<MountInfo> {
        match self.live_mount(&env.instance) {
            Ok(mount) => mount.map(|mount| MountInfo { device: None, ..mount }),
            Err(error) => {
                tracing::warn!("{}: {error}", env.name);
                None
            }
        }
    }

    /// An error about the process that serves or served `env`; it names that process's log.
    pub(in crate::engine) fn serving_error(&self, env: &Metadata, what: &str) -> Error {
        let log = log_path(self, &env.instance);
        Error::Serving { env: env.name.clone(), what: what.to_owned(), log }
    }
}
