//! Intents: records of operations with several steps. The next start cleans up after one that died halfway.
//!
//! Objects, layers and metadata each appear atomically, and an operation becomes visible by one last write
//! (metadata). So a crash can only leave things that nothing refers to: objects and layers, which gc removes,
//! and an environment's directory without metadata, which [`replay`] removes. It only undoes what did not
//! exist before the operation began.
//!
//! Commit, restore and collection have no intent: each takes effect by one rename (of the environment's
//! record, or of the upper's checkpoint) or deletes only what nothing refers to, so there is nothing to undo.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result, StoreError};
use crate::fail;
use crate::held::{self, HeldFile, Unreadable};
use crate::id::InstanceId;
use crate::lock::StoreLock;
use crate::metadata::{EnvState, Metadata};
use crate::open::Store;
use crate::staging;

/// The planned operation, and its environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Intent {
    /// Making a new environment. Undone unless its metadata exists and its state is past `Defined`.
    Import {
        /// The environment.
        instance: InstanceId,
    },
    /// Removing an environment. Once its metadata is gone, the rest is removed too.
    Destroy {
        /// The environment.
        instance: InstanceId,
    },
    /// Making a temporary environment for a build, in which programs run. Always undone, however far it got.
    Build {
        /// The environment.
        instance: InstanceId,
    },
    /// Replacing an old environment by a new one. Undone while the new one has no metadata; after that, the
    /// old one is removed.
    Replace {
        /// The new environment.
        instance: InstanceId,
        /// The old one.
        old: InstanceId,
    },
}

impl Intent {
    /// The environment concerned.
    pub fn instance(&self) -> InstanceId {
        match *self {
            Self::Import { instance }
            | Self::Destroy { instance }
            | Self::Build { instance }
            | Self::Replace { instance, .. } => instance,
        }
    }

    /// Every environment that the operation makes or removes.
    fn instances(&self) -> impl Iterator<Item = InstanceId> {
        let old = match *self {
            Self::Replace { old, .. } => Some(old),
            _ => None,
        };
        std::iter::once(self.instance()).chain(old)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    pid: u32,
    /// Whether the environment existed when the operation began.
    existed: bool,
    intent: Intent,
}

/// An operation in progress. [`WalEntry::finish`] ends it; if dropped before that, it is undone as by a
/// replay.
pub struct WalEntry {
    store: Arc<Store>,
    /// `None` after `finish`.
    open: Option<(HeldFile, Content)>,
}

/// The log of operations in progress.
pub struct Wal;

impl Wal {
    /// Records an intent, durably. Must be called before the operation's first step.
    pub fn begin(store: &Arc<Store>, intent: Intent) -> Result<WalEntry> {
        let layout = store.layout();
        let instance = intent.instance();
        let existed = layout.env_dir(&instance).symlink_metadata().is_ok()
            || Metadata::path(store, &instance).symlink_metadata().is_ok();
        let content = Content { pid: std::process::id(), existed, intent };
        let bytes = serde_json::to_vec(&content)
            .map_err(|e| StoreError::Invalid(format!("cannot encode an intent: {e}")))?;
        let file = HeldFile::create(store.files(), &layout.wal(), &bytes, true)?;
        fail::point("wal.begun").at("write", &layout.wal())?;
        Ok(WalEntry { store: store.clone(), open: Some((file, content)) })
    }
}

impl WalEntry {
    /// Ends the operation, which must be complete and durable; removes the intent.
    pub fn finish(mut self) -> Result<()> {
        match self.open.take() {
            Some((file, _)) => file.remove(),
            None => Ok(()),
        }
    }

