//! Code shared by import and build: making a base layer from an image, and a new environment on it.

use std::fs;
use std::path::Path;

use karapace_store::error::StoreError;
use karapace_store::fail;
use karapace_store::id::{InstanceId, LayerHash, ObjectId, RecordId};
use karapace_store::import::{Imported, Mounts, import_mounted};
use karapace_store::inode::Timestamp;
use karapace_store::layer::{LayerKind, LayerRecord};
use karapace_store::metadata::{Dependency, EnvState, Metadata};
use karapace_store::tar::{TarHash, identity_hash};
use karapace_store::tree::Trees;
use karapace_store::wal::{Intent, Wal};

use crate::description::locked::LockFile;
use crate::description::manifest::{Manifest, Mount};
use crate::engine::At as _;
use crate::engine::instance::open::begin_upper;
use crate::engine::{Engine, Error, Report, Result};

/// An image in the store: its tree, to which nothing refers yet. The caller must hold the store's lock.
pub(super) struct Base {
    /// Its tree.
    pub root: ObjectId,
    /// Its layer's hash.
    pub hash: LayerHash,
    tar_hash: TarHash,
    /// The content digest, as in `base_image_digest`.
    pub digest: String,
    /// Number of entries imported.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
}

/// The parts of a new environment.
#[derive(Clone, Copy)]
pub(super) struct Built<'a> {
    /// The lock that the manifest resolved to.
    pub lock: &'a LockFile,
    /// The image.
    pub base: &'a Base,
    /// Its packages.
    pub dependency: Option<Dependency>,
}

impl Engine {
    /// Imports an archive or a directory into the store. The caller holds the store's lock, shared.
    pub(super) fn import_base(&self, path: &Path, mounts: Mounts, report: &dyn Report) -> Result<Base> {
        let size = fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len());
        self.base_of_import(size, report, || import_mounted(self.store(), path, mounts, report))
    }

    /// The same for what `import` imports; `size` is its size in bytes, if known.
    pub(super) fn base_of_import(
        &self,
        size: Option<u64>,
        report: &dyn Report,
        import: impl FnOnce() -> karapace_store::error::Result<Imported>,
    ) -> Result<Base> {
        report.heed_interruptions();
        report.begin("importing", size);
        let imported = import();
        report.end();
        let imported = imported?;
        for warning in &imported.warnings {
            report.note(warning);
        }
        let trees = Trees::new(self.store().clone());
        let root = trees.root(&imported.root)?;
        report.begin("hashing", None);
        let tar_hash = identity_hash(&trees, None, &root);
        report.end();
        let tar_hash = tar_hash?;
        if report.is_cancelled() {
            return Err(StoreError::Cancelled.into());
        }
        Ok(Base {
            root: imported.root,
            hash: LayerHash::from_bytes(*tar_hash.as_bytes()),
            // The hash of the whole tree covers everything that the content digest must cover.
            digest: tar_hash.to_hex(),
            tar_hash,
            entries: imported.stats.entries,
            bytes: imported.stats.bytes,
        })
    }

    /// Makes a new environment from what a manifest resolved to. It becomes visible with its record, which is
    /// written last. The caller holds the store's lock, shared.
    pub(super) fn create(&self, name: &str, manifest: &Manifest, built: &Built<'_>) -> Result<Metadata> {
        self.add_environment(self.new_metadata(name, manifest, built)?)
    }

    /// The record of a new environment, not saved yet.
    pub(super) fn new_metadata(
        &self,
        name: &str,
        manifest: &Manifest,
        built: &Built<'_>,
    ) -> Result<Metadata> {
        let now = Timestamp::now();
        let Built { lock, base, dependency } = *built;
        let record = self.write_base_layer(base, now)?;
        let (head, head_record) = dependency.map_or((base.hash, record), |d| (d.layer, d.record));
        Ok(Metadata {
            version: karapace_store::metadata::VERSION,
            instance: InstanceId::random()?,
            name: name.to_owned(),
            env_id: lock.env_id.clone(),
            state: EnvState::Built,
            base_layer: base.hash,
            base_record: record,
            dependency,
            head,
            head_record,
            created_at: now,
            updated_at: now,
            manifest: manifest.to_toml(),
            lock: lock.to_toml(),
            manifest_dir: manifest_dir(manifest)?,
            snapshots: Vec::new(),
            checksum: String::new(),
        })
    }

    /// Makes the directory of an environment.
    pub(super) fn make_env_dir(&self, instance: &InstanceId) -> Result<()> {
        let dir = self.env_dir(instance);
        fail::point("create.dir").and_then(|()| self.store().files().make_dirs(&dir)).at("create", &dir)
    }

    /// Makes the environment that a new record describes. Its name must be free. The caller holds the store's
    /// lock, shared.
    pub(super) fn add_environment(&self, mut metadata: Metadata) -> Result<Metadata> {
        let intent = Wal::begin(self.store(), Intent::Import { instance: metadata.instance })?;
        self.make_env_dir(&metadata.instance)?;
        let dir = self.env_dir(&metadata.instance);
        fail::point("create.record").at("record", &dir)?;
        let names = self.lock_names()?;
        self.check_name_free(&metadata.name, None)?;
        metadata.save(self.store())?;
        drop(names);
        intent.finish()?;
        Ok(metadata)
    }

    /// Lets a new environment show the tree `root`, if that is not its head's. The environment's directory
    /// exists.
    pub(super) fn stand_on(&self, metadata: &Metadata, root: &ObjectId) -> Result<()> {
        if self.tree_of(&metadata.head_record)? == *root {
            return Ok(());
        }
        begin_upper(self.store(), metadata, root)
    }

    /// The tree of a layer.
    pub(super) fn tree_of(&self, record: &RecordId) -> Result<ObjectId> {
        Ok(LayerRecord::read(self.store(), record)?.tree)
    }

    /// The record of the base layer: that of another environment on the same tree, or a new one.
    fn write_base_layer(&self, base: &Base, now: Timestamp) -> Result<RecordId> {
        for other in Metadata::list(self.store())?.into_iter().flatten() {
            if other.base_layer == base.hash
                && LayerRecord::read(self.store(), &other.base_record)
                    .is_ok_and(|layer| layer.tree == base.root)
            {
                return Ok(other.base_record);
            }
        }
        let layer = LayerRecord {
            hash: base.hash,
            kind: LayerKind::Base,
            parent: None,
            object_refs: vec![base.root],
            read_only: true,
            tar_hash: base.tar_hash,
            tree: base.root,
            created_at: now,
            message: None,
        };
        Ok(LayerRecord::write(self.store(), &layer)?)
    }
}

/// Checks a name before the work of an import. The end of the import checks it again.
pub(super) fn check_name_early(engine: &Engine, name: &str) -> Result<()> {
    engine.check_name_free(name, None)
}

/// The directory of a manifest, to be recorded if host paths in the manifest are relative.
fn manifest_dir(manifest: &Manifest) -> Result<Option<String>> {
    let relative = manifest.mounts.values().any(Mount::is_relative);
    manifest.directory.as_deref().filter(|_| relative).map(path_text).transpose()
}

/// The absolute path as text for a manifest, which must be UTF-8.
pub(super) fn path_text(path: &Path) -> Result<String> {
    let absolute = fs::canonicalize(path).at("open", path)?;
    absolute.to_str().map(str::to_owned).ok_or_else(|| {
        Error::Invalid(format!(
            "{}: the path must be UTF-8 text, because it is stored in the environment's record",
            path.display()
        ))
    })
}
