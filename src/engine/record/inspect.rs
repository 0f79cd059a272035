//! Summary and details of an environment.

use karapace_store::metadata::Metadata;
use karapace_store::rfc3339;
use serde::Serialize;

use crate::engine::instance::open::Status;
use crate::engine::instance::sessions;
use crate::engine::server::info::MountInfo;
use crate::engine::{Engine, Result};

/// An environment as `list` shows it and `inspect` begins.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The hash of what it was built from, 64 hex digits.
    pub env_id: String,
    /// The first 12 digits of it.
    pub short_id: String,
    /// Its instance id, 32 hex digits.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// Its state; Running while a session is inside.
    pub state: String,
    /// Its head.
    pub head: String,
    /// The base layer.
    pub base_layer: String,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// How many sessions are inside.
    pub sessions: usize,
    /// Where it is mounted, if it is.
    pub mount: Option<MountInfo>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When its record was last changed, RFC 3339.
    pub updated_at: String,
}

/// Everything that `inspect` shows.
#[derive(Debug, Clone, Serialize)]
pub struct Details {
    /// What `list` shows.
    #[serde(flatten)]
    pub summary: Summary,
    /// Figures of what is uncommitted.
    #[serde(flatten)]
    pub status: Status,
    /// The base image by the recorded lock, if the lock can be parsed.
    pub base_image: Option<String>,
    /// The normalised manifest, TOML.
    pub manifest: String,
    /// The lock file, TOML.
    pub lock: String,
}

impl Engine {
    pub(super) fn summary(&self, env: &Metadata) -> Summary {
        Summary {
            env_id: env.env_id.clone(),
            short_id: env.short_id().to_owned(),
            instance: env.instance.to_hex(),
            name: env.name.clone(),
            state: sessions::shown_state(self, env).to_string(),
            head: env.head.to_hex(),
            base_layer: env.base_layer.to_hex(),
            snapshots: env.made().len(),
            sessions: sessions::count(self, &env.instance),
            mount: self.shown_mount(env),
            created_at: rfc3339::format(env.created_at),
            updated_at: rfc3339::format(env.updated_at),
        }
    }

    /// The details of `env`.
    pub fn inspect(&self, env: &Metadata) -> Result<Details> {
        let status = self.request_status(env)?;
        // Read again: opening an environment after a crash may have moved the head.
        let env = self.find(&env.instance.to_hex())?;
        let lock =
            crate::description::locked::LockFile::parse(&env.lock, std::path::Path::new("the recorded lock"));
        Ok(Details {
            summary: self.summary(&env),
            status,
            base_image: lock.ok().map(|lock| lock.base_image),
            manifest: env.manifest.clone(),
            lock: env.lock.clone(),
        })
    }
}