    /// Leaves the operation to the next start, as if this process had died.
    pub fn leave(mut self) {
        if let Some((file, _)) = self.open.take() {
            file.leave();
        }
    }
}

impl Drop for WalEntry {
    fn drop(&mut self) {
        let Some((file, content)) = self.open.take() else { return };
        if let Err(error) = undo(&self.store, &content) {
            tracing::warn!("cannot undo {:?}, the next start tries again: {error}", content.intent);
            file.leave();
        }
    }
}

/// Undoes what dead processes left half done, sweeps their staging, and returns their intents. Of builds,
/// only those of the environments in `ended` are undone: that something uses another may not be known.
///
/// Called at start. Does nothing while a collection runs (it holds the store's lock) or another host uses the
/// store, because the next start does it, nor on a read-only file system.
///
/// # Errors
/// When undoing an operation fails; its intent stays for the next start.
pub fn replay(store: &Arc<Store>, ended: &[InstanceId]) -> Result<Vec<Intent>> {
    if store.is_read_only() {
        return Ok(Vec::new());
    }
    let _lock = match StoreLock::try_shared(store) {
        Ok(lock) => lock,
        Err(StoreError::Locked { .. } | StoreError::OtherHost { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut intents = Vec::new();
    for found in held::scan(store.files(), &store.layout().wal())? {
        let parsed = found.parse::<Content>();
        let Some(file) = found.dead else { continue };
        let content = match parsed {
            Ok(content) => content,
            // What it concerned is unknown, so nothing is undone; collections refuse to run until it is gone.
            Err(error) => {
                file.leave();
                let path = found.path.display();
                tracing::warn!(
                    "the intent {path} is unreadable ({error}): `karapace verify-store --repair` moves it to quarantine"
                );
                continue;
            }
        };
        if matches!(content.intent, Intent::Build { instance } if !ended.contains(&instance)) {
            file.leave();
            continue;
        }
        if let Err(error) = undo(store, &content) {
            file.leave();
            return Err(error);
        }
        file.remove()?;
        intents.push(content.intent);
    }
    staging::sweep(store, false)?;
    Ok(intents)
}

/// The environments concerned by operations in progress.
///
/// # Errors
/// When an intent cannot be read.
pub(crate) fn instances(store: &Store) -> Result<Vec<InstanceId>> {
    let (instances, unreadable) = read(store)?;
    match unreadable.into_iter().next() {
        None => Ok(instances),
        Some((path, reason)) => {
            Err(StoreError::Invalid(format!("the intent {} is unreadable: {reason}", path.display())))
        }
    }
}

/// Like [`instances`], but also returns the intents that cannot be read.
pub(crate) fn read(store: &Store) -> Result<(Vec<InstanceId>, Unreadable)> {
    let (mut instances, mut unreadable) = (Vec::new(), Vec::new());
    for found in held::scan(store.files(), &store.layout().wal())? {
        match found.parse::<Content>() {
            Ok(content) => instances.extend(content.intent.instances()),
            Err(reason) => unreadable.push((found.path.clone(), reason)),
        }
        if let Some(file) = found.dead {
            file.leave();
        }
    }
    Ok((instances, unreadable))
}

/// The intents of dead processes, for a caller that must do something before [`replay`] undoes them.
pub fn abandoned(store: &Store) -> Result<Vec<Intent>> {
    let mut intents = Vec::new();
    for found in held::scan(store.files(), &store.layout().wal())? {
        let parsed = found.parse::<Content>();
        let Some(file) = found.dead else { continue };
        file.leave();
        // The replay reports those that cannot be read.
        intents.extend(parsed.map(|content| content.intent));
    }
    Ok(intents)
}

fn undo(store: &Store, content: &Content) -> Result<()> {
    let has_record = |instance: &InstanceId| Metadata::path(store, instance).symlink_metadata().is_ok();
    let gone = match content.intent {
        Intent::Build { instance } if !content.existed => {
            // The record goes last: whoever tries again needs it, to end what uses the environment.
            remove_env_dir(store, &instance)?;
            if has_record(&instance) {
                Metadata::delete(store, &instance)?;
            }
            return Ok(());
        }
        Intent::Replace { instance, old } if has_record(&instance) => {
            Metadata::load(store, &instance)?;
            if has_record(&old) {
                Metadata::delete(store, &old)?;
            }
            old
        }
        Intent::Replace { instance, .. } if !content.existed => instance,
        Intent::Import { instance } if !content.existed => {
            if Metadata::path(store, &instance).symlink_metadata().is_ok() {
                // Metadata that cannot be read is left for verify-store to report.
                if Metadata::load(store, &instance)?.state != EnvState::Defined {
                    return Ok(());
                }
                Metadata::delete(store, &instance)?;
            }
            instance
        }
        Intent::Destroy { instance } if Metadata::path(store, &instance).symlink_metadata().is_err() => {
            instance
        }
        _ => return Ok(()),
    };
    remove_env_dir(store, &gone)
}

fn remove_env_dir(store: &Store, instance: &InstanceId) -> Result<()> {
    let dir = store.env_dir(instance);
    match store.files().remove_tree(&dir) {
        Ok(()) => store.files().sync_dir(dir.parent().unwrap_or(&dir)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).at("remove", &dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RecordId;
    use crate::metadata::tests::saved;
    use std::fs;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn begun(store: &Store) -> usize {
        fs::read_dir(store.layout().wal()).unwrap().count()
    }

    #[test]
    fn a_finished_operation_leaves_nothing() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        let entry = Wal::begin(&store, Intent::Import { instance }).unwrap();
        assert_eq!(begun(&store), 1);
        // The operation is alive, so no other process may undo it.
        assert_eq!(replay(&store, &[]).unwrap(), []);
        assert_eq!(begun(&store), 1);
        entry.finish().unwrap();
        assert_eq!(begun(&store), 0);
    }

    #[test]
    fn an_import_that_died_is_undone_and_only_once() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        let entry = Wal::begin(&store, Intent::Import { instance }).unwrap();
        fs::create_dir_all(store.upper_dir(&instance)).unwrap();
        entry.leave();
        assert_eq!(instances(&store).unwrap(), [instance]);
        assert_eq!(replay(&store, &[]).unwrap(), [Intent::Import { instance }]);
        assert!(!store.env_dir(&instance).exists());
        assert_eq!(replay(&store, &[]).unwrap(), []);
    }

    #[test]
    fn an_import_that_was_complete_or_not_its_own_stays() {
        let (_dir, store) = store();
        let complete = saved(&store, "a", &"ab".repeat(32), RecordId::of(b"r")).instance;
        fs::create_dir_all(store.upper_dir(&complete)).unwrap();
        let there = InstanceId::random().unwrap();
        fs::create_dir_all(store.upper_dir(&there)).unwrap();
        Wal::begin(&store, Intent::Import { instance: there }).unwrap().leave();
        let content = Content { pid: 1, existed: false, intent: Intent::Import { instance: complete } };
        HeldFile::create(store.files(), &store.layout().wal(), &serde_json::to_vec(&content).unwrap(), true)
            .unwrap()
            .leave();
        assert_eq!(replay(&store, &[]).unwrap().len(), 2);
        assert!(store.upper_dir(&complete).exists() && store.upper_dir(&there).exists());
        Metadata::load(&store, &complete).unwrap();
    }

    #[test]
    fn an_interrupted_destroy_is_finished_once_its_metadata_is_gone() {
        let (_dir, store) = store();
        let instance = saved(&store, "a", &"ab".repeat(32), RecordId::of(b"r")).instance;
        fs::create_dir_all(store.upper_dir(&instance)).unwrap();
        Wal::begin(&store, Intent::Destroy { instance }).unwrap().leave();
        replay(&store, &[]).unwrap();
        assert!(store.upper_dir(&instance).exists());
        Wal::begin(&store, Intent::Destroy { instance }).unwrap().leave();
        Metadata::delete(&store, &instance).unwrap();
        replay(&store, &[]).unwrap();
        assert!(!store.env_dir(&instance).exists());
    }

    #[test]
    fn a_build_that_died_leaves_nothing_of_its_environment() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        let entry = Wal::begin(&store, Intent::Build { instance }).unwrap();
        assert_eq!(abandoned(&store).unwrap(), []);
        let mut env = saved(&store, "a", &"ab".repeat(32), RecordId::of(b"r"));
        Metadata::delete(&store, &env.instance).unwrap();
        env.instance = instance;
        env.save(&store).unwrap();
        fs::create_dir_all(store.upper_dir(&instance)).unwrap();
        entry.leave();
        assert_eq!(abandoned(&store).unwrap(), [Intent::Build { instance }]);
        // Something may use it still.
        assert_eq!(replay(&store, &[]).unwrap(), []);
        assert!(store.env_dir(&instance).exists());
        replay(&store, &[instance]).unwrap();
        assert!(Metadata::load(&store, &instance).unwrap_err().is_missing());
        assert!(!store.env_dir(&instance).exists());
    }

    #[test]
    fn an_interrupted_replacement_leaves_the_old_environment_or_the_new_one() {
        let (_dir, store) = store();
        let record = RecordId::of(b"r");
        for (has_record, old_has_gone) in [(false, false), (true, false), (true, true)] {
            let old = saved(&store, "a", &"ab".repeat(32), record).instance;
            let instance = InstanceId::random().unwrap();
            let entry = Wal::begin(&store, Intent::Replace { instance, old }).unwrap();
            for instance in [&old, &instance] {
                fs::create_dir_all(store.upper_dir(instance)).unwrap();
            }
            if has_record {
                let mut new = Metadata::load(&store, &old).unwrap();
                new.instance = instance;
                new.save(&store).unwrap();
            }
            for instance in [&old, &instance] {
                fs::write(store.upper_dir(instance).join("checkpoint"), "").unwrap();
            }
            if old_has_gone {
                Metadata::delete(&store, &old).unwrap();
            }
            // Between the two steps, the environments still belong to the operation.
            for instance in [&old, &instance] {
                assert!(!crate::integrity::is_orphan(&store, instance).unwrap());
            }
            entry.leave();
            replay(&store, &[]).unwrap();
            let (stays, goes) = if has_record { (instance, old) } else { (old, instance) };
            assert!(Metadata::load(&store, &stays).is_ok() && store.upper_dir(&stays).exists());
            assert!(Metadata::load(&store, &goes).is_err() && !store.env_dir(&goes).exists());
        }
    }

    #[test]
    fn an_intent_dropped_without_an_end_is_undone_at_once() {
        let (_dir, store) = store();
        let instance = InstanceId::random().unwrap();
        let entry = Wal::begin(&store, Intent::Import { instance }).unwrap();
        fs::create_dir_all(store.upper_dir(&instance)).unwrap();
        drop(entry);
        assert!(!store.env_dir(&instance).exists());
        assert_eq!(begun(&store), 0);
    }
}
