//! What import and build share: a base layer from an image, and a new environment on it.

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
use crate::engine::{Engine, Error, Report, Result};

/// An image in the store: its tree, not yet referred to by anything. The holder keeps the store's lock.
pub(super) struct Base {
    /// Its tree.
    pub root: ObjectId,
    /// Its layer's identity.
    pub hash: LayerHash,
    tar_hash: TarHash,
    /// The content digest, as `base_image_digest` has it.
    pub digest: String,
    /// What came in.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// What a new environment is made of.
#[derive(Clone, Copy)]
pub(super) struct Built<'a> {
    /// What it resolved to.
    pub lock: &'a LockFile,
    /// The image.
    pub base: &'a Base,
    /// Its packages.
    pub dependency: Option<Dependency>,
}

impl Engine {
    /// Brings an archive or a directory into the store. Call with the store's lock held, shared.
    pub(super) fn import_base(&self, path: &Path, mounts: Mounts, report: &dyn Report) -> Result<Base> {
        let size = fs::metadata(path).ok().filter(|m| m.is_file()).map(|m| m.len());
        self.base_of_import(size, report, || import_mounted(self.store(), path, mounts, report))
    }

    /// The same with what `import` brings in, of `size` bytes if that is known.
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
            // The identity of the whole tree covers all that the content digest has to.
            digest: tar_hash.to_hex(),
            tar_hash,
            entries: imported.stats.entries,
            bytes: imported.stats.bytes,
        })
    }

    /// Makes a new environment of what a manifest resolved to; the record at the end makes it visible, and
    /// until then nothing is. Call with the store's lock held, shared.
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

    /// Makes the environment that a new record describes, under a name that must be free. Call with the
    /// store's lock held, shared.
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

    /// The record of the base layer: the one that another environment on the same tree has, else a new one.
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

/// Refuses a name early: before the work of an import, whose end checks it again.
pub(super) fn check_name_early(engine: &Engine, name: &str) -> Result<()> {
    engine.check_name_free(name, None)
}

/// What to record of where a manifest lies: its directory, where host paths in it are relative.
fn manifest_dir(manifest: &Manifest) -> Result<Option<String>> {
    let relative = manifest.mounts.values().any(Mount::is_relative);
    manifest.directory.as_deref().filter(|_| relative).map(path_text).transpose()
}

/// The text of an absolute path for a manifest, which is UTF-8.
pub(super) fn path_text(path: &Path) -> Result<String> {
    let absolute = fs::canonicalize(path).at("open", path)?;
    absolute.to_str().map(str::to_owned).ok_or_else(|| {
        Error::Invalid(format!(
            "{}: the path must be UTF-8 text, for it stands in the environment's record",
            path.display()
        ))
    })
}
