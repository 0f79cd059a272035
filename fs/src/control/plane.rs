//! The engine's interface for the control directory.

use karapace_store::id::ObjectId;
use karapace_store::inode::Timestamp;

use super::command::Command;
use crate::attr::DiffEntry;
use crate::error::Error;
use crate::view::View;

/// Which environment a mount serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlId {
    /// Hash of what it was built from, 64 hex digits.
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
    /// Time of creation.
    pub created_at: Timestamp,
    /// Its root object.
    pub root: ObjectId,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CommandError {
    /// The errno of the `write(2)`, `mkdir(2)` or `rmdir(2)`.
    pub errno: i32,
    /// The reason in `last`, on one line.
    pub reason: String,
}

/// Operations that the engine provides to the control directory. May be called from several threads at once.
pub trait ControlPlane: Send + Sync + 'static {
    /// The environment that the mount serves.
    fn id(&self) -> ControlId;

    /// Runs a command to completion and returns the text after `ok `, such as `commit <hash>`. Called on a
    /// separate thread, never with a lock of the view held.
    ///
    /// # Errors
    /// The errno for the writer, and the reason.
    fn execute(&self, command: &Command) -> Result<String, CommandError>;

    /// Whether a process in another process namespace may use the directory. `process` is its number as sent
    /// by the kernel.
    fn admits(&self, _process: u32) -> bool {
        false
    }

    /// State of the environment, such as `Built`.
    fn state(&self) -> String;

    /// Which of the view's changes count as uncommitted.
    ///
    /// # Errors
    /// If the trees cannot be read.
    fn diff(&self, view: &View) -> Result<Vec<DiffEntry>, Error> {
        view.diff()
    }

    /// Number of uncommitted files, and their size in bytes.
    fn uncommitted(&self, view: &View) -> (u64, u64) {
        let stats = view.stats();
        (stats.dirty_inodes, stats.dirty_bytes)
    }

    /// All snapshots, oldest first.
    fn snapshots(&self) -> Vec<SnapshotInfo>;

    /// Hash of the newest snapshot, which `latest` also refers to in commands.
    fn latest(&self) -> Option<String>;

    /// From now on keeps what the root objects of these snapshots reach, and no others; they are being looked
    /// at. `roots` is the previous set plus one root that `snapshots` has just listed, or a subset of the
    /// previous set.
    ///
    /// # Errors
    /// `NotFound` if a snapshot has been removed meanwhile, or an error from keeping them. The previous set
    /// is then still kept.
    fn keep_snapshots(&self, _roots: &[ObjectId]) -> Result<(), Error> {
        Ok(())
    }

    /// Hash of the layer that the view stands on, 64 hex digits.
    fn head(&self) -> String;

    /// Hash of the base layer, 64 hex digits.
    fn base(&self) -> String;
}
