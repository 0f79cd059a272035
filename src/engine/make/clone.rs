//! Cloning: a new environment that shares everything with an existing one.

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

/// What the clone contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneFrom<'a> {
    /// The environment's head, without uncommitted changes.
    Head,
    /// A new snapshot, made of everything including uncommitted changes.
    Commit,
    /// This snapshot.
    Snapshot(&'a str),
}

impl Engine {
    /// Makes the environment `name` on a snapshot of `env`. Nothing is copied, so the time does not depend on
    /// the size.
    ///
    /// The clone's state is Built, whatever the state of `env` is. Its snapshots are the chosen one and those
    /// below it, down to the base, with their names. Uncommitted changes that are not in the clone are
    /// reported.
    ///
    /// # Errors
    /// [`Error::NameTaken`] and [`Error::NoSnapshot`]; nothing was made or committed then.
    pub fn clone_env(
        &self,
        env: &Metadata,
        from: CloneFrom<'_>,
        name: &str,
        report: &dyn Report,
    ) -> Result<Metadata> {
        check_name_early(self, name)?;
        self.check_not_temporary(env)?;
        match from {
            CloneFrom::Head => self.tell_left_behind(env, name, report),
            CloneFrom::Commit => {
                self.commit(env, &[], None, Some(&format!("clone to {name}")))?;
            }
            CloneFrom::Snapshot(_) => {}
        }
        let _shared = StoreLock::shared(self.store())?;
        // Read again under the lock: from here on nothing of it can be collected.
        let env = Metadata::load(self.store(), &env.instance)?;
        if env.state == EnvState::Defined {
            return Err(Error::Invalid(format!("{} is not built yet: there is nothing to clone", env.name)));
        }
        let reference = match from {
            CloneFrom::Snapshot(reference) => reference,
            CloneFrom::Head | CloneFrom::Commit => "head",
        };
        let head = reference::resolve(&env, reference)?;
        // Do not clone a tree that cannot be read.
        let root = LayerRecord::read(self.store(), &head.record)?.tree;
        let read = Trees::new(self.store().clone()).root(&root).map(|_| ());
        read.map_err(|error| damage::named(self.store(), &env.name, &[root], error.into()))?;
        self.add_environment(copy(&env, &head, name)?)
    }

    /// Reports how many uncommitted changes a clone of the head leaves out. If they cannot be counted, the
    /// clone is made all the same.
    fn tell_left_behind(&self, env: &Metadata, name: &str, report: &dyn Report) {
        match self.count_uncommitted(env) {
            Ok(0) => {}
            Ok(count) => report.note(&format!(
                "{count} uncommitted changes of {} are not in {name}; use --commit to include them",
                env.name
            )),
            Err(error) => report.note(&format!(
                "cannot tell whether {} has uncommitted changes, which are not in {name}: {error}",
                env.name
            )),
        }
    }
}

/// The record of a new environment on a layer of `env`, with the layer and those below it as its snapshots.
pub(super) fn copy(env: &Metadata, layer: &LayerRef, name: &str) -> Result<Metadata> {
    let now = Timestamp::now();
    Ok(Metadata {
        instance: InstanceId::random()?,
        name: name.to_owned(),
        state: EnvState::Built,
        head: layer.hash,
        head_record: layer.record,
        created_at: now,
        updated_at: now,
        snapshots: chain(env, layer),
        ..env.clone()
    })
}

/// The snapshots below a layer of `env` and the layer itself, oldest first.
fn chain(env: &Metadata, layer: &LayerRef) -> Vec<SnapshotEntry> {
    let mut chain: Vec<SnapshotEntry> = Vec::new();
    let mut at = layer.hash;
    while !env.is_built_from(&at) && chain.len() < env.snapshots.len() {
        let before = chain.len();
        chain.extend(env.snapshots.iter().rev().filter(|s| s.hash == at).cloned());
        // Follow the newest record's parent.
        let Some(newest) = chain.get(before) else { break };
        at = newest.parent;
    }
    chain.extend(env.snapshots.iter().rev().filter(|s| env.is_built_from(&s.hash)).cloned());
    chain.reverse();
    chain
}
