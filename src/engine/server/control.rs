//! An open environment as the control directory of its mount sees it.

use std::sync::Arc;

use karapace_fs::attr::DiffEntry;
use karapace_fs::control::{Command, CommandError, ControlId, ControlPlane, SnapshotInfo};
use karapace_fs::view::View;

use karapace_store::id::ObjectId;

use parking_lot::Mutex;

use super::perform::perform;
use crate::engine::Error;
use crate::engine::instance::open::{Instance, Wait};
use crate::runtime::NamespaceId;

/// The process namespace whose programs may use the control directory from inside: that of an inside made
/// with `--ctl`.
#[derive(Default)]
pub struct Admitted(Mutex<Option<NamespaceId>>);

impl Admitted {
    /// Admits the processes of this process namespace, and no others, from now on.
    pub fn set(&self, namespace: Option<NamespaceId>) {
        *self.0.lock() = namespace;
    }
}

/// An environment as the control directory of its mount sees it.
pub struct Plane {
    instance: Arc<Instance>,
    admitted: Arc<Admitted>,
}

impl Plane {
    /// The control plane of an open environment.
    pub fn new(instance: Arc<Instance>, admitted: Arc<Admitted>) -> Plane {
        Plane { instance, admitted }
    }
}

impl ControlPlane for Plane {
    fn id(&self) -> ControlId {
        let metadata = self.instance.metadata();
        ControlId {
            short_id: metadata.short_id().to_owned(),
            env_id: metadata.env_id,
            name: metadata.name,
            instance: metadata.instance.to_hex(),
        }
    }

    fn execute(&self, command: &Command) -> std::result::Result<String, CommandError> {
        let done = perform(&self.instance, command, Wait::Brief);
        done.map(|outcome| outcome.to_string())
            .map_err(|e| CommandError { errno: e.errno(), reason: e.to_string() })
    }

    fn admits(&self, process: u32) -> bool {
        let admitted = *self.admitted.0.lock();
        admitted.is_some() && admitted == NamespaceId::of_processes(process)
    }

    fn state(&self) -> String {
        self.instance.state()
    }

    fn diff(&self, _view: &View) -> karapace_fs::Result<Vec<DiffEntry>> {
        self.instance.diff(None).map_err(|error| match error {
            Error::Fs(error) => error,
            Error::Store(error) => error.into(),
            other => karapace_fs::Error::Corrupt(other.to_string()),
        })
    }

    fn uncommitted(&self, _view: &View) -> (u64, u64) {
        let status = self.instance.status();
        (status.dirty_files, status.dirty_bytes)
    }

    fn snapshots(&self) -> Vec<SnapshotInfo> {
        let mut infos = Vec::new();
        for entry in self.instance.metadata().snapshots {
            match self.instance.root_of(&entry.record) {
                Ok(root) => infos.push(SnapshotInfo {
                    hash: entry.hash.to_hex(),
                    name: entry.name,
                    message: entry.message,
                    created_at: entry.created_at,
                    root,
                }),
                Err(error) => tracing::error!("snapshot {} is left out: {error}", entry.hash),
            }
        }
        infos
    }

    fn latest(&self) -> Option<String> {
        self.instance.metadata().latest().map(|entry| entry.hash.to_hex())
    }

    fn keep_snapshots(&self, roots: &[ObjectId]) -> karapace_fs::Result<()> {
        self.instance.keep_snapshots(roots).map_err(|error| match error {
            Error::Fs(error) => error,
            Error::Store(error) => error.into(),
            other => karapace_fs::Error::Corrupt(other.to_string()),
        })
    }

    fn head(&self) -> String {
        self.instance.view().head().layer.to_hex()
    }

    fn base(&self) -> String {
        self.instance.metadata().base_layer.to_hex()
    }
}
