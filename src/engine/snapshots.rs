//! Listing snapshots.

use karapace_store::metadata::Metadata;
use karapace_store::rfc3339;
use serde::Serialize;

/// A snapshot as listed.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotLine {
    /// Its hash.
    pub hash: String,
    /// Its name.
    pub name: Option<String>,
    /// The layer that it was made on.
    pub parent: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Its message.
    pub message: Option<String>,
    /// Whether the environment stands on it.
    pub head: bool,
}

/// The snapshots of an environment, newest last. The head is marked once, on its newest record.
pub fn snapshots(env: &Metadata) -> Vec<SnapshotLine> {
    let head = env.snapshots.iter().rposition(|s| s.record == env.head_record);
    let line = |(index, s): (usize, &karapace_store::metadata::SnapshotEntry)| SnapshotLine {
        hash: s.hash.to_hex(),
        name: s.name.clone(),
        parent: s.parent.to_hex(),
        created_at: rfc3339::format(s.created_at),
        message: s.message.clone(),
        head: Some(index) == head,
    };
    env.snapshots.iter().enumerate().map(line).collect()
}
