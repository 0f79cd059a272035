//! The contents of a lock file. `identity` computes ids from it; `lockfile` reads, writes and compares it.

use serde::{Deserialize, Serialize};

/// The lock file version this program reads and writes.
pub const LOCK_VERSION: u32 = 2;

/// One resolved package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name in the distribution.
    pub name: String,
    /// Exact version.
    pub version: String,
}

/// A mount, as written in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedMount {
    /// Its label.
    pub label: String,
    /// Host path as written.
    pub host_path: String,
    /// Absolute path inside.
    pub container_path: String,
}

/// What a manifest resolved to. The fields are in the order of the file (TOML requires arrays of tables
/// last).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockFile {
    /// Always [`LOCK_VERSION`] in a valid file.
    pub lock_version: u32,
    /// The identity of everything below, 64 hex digits.
    pub env_id: String,
    /// Its first 12 digits.
    pub short_id: String,
    /// `base.image`, as written in the manifest.
    pub base_image: String,
    /// Content digest of the base image, 64 hex digits.
    pub base_image_digest: String,
    /// Applications, sorted.
    pub resolved_apps: Vec<String>,
    /// Backend name.
    pub runtime_backend: String,
    /// Whether `/dev/dri` is let in.
    pub hardware_gpu: bool,
    /// Whether `/dev/snd` is let in.
    pub hardware_audio: bool,
    /// Whether sessions have no network but loopback.
    pub network_isolation: bool,
    /// CPU weight of all sessions together, in cgroup v1 shares; above 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Memory limit in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_mb: Option<u64>,
    /// Packages with their exact versions, sorted.
    #[serde(default)]
    pub resolved_packages: Vec<LockedPackage>,
    /// Mounts by label.
    #[serde(default)]
    pub mounts: Vec<LockedMount>,
}
