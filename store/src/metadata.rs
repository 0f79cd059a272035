//! Environment records: one JSON file for each instance, replaced atomically.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result, StoreError};
use crate::fail;
use crate::id::{InstanceId, LayerHash, RecordId};
use crate::inode::Timestamp;
use crate::open::Store;
use crate::rfc3339;

mod made;
#[cfg(test)]
pub(crate) mod tests;

pub use made::made;

/// The version of the record that this code reads and writes.
pub const VERSION: u32 = 1;

/// Size limit of a record when reading, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The state of an environment (docs/MANIFEST.md, "Life of an environment").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EnvState {
    /// A build began and did not finish.
    Defined,
    /// Built: can be mounted, entered and changed.
    Built,
    /// A session is running in it.
    Running,
    /// Cannot be changed; mounts are read-only.
    Frozen,
    /// Cannot be mounted or entered; gc keeps it.
    Archived,
}

impl std::fmt::Display for EnvState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Defined => "Defined",
            Self::Built => "Built",
            Self::Running => "Running",
            Self::Frozen => "Frozen",
            Self::Archived => "Archived",
        })
    }
}

/// One snapshot of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotEntry {
    /// The hash shown to users.
    pub hash: LayerHash,
    /// Its layer record.
    pub record: RecordId,
    /// The layer it was made on.
    pub parent: LayerHash,
    /// Its name within the environment, if it has one.
    pub name: Option<String>,
    /// The message given by whoever made it.
    pub message: Option<String>,
    /// When it was made.
    #[serde(with = "rfc3339::text")]
    pub created_at: Timestamp,
}

/// The layer of an environment's packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dependency {
    /// The hash shown to users.
    pub layer: LayerHash,
    /// Its layer record.
    pub record: RecordId,
}

/// Everything recorded about one environment. The record is what makes the environment visible, so everything
/// it refers to must be durable before it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// [`VERSION`].
    pub version: u32,
    /// The key of the environment, also the name of its file.
    pub instance: InstanceId,
    /// Its name, unique in the store.
    pub name: String,
    /// The hash of what it was built from (docs/MANIFEST.md, "Identity"), 64 hex digits; several environments
    /// may share one.
    pub env_id: String,
    /// The environment's state.
    pub state: EnvState,
    /// The base layer.
    pub base_layer: LayerHash,
    /// The base layer's record.
    pub base_record: RecordId,
    /// The layer of its packages, made on the base; `None` when it was built without packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependency: Option<Dependency>,
    /// The layer that the view stands on.
    pub head: LayerHash,
    /// The head's record.
    pub head_record: RecordId,
    /// When the environment was made.
    #[serde(with = "rfc3339::text")]
    pub created_at: Timestamp,
    /// When this record was last saved with a change.
    #[serde(with = "rfc3339::text")]
    pub updated_at: Timestamp,
    /// The normalised manifest, TOML.
    pub manifest: String,
    /// The lock file, TOML.
    pub lock: String,
    /// The manifest's directory, to which its relative mounts refer; recorded only if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_dir: Option<String>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotEntry>,
    /// blake3 of the record's compact JSON with this field empty. Set by [`Metadata::save`].
    pub checksum: String,
}

impl Metadata {
    /// The directory of all records, and of nothing else: it changes whenever a record does.
    pub fn dir(store: &Store) -> PathBuf {
        store.layout().metadata()
    }

    /// The path of an environment's record.
    pub fn path(store: &Store, instance: &InstanceId) -> PathBuf {
        Self::dir(store).join(instance.to_hex())
    }

