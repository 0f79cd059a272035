//! Differences between a view and a layer, or between two layers.

use karapace_fs::attr::DiffKind;
use karapace_fs::path_text::PathText;
use karapace_store::layer::LayerRecord;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::tree::{Change, Trees, diff};
use serde::{Deserialize, Serialize};

use super::reference::{self, LayerRef};
use crate::engine::{Engine, Result};

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How it differs.
    pub kind: DiffKind,
    /// The path from the environment's root.
    pub path: PathText,
}

impl Changed {
    /// From a change as a view reports it.
    pub fn new(kind: DiffKind, path: Vec<u8>) -> Changed {
        Changed { kind, path: PathText(path) }
    }
}

impl Engine {
    /// The paths at which the layer `to` differs from the layer `from`.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`](crate::engine::Error::NoSnapshot) and
    /// [`Error::AmbiguousSnapshot`](crate::engine::Error::AmbiguousSnapshot).
    pub fn diff_between(&self, env: &Metadata, from: &str, to: &str) -> Result<Vec<Changed>> {
        self.diff_layers(&reference::resolve(env, from)?, &reference::resolve(env, to)?)
    }

    fn diff_layers(&self, from: &LayerRef, to: &LayerRef) -> Result<Vec<Changed>> {
        let store = self.store();
        let _shared = StoreLock::shared(store)?;
        let trees = Trees::new(store.clone());
        let root = |layer: &LayerRef| -> Result<_> {
            Ok(trees.root(&LayerRecord::read(store, &layer.record)?.tree)?)
        };
        let mut changes = Vec::new();
        diff(&trees, Some(&*root(from)?), &*root(to)?, &mut |path, change| {
            let kind = match change {
                Change::Added(_) => DiffKind::Added,
                Change::Removed(_) => DiffKind::Deleted,
                Change::Modified { .. } => DiffKind::Modified,
            };
            changes.push(Changed::new(kind, path.to_vec()));
            Ok(())
        })?;
        Ok(changes)
    }
}
