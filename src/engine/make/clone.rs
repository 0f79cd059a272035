//! A second environment that shares everything with the first.

use karapace_store::id::InstanceId;
use karapace_store::inode::Timestamp;
use karapace_store::layer::LayerRecord;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{EnvState, Metadata, SnapshotEntry};
use karapace_store::tree::Trees;

use super::create::check_name_early;
use crate::engine::instance::damage;
use crate::engine::instance::reference;
use crate::engine::instance::reference::LayerRef;
use crate::engine::{Engine, Error, Report, Result};

/// What is to be in the clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneFrom<'a> {
    /// The snapshot that the environment stands on; what is uncommitted stays behind.
    Head,
    /// A new snapshot of all there is.
    Commit,
    /// This snapshot.
    Snapshot(&'a str),
}

impl Engine {
    /// Makes the environment `name`, which stands on a snapshot of `env`. Nothing is copied: it takes as long
    /// whatever the size.
    ///
    /// It is Built, whatever the state of `env` is; its snapshots are those that the chosen one stands on,
    /// down to the base, with their names. What is left behind uncommitted is told.
    ///
    /// # Errors
    /// A name that is taken, or a snapshot that is not there: nothing was made then, and nothing committed.
    pub fn clone_env(
        &self,
        env: &Metadata,
        from: CloneFrom<'_>,
        name: &str,
        report: &dyn Report,
    ) -> Result<Metadata> {
        check_name_early(self, name)?;
        match from {
            CloneFrom::Head => self.tell_left_behind(env, name, report),
            CloneFrom::Commit => {
                self.commit(env, &[], None, Some(&format!("clone to {name}")))?;
            }
            CloneFrom::Snapshot(_) => {}
        }
        let _shared = StoreLock::shared(self.store())?;
        // As it is under the lock: from here on nothing of it can go.
        let env = Metadata::load(self.store(), &env.instance)?;
        if env.state == EnvState::Defined {
            return Err(Error::Invalid(format!("{} is not built: there is nothing to clone", env.name)));
        }
        let reference = match from {
            CloneFrom::Snapshot(reference) => reference,
            CloneFrom::Head | CloneFrom::Commit => "head",
        };
        let head = reference::resolve(&env, reference)?;
        // What cannot be mounted is not given to another.
        let root = LayerRecord::read(self.store(), &head.record)?.tree;
        let read = Trees::new(self.store().clone()).root(&root).map(|_| ());
        read.map_err(|error| damage::named(self.store(), &env.name, &[root], error.into()))?;
        let now = Timestamp::now();
        self.add_environment(Metadata {
            instance: InstanceId::random()?,
            name: name.to_owned(),
            state: EnvState::Built,
            head: head.hash,
            head_record: head.record,
            created_at: now,
            updated_at: now,
            snapshots: chain(&env, &head),
            ..env
        })
    }

    /// Says what a clone of the head leaves behind. That it cannot be counted is no reason to make no clone.
    fn tell_left_behind(&self, env: &Metadata, name: &str, report: &dyn Report) {
        match self.count_uncommitted(env) {
            Ok(0) => {}
            Ok(count) => report.note(&format!(
                "{count} uncommitted changes of {} are not in {name}; with --commit they would be",
                env.name
            )),
            Err(error) => report.note(&format!(
                "whether {} has uncommitted changes, which are not in {name}, is not known: {error}",
                env.name
            )),
        }
    }
}

/// The snapshots that a layer of `env` stands on, itself among them, oldest first.
pub(super) fn chain(env: &Metadata, layer: &LayerRef) -> Vec<SnapshotEntry> {
    let mut chain: Vec<SnapshotEntry> = Vec::new();
    let mut at = layer.hash;
    while !env.is_built_from(&at) && chain.len() < env.snapshots.len() {
        let before = chain.len();
        chain.extend(env.snapshots.iter().rev().filter(|s| s.hash == at).cloned());
        // The newest record is the one that the others stand on.
        let Some(newest) = chain.get(before) else { break };
        at = newest.parent;
    }
    chain.extend(env.snapshots.iter().rev().filter(|s| env.is_built_from(&s.hash)).cloned());
    chain.reverse();
    chain
}
