//! What a lock file holds. What is computed from it stands in `identity`; how it is read, written and
//! compared in `lockfile`.

use serde::{Deserialize, Serialize};

/// The lock file version this program reads and writes.
pub const LOCK_VERSION: u32 = 2;

/// One resolved package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name in the distribution.
    pub name: String,
    /// Exact version.
    pub version: String,
}

/// One mount as the manifest gave it.
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

/// What a manifest resolved to. The field order is the order in the file (TOML wants arrays of tables last).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockFile {
    /// Always [`LOCK_VERSION`] in a valid file.
    pub lock_version: u32,
    /// Identity of all below, 64 hex digits.
    pub env_id: String,
    /// Its first 12 digits.
    pub short_id: String,
    /// `base.image` as the manifest had it.
    pub base_image: String,
    /// Content digest of the base image, 64 hex digits.
    pub base_image_digest: String,
    /// Applications, sorted.
    pub resolved_apps: Vec<String>,
    /// Backend name.
    pub runtime_backend: String,
    /// `/dev/dri` is let in.
    pub hardware_gpu: bool,
    /// `/dev/snd` is let in.
    pub hardware_audio: bool,
    /// No network but loopback.
    pub network_isolation: bool,
    /// Relative weight of processor time.
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