    /// Reads and checks a record.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Version`] for another version,
    /// [`StoreError::Corrupt`] when it cannot be decoded or fails its checks.
    pub fn load(store: &Store, instance: &InstanceId) -> Result<Metadata> {
        let path = Self::path(store, instance);
        let bytes = match store.files().read(&path, MAX_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::missing("environment", instance));
            }
            other => other.at("read", &path)?,
        };
        Self::decode(&bytes, instance, &path)
    }

    /// Decodes and checks the record of `instance`; `path` is only for messages.
    pub(crate) fn decode(bytes: &[u8], instance: &InstanceId, path: &Path) -> Result<Metadata> {
        let corrupt = |reason: &str| StoreError::corrupt("environment record", instance, reason);
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(|e| corrupt(&e.to_string()))?;
        if version != VERSION {
            return Err(StoreError::Version {
                found: version.to_string(),
                supported: VERSION,
                path: path.to_owned(),
            });
        }
        let metadata: Metadata = serde_json::from_slice(bytes).map_err(|e| corrupt(&e.to_string()))?;
        if metadata.checksum != metadata.sum()? {
            return Err(corrupt("its checksum does not match its content"));
        }
        if metadata.instance != *instance {
            return Err(corrupt("it is the record of another environment"));
        }
        metadata.check_texts().map_err(|reason| corrupt(&reason))?;
        Ok(metadata)
    }

    /// Why karapace cannot have written this record, even if the checksum matches. Names become names of
    /// directories, and all texts are shown to users.
    fn check_texts(&self) -> std::result::Result<(), String> {
        let odd = |what: &str, text: &str| format!("{what} is {text:?}, which karapace never writes");
        check_name(&self.name).map_err(|_| odd("its name", &self.name))?;
        if self.env_id.len() != 64 || !self.env_id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(odd("its env_id", &self.env_id));
        }
        for name in self.snapshots.iter().filter_map(|snapshot| snapshot.name.as_deref()) {
            check_name(name).map_err(|_| odd("the name of a snapshot", name))?;
        }
        let is_odd = |dir: &&str| !dir.starts_with('/') || dir.contains('\0');
        match self.manifest_dir.as_deref().filter(is_odd) {
            Some(dir) => Err(odd("the manifest's directory", dir)),
            None => Ok(()),
        }
    }

    /// Writes the record atomically; durable on return. Sets `checksum`. The caller must hold
    /// [`crate::lock::StoreLock::shared`] since before the first object that the record refers to.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a bad name. The caller must check that the name is free
    /// ([`Metadata::name_is_free`]).
    pub fn save(&mut self, store: &Store) -> Result<()> {
        check_name(&self.name)?;
        self.checksum = self.sum()?;
        let mut bytes = serde_json::to_vec_pretty(self).map_err(unwritable)?;
        bytes.push(b'\n');
        let path = Self::path(store, &self.instance);
        fail::point("metadata.save").at("replace", &path)?;
        store.files().write(&path, &bytes)
    }

    /// Removes a record, durably. With it the environment is gone, even if other files of it remain.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is no record.
    pub fn delete(store: &Store, instance: &InstanceId) -> Result<()> {
        let path = Self::path(store, instance);
        match fail::point("metadata.delete").and_then(|()| store.files().remove(&path)) {
            Ok(()) => {
                fail::point("metadata.deleted").at("remove", &path)?;
                store.files().sync_dir_surely(&Self::dir(store))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::missing("environment", instance))
            }
            Err(e) => Err(e).at("remove", &path),
        }
    }

    /// The instances that have a record, sorted, readable or not.
    pub fn instances(store: &Store) -> Result<Vec<InstanceId>> {
        let dir = Self::dir(store);
        let mut ids = Vec::new();
        for name in store.files().names(&dir).at("list", &dir)? {
            ids.extend(name.to_str().and_then(|n| n.parse::<InstanceId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Every record, or the error from reading it; readable ones first, sorted by name. A record that is
    /// removed meanwhile is left out.
    pub fn list(store: &Store) -> Result<Vec<Result<Metadata>>> {
        let mut all: Vec<_> = Self::instances(store)?
            .iter()
            .map(|instance| Self::load(store, instance))
            .filter(|loaded| !matches!(loaded, Err(StoreError::Missing { .. })))
            .collect();
        all.sort_by(|a, b| match (a, b) {
            (Ok(a), Ok(b)) => a.name.cmp(&b.name),
            (a, b) => a.is_err().cmp(&b.is_err()),
        });
        Ok(all)
    }

    /// Finds an environment by name, env_id or instance, or by a prefix of at least 4 digits of either id. A
    /// name takes precedence over an id.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when none matches, [`StoreError::Invalid`] naming the candidates when several
    /// match. An unreadable record is an error only when nothing else matches.
    pub fn find(store: &Store, reference: &str) -> Result<Metadata> {
        let (mut matches, mut unreadable) = (Vec::new(), None);
        for loaded in Self::list(store)? {
            match loaded {
                Ok(metadata) if metadata.name == reference => return Ok(metadata),
                Ok(metadata) if metadata.has_id(reference) => matches.push(metadata),
                Ok(_) => {}
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        match (matches.len(), unreadable) {
            (0, Some(error)) => Err(error),
            (0, None) => Err(StoreError::missing("environment", reference)),
            (1, _) => Ok(matches.remove(0)),
            _ => Err(ambiguous(reference, &matches)),
        }
    }

    /// Whether no environment other than `except` has this name. The caller must hold the store's lock
    /// exclusively around this check and the save: with a shared lock two callers may still take one name at
    /// once. Unreadable records are skipped.
    pub fn name_is_free(store: &Store, name: &str, except: Option<&InstanceId>) -> Result<bool> {
        for loaded in Self::list(store)? {
            match loaded {
                Ok(other) if other.name == name && Some(&other.instance) != except => return Ok(false),
                Ok(_) => {}
                Err(error) => tracing::warn!("skipped an environment's record: {error}"),
            }
        }
        Ok(true)
    }

    /// Every layer that the record refers to, with its role: base, head, packages, or a snapshot.
    pub fn layers(&self) -> Vec<(String, LayerHash, RecordId)> {
        let mut layers = vec![
            ("the base".to_owned(), self.base_layer, self.base_record),
            ("the head".to_owned(), self.head, self.head_record),
        ];
        layers.extend(self.dependency.map(|d| ("the packages".to_owned(), d.layer, d.record)));
        layers.extend(self.snapshots.iter().map(|s| (format!("snapshot {:.12}", s.hash), s.hash, s.record)));
        layers
    }

    /// The layer on which the first snapshot is made: that of the packages, or the base if there are none.
    pub fn foundation(&self) -> (LayerHash, RecordId) {
        self.dependency.map_or((self.base_layer, self.base_record), |d| (d.layer, d.record))
    }

    /// Whether the environment was built from this layer: its base or its packages.
    pub fn is_built_from(&self, layer: &LayerHash) -> bool {
        self.base_layer == *layer || self.dependency.is_some_and(|d| d.layer == *layer)
    }

    /// Its snapshots in the order in which they were made, each once, however many names it has: see
    /// [`made`].
    pub fn made(&self) -> Vec<&SnapshotEntry> {
        made(&self.snapshots)
    }

    /// The newest snapshot, which `latest` refers to. An entry that names a layer the environment was built
    /// from is returned only when there is no other.
    pub fn latest(&self) -> Option<&SnapshotEntry> {
        let made = self.made();
        let own = made.iter().rev().find(|entry| !self.is_built_from(&entry.hash));
        own.or(made.last()).copied()
    }

    /// The first 12 digits of the env_id.
    pub fn short_id(&self) -> &str {
        self.env_id.get(..12).unwrap_or(&self.env_id)
    }

    fn has_id(&self, prefix: &str) -> bool {
        let hex = prefix.len() >= 4 && prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex && (self.env_id.starts_with(prefix) || self.instance.to_hex().starts_with(prefix))
    }

    fn sum(&self) -> Result<String> {
        let bare = Metadata { checksum: String::new(), ..self.clone() };
        Ok(blake3::hash(&serde_json::to_vec(&bare).map_err(unwritable)?).to_hex().to_string())
    }
}

/// Maximum length of the name of an environment or snapshot, in bytes.
pub const MAX_NAME: usize = 64;

/// Checks that `name` may name an environment: 1 to [`MAX_NAME`] letters, digits, `_` and `-`. Names of
/// snapshots have the same form; the caller that names a snapshot must also check that the name is not one of
/// the words reserved for snapshots.
///
/// # Errors
/// [`StoreError::Invalid`] if it may not.
pub fn check_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(StoreError::Invalid(format!(
        "bad name {name:?}: use 1 to {MAX_NAME} of letters, digits, '_' and '-'"
    )))
}

fn ambiguous(reference: &str, matches: &[Metadata]) -> StoreError {
    let mut text = format!("{reference:?} matches more than one environment; use a name or more digits:");
    for m in matches {
        // Writing to a String cannot fail, so there is no error to handle.
        write!(text, "\n  {} (env_id {}, instance {})", m.name, m.short_id(), m.instance).ok();
    }
    StoreError::Invalid(text)
}

fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Invalid(format!("cannot encode an environment record: {error}"))
}
