//! What each command does. Every command is performed here, whether it came from the control directory,
//! through the control socket, or from a command line that has opened the environment itself.

use std::fmt;

use karapace_fs::attr::HeadRef;
use karapace_fs::control::Command;
use karapace_fs::path_text::PathText;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use serde::{Deserialize, Serialize};

use crate::engine::instance::diff::Changed;
use crate::engine::instance::open::{CommitOutcome, Instance, RestoreOutcome, Status, Wait};
use crate::engine::instance::snapshots::RemoveOutcome;
use crate::engine::upkeep::{gc, verify};
use crate::engine::{Error, Result, Silent};

/// The result of a [`Command`]. Displayed, it is what follows `ok ` in `last`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of `Commit`.
    Commit(CommitOutcome),
    /// Of `Restore`.
    Restore(RestoreOutcome),
    /// Of `RemoveSnapshots`.
    Removed(RemoveOutcome),
    /// Of `DropName`.
    NameDropped {
        /// The name.
        name: String,
    },
    /// Of `Diff`.
    Diff(Vec<Changed>),
    /// Of `Status`.
    Status(Status),
    /// Of `Store`: the view's head, with the tree of all that the view shows.
    Stored {
        /// The head layer.
        layer: LayerHash,
        /// Its record.
        record: RecordId,
        /// The tree's root object.
        root: ObjectId,
    },
    /// Of `Gc`.
    Collected {
        /// How many objects were removed, or would be.
        objects: u64,
        /// How much disk space that frees, in bytes.
        bytes: u64,
    },
    /// Of `Verify`: there is no damage.
    Whole,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Commit(done) => write!(f, "commit {}", done.hash),
            Outcome::Restore(RestoreOutcome { hash, saved: None, .. }) => write!(f, "restore {hash}"),
            Outcome::Restore(RestoreOutcome { hash, saved: Some(saved), .. }) => {
                write!(f, "restore {hash} (uncommitted changes are in {saved})")
            }
            Outcome::Removed(done) => {
                let hashes: Vec<_> = done.removed.iter().map(LayerHash::to_hex).collect();
                write!(f, "remove-snapshots {}", hashes.join(" "))
            }
            Outcome::NameDropped { name } => write!(f, "drop-name {name}"),
            Outcome::Diff(changes) => write!(f, "diff paths={}", changes.len()),
            Outcome::Status(status) => {
                write!(f, "status dirty_files={} dirty_bytes={}", status.dirty_files, status.dirty_bytes)
            }
            Outcome::Stored { layer, root, record: _ } => write!(f, "store {layer} {root}"),
            Outcome::Collected { objects, bytes } => write!(f, "gc objects={objects} bytes={bytes}"),
            Outcome::Whole => f.write_str("verify clean"),
        }
    }
}

/// Performs a command on an open environment. `wait` says whether it may wait for the store's lock.
///
/// # Errors
/// [`Error::Invalid`] if [`Command::check`] refuses it, and those of the operation.
pub(in crate::engine) fn perform(instance: &Instance, command: &Command, wait: Wait) -> Result<Outcome> {
    command.check().map_err(Error::Invalid)?;
    Ok(match command {
        Command::Commit { name, message, paths } => {
            Outcome::Commit(instance.commit(&bytes(paths), name.as_deref(), message.as_deref(), wait)?)
        }
        Command::Restore { reference, paths, times } => {
            Outcome::Restore(instance.restore(reference, &bytes(paths), *times, wait)?)
        }
        Command::RemoveSnapshots { references } => {
            Outcome::Removed(instance.remove_snapshots(references, wait)?)
        }
        Command::DropName { name } => {
            instance.drop_name(name, wait)?;
            Outcome::NameDropped { name: name.clone() }
        }
        Command::Diff { since } => {
            let changes = instance.diff(since.as_deref())?;
            Outcome::Diff(changes.into_iter().map(|d| Changed::new(d.kind, d.path)).collect())
        }
        Command::Status => Outcome::Status(instance.status()),
        Command::Store => {
            let HeadRef { layer, record, root } = instance.shown(wait)?;
            Outcome::Stored { layer, record, root }
        }
        Command::Gc { dry_run } => {
            let report = gc::collect(instance.engine(), *dry_run, &Silent)?;
            Outcome::Collected { objects: report.objects, bytes: report.bytes }
        }
        Command::Verify => {
            verify::refuse_damage(&verify::verify(instance.engine(), &Silent)?)?;
            Outcome::Whole
        }
    })
}

fn bytes(paths: &[PathText]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.0.clone()).collect()
}
