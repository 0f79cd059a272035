//! Layer records: what a snapshot is, which layer it was made on, and the resulting tree
//! (docs/STORE-FORMAT.md).

use serde::{Deserialize, Serialize};

use crate::error::{IoContext, Result, StoreError};
use crate::fail;
use crate::files::freed;
use crate::id::{LayerHash, ObjectId, RecordId};
use crate::inode::Timestamp;
use crate::open::Store;
use crate::rfc3339;
use crate::tar::TarHash;

/// Size limit of a record when reading, in bytes; far above any record that is written.
const MAX_BYTES: u64 = 1 << 20;

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// An image, with no parent.
    Base,
    /// The packages that a build installed.
    Dependency,
    /// Changes made by the manifest's policy.
    Policy,
    /// A commit.
    Snapshot,
}

/// A layer's record. Its canonical JSON (these fields in this order, no whitespace) is the content of the
/// file, which is named by the blake3 of these bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// The hash shown to users: the tar hash for a base or dependency, [`snapshot_hash`] for a snapshot.
    pub hash: LayerHash,
    /// What the layer is.
    pub kind: LayerKind,
    /// The layer it was made on; `None` for a base.
    pub parent: Option<LayerHash>,
    /// The objects that the record itself refers to.
    pub object_refs: Vec<ObjectId>,
    /// Whether the layer refuses changes; true for all layers stored today.
    pub read_only: bool,
    /// The hash of its identity tar: the changes against the parent.
    pub tar_hash: TarHash,
    /// The root object of the resulting tree.
    pub tree: ObjectId,
    /// When it was made.
    #[serde(with = "rfc3339::text")]
    pub created_at: Timestamp,
    /// The message given by whoever made it.
    pub message: Option<String>,
}

impl LayerRecord {
    /// The record's canonical bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| StoreError::Invalid(format!("cannot encode a layer record: {e}")))
    }

    /// Stores a record, durably, and returns its name. What it refers to must be durable already.
    pub fn write(store: &Store, record: &LayerRecord) -> Result<RecordId> {
        let bytes = record.to_bytes()?;
        let id = RecordId::of(&bytes);
        let path = store.layout().layer(&id);
        fail::point("layer.write").at("write", &path)?;
        // An existing record of that name should have these bytes, but is left alone only if it reads well.
        if LayerRecord::read(store, &id).is_err() || !store.files().refresh(&path)? {
            store.files().write(&path, &bytes)?;
        }
        Ok(id)
    }

    /// Reads a record and checks it against its name.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Corrupt`] when its bytes do not match its
    /// name or cannot be decoded.
    pub fn read(store: &Store, id: &RecordId) -> Result<LayerRecord> {
        let path = store.layout().layer(id);
        let bytes = match store.files().read(&path, MAX_BYTES) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::missing("layer record", id));
            }
            other => other.at("read", &path)?,
        };
        if RecordId::of(&bytes) != *id {
            return Err(StoreError::corrupt("layer record", id, "its bytes do not match its name"));
        }
        serde_json::from_slice(&bytes).map_err(|e| StoreError::corrupt("layer record", id, e.to_string()))
    }

    /// The disk space in bytes that removing a record frees.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn on_disk(store: &Store, id: &RecordId) -> Result<u64> {
        let path = store.layout().layer(id);
        Ok(freed(&path.symlink_metadata().at("read", &path)?))
    }

    /// The names of all records, sorted, readable or not. Files with other names are skipped.
    pub fn list(store: &Store) -> Result<Vec<RecordId>> {
        let dir = store.layout().layers();
        let mut ids = Vec::new();
        for name in store.files().names(&dir).at("list", &dir)? {
            ids.extend(name.to_str().and_then(|n| n.parse::<RecordId>().ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// The identity of a snapshot: `blake3("snapshot:{env_id}:{parent}:{tar_hash}")`.
pub fn snapshot_hash(env_id: &str, parent: &LayerHash, tar_hash: &TarHash) -> LayerHash {
    let text = format!("snapshot:{env_id}:{parent}:{tar_hash}");
    LayerHash::from_bytes(*blake3::hash(text.as_bytes()).as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// A base layer's record for a tree.
    pub(crate) fn base(tree: ObjectId) -> LayerRecord {
        LayerRecord {
            hash: LayerHash::from_bytes([1; 32]),
            kind: LayerKind::Base,
            parent: None,
            object_refs: vec![tree],
            read_only: true,
            tar_hash: TarHash::from_bytes([1; 32]),
            tree,
            created_at: Timestamp { secs: 1_700_000_000, nanos: 5 },
            message: None,
        }
    }

    #[test]
    fn a_record_comes_back_under_the_hash_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let record = base(ObjectId::of(b"tree"));
        let id = LayerRecord::write(&store, &record).unwrap();
        assert_eq!(LayerRecord::write(&store, &record).unwrap(), id);
        assert_eq!(LayerRecord::read(&store, &id).unwrap(), record);
        assert_eq!(LayerRecord::list(&store).unwrap(), [id]);
        let text = fs::read_to_string(store.layout().layer(&id)).unwrap();
        assert!(
            text.starts_with("{\"hash\":\"0101") && text.contains("2023-11-14T22:13:20.000000005Z"),
            "{text}"
        );
        assert_eq!(RecordId::of(text.as_bytes()), id);
    }

    #[test]
    fn a_changed_record_is_corrupt_and_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let record = base(ObjectId::of(b"tree"));
        let id = LayerRecord::write(&store, &record).unwrap();
        let path = store.layout().layer(&id);
        let text = fs::read_to_string(&path).unwrap().replace("base", "Base");
        fs::write(&path, text).unwrap();
        assert!(matches!(LayerRecord::read(&store, &id), Err(StoreError::Corrupt { .. })));
        LayerRecord::write(&store, &record).unwrap();
        assert_eq!(LayerRecord::read(&store, &id).unwrap(), record);
        assert!(LayerRecord::read(&store, &RecordId::of(b"none")).unwrap_err().is_missing());
    }

    #[test]
    fn a_snapshots_hash_is_that_of_the_spec() {
        let (parent, tar) = (LayerHash::from_bytes([0xab; 32]), TarHash::from_bytes([0xcd; 32]));
        let text = format!("snapshot:env:{}:{}", "ab".repeat(32), "cd".repeat(32));
        let hash = snapshot_hash("env", &parent, &tar);
        assert_eq!(hash.to_hex(), blake3::hash(text.as_bytes()).to_hex().as_str());
    }
}
