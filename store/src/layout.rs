//! Paths below a store's root directory.

use std::path::{Path, PathBuf};

use crate::id::{InstanceId, ObjectId, RecordId};

/// The paths of one store. Nothing here accesses the disk.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    store: PathBuf,
    objects: PathBuf,
}

impl Layout {
    /// The layout below `root`.
    pub fn new(root: &Path) -> Self {
        let store = root.join("store");
        let objects = store.join("objects");
        Self { root: root.to_owned(), store, objects }
    }

    /// The root directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `store/`: everything that environments share.
    pub fn store_dir(&self) -> &Path {
        &self.store
    }

    /// `store/version`: the format number.
    pub fn version(&self) -> PathBuf {
        self.store.join("version")
    }

    /// `store/.lock`: locked shared by writers, exclusively by gc.
    pub fn lock_file(&self) -> PathBuf {
        self.store.join(".lock")
    }

    /// `store/.gc`: locked by a running collection.
    pub fn collection_lock(&self) -> PathBuf {
        self.store.join(".gc")
    }

    /// `store/.host`: the machine that uses the store.
    pub fn host_file(&self) -> PathBuf {
        self.store.join(".host")
    }

    /// `store/objects/`.
    pub fn objects(&self) -> &Path {
        &self.objects
    }

    /// `store/objects/<2 hex>/<62 hex>`.
    pub fn object(&self, id: &ObjectId) -> PathBuf {
        let mut path = PathBuf::with_capacity(self.objects.as_os_str().len() + 66);
        path.push(&self.objects);
        path.push(object_name(id));
        path
    }

    /// `store/objects/<2 hex>/`: the objects whose id begins with this byte.
    pub fn shard(&self, byte: u8) -> PathBuf {
        self.objects.join(format!("{byte:02x}"))
    }

    /// `store/layers/`.
    pub fn layers(&self) -> PathBuf {
        self.store.join("layers")
    }

    /// `store/layers/<record>`.
    pub fn layer(&self, id: &RecordId) -> PathBuf {
        self.layers().join(id.to_hex())
    }

    /// `store/metadata/`: one record for each environment instance.
    pub fn metadata(&self) -> PathBuf {
        self.store.join("metadata")
    }

    /// `store/staging/`: data being written, one directory for each batch.
    pub fn staging(&self) -> PathBuf {
        self.store.join("staging")
    }

    /// `store/wal/`: intents of operations in progress.
    pub fn wal(&self) -> PathBuf {
        self.store.join("wal")
    }

    /// `store/pins/`: what live processes keep from being collected.
    pub fn pins(&self) -> PathBuf {
        self.store.join("pins")
    }

    /// `env/`.
    pub fn envs(&self) -> PathBuf {
        self.root.join("env")
    }

    /// `env/<instance>/`.
    pub fn env_dir(&self, instance: &InstanceId) -> PathBuf {
        self.envs().join(instance.to_hex())
    }

    /// `env/<instance>/upper/`: the changes since the head.
    pub fn upper(&self, instance: &InstanceId) -> PathBuf {
        self.env_dir(instance).join("upper")
    }

    /// `quarantine/`: damaged files that were set aside.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// `logs/`: the output of package managers in builds.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// `mount-all`: the pid of the process that mounts every environment, and where it mounts.
    pub fn mount_all(&self) -> PathBuf {
        self.root.join("mount-all")
    }

    /// `mount-all.log`: the log of that process.
    pub fn mount_all_log(&self) -> PathBuf {
        self.root.join("mount-all.log")
    }

    /// `images/`: downloaded archives.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
}

/// An object's path below the objects' directory: `<2 hex>/<62 hex>`.
pub(crate) fn object_name(id: &ObjectId) -> String {
    let mut name = id.to_hex();
    name.insert(2, '/');
    name
}
