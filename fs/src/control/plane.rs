//! What the engine does for the control directory.

use karapace_store::id::ObjectId;
use karapace_store::inode::Timestamp;

use super::command::Command;
use crate::attr::DiffEntry;
use crate::error::Error;
use crate::view::View;

/// Which environment a mount serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlId {
    /// What it was built from, 64 hex digits.
    pub env_id: String,
    /// The first 12 digits of `env_id`.
    pub short_id: String,
    /// Its name.
    pub name: String,
    /// Its instance id, 32 hex digits.
    pub instance: String,
}

/// A snapshot as the control directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Identity of the layer, 64 hex digits.
    pub hash: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its message, if it has one.
    pub message: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its root object.
    pub root: ObjectId,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CommandError {
    /// What the `write(2)` (or `mkdir`, `rmdir`) fails with.
    pub errno: i32,
    /// What `last` says, on one line.
    pub reason: String,
}

/// What the engine does for the control directory. All calls may come from several threads at once.
pub trait ControlPlane: Send + Sync + 'static {
    /// Which environment this is.
    fn id(&self) -> ControlId;

    /// Runs a command to its end and gives the text after `ok `, as `commit <hash>`. Called on a thread of
    /// its own, never with a lock of the view held.
    ///
    /// # Errors
    /// The errno that the writer gets, and the reason.
    fn execute(&self, command: &Command) -> Result<String, CommandError>;

    /// Whether a process of another process namespace, by its number as the kernel tells it, may use the
    /// directory.
    fn admits(&self, _process: u32) -> bool {
        false
    }

    /// State of the environment, as `Built`.
    fn state(&self) -> String;

    /// What of the view counts as uncommitted.
    ///
    /// # Errors
    /// What reading the trees failed with.
    fn diff(&self, view: &View) -> Result<Vec<DiffEntry>, Error> {
        view.diff()
    }

    /// How many files are uncommitted, and how many bytes of them.
    fn uncommitted(&self, view: &View) -> (u64, u64) {
        let stats = view.stats();
        (stats.dirty_inodes, stats.dirty_bytes)
    }

    /// All snapshots, oldest first.
    fn snapshots(&self) -> Vec<SnapshotInfo>;

    /// Hash of the newest snapshot, which `latest` means in commands too.
    fn latest(&self) -> Option<String>;

    /// From now on keeps what these root objects of snapshots reach, and no others: they are being looked at.
    /// Called with the roots before and one that `snapshots` has just listed, or with some of them.
    ///
    /// # Errors
    /// `NotFound` when a snapshot has gone meanwhile; what keeping them failed with. Then the roots before
    /// are kept.
    fn keep_snapshots(&self, _roots: &[ObjectId]) -> Result<(), Error> {
        Ok(())
    }

    /// Hash of the layer that the view stands on, 64 hex digits.
    fn head(&self) -> String;

    /// Hash of the base layer, 64 hex digits.
    fn base(&self) -> String;
}
