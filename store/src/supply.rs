//! Provides objects that are not stored here.

use std::fmt;
use std::fs::File;

use crate::error::Result;
use crate::id::ObjectId;

/// Provides objects that the store does not have (see [`crate::object::Objects::supply_from`]).
///
/// Called from any thread that reads: for a file request, a commit, gc, verify-store. An implementation that
/// waits for a network must limit the wait itself.
pub trait Supply: fmt::Debug + Send + Sync {
    /// Opens an object for reading; `None` if this supply does not have it. The bytes are not trusted: the
    /// reader verifies them against the name.
    ///
    /// # Errors
    /// When the supply should have the object and cannot provide it.
    fn open(&self, id: &ObjectId) -> Result<Option<File>>;

    /// The size in bytes of an object that this supply has promised to provide; `None` for any other. A
    /// promised object that is not stored here is not damage, uses no space, and is not rebuilt. Never waits.
    fn promised(&self, id: &ObjectId) -> Option<u64>;
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Store;
    use crate::error::{IoContext as _, StoreError};
    use crate::gc::{GcOptions, collect};
    use crate::import::import_path;
    use crate::integrity::{UpperState, verify};
    use crate::layer::LayerRecord;
    use crate::layer::tests::base;
    use crate::metadata;
    use crate::progress::NoProgress;
    use crate::reach::UpperRoots;

    /// A supply with objects in a directory, which can be made unreachable.
    #[derive(Debug)]
    struct Elsewhere {
        dir: PathBuf,
        is_reachable: AtomicBool,
    }

    impl Supply for Elsewhere {
        fn open(&self, id: &ObjectId) -> Result<Option<File>> {
            let path = self.dir.join(id.to_hex());
            if self.promised(id).is_none() {
                return Ok(None);
            }
            if !self.is_reachable.load(Ordering::Relaxed) {
                return Err(std::io::Error::from(std::io::ErrorKind::HostUnreachable)).at("fetch", &path);
            }
            File::open(&path).at("open", &path).map(Some)
        }

        fn promised(&self, id: &ObjectId) -> Option<u64> {
            self.dir.join(id.to_hex()).metadata().ok().map(|metadata| metadata.len())
        }
    }

    /// Moves all objects of a store to a supply that promises them.
    fn moved(store: &Store, dir: PathBuf) -> Arc<Elsewhere> {
        fs::create_dir(&dir).unwrap();
        for shard in store.objects().shards().unwrap() {
            for object in fs::read_dir(shard).unwrap() {
                let path = object.unwrap().path();
                let id: ObjectId = crate::files::object_id(&path).unwrap();
                fs::rename(&path, dir.join(id.to_hex())).unwrap();
            }
        }
        Arc::new(Elsewhere { dir, is_reachable: AtomicBool::new(true) })
    }

    #[test]
    fn what_is_promised_is_read_and_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let src = dir.path().join("src");
        fs::create_dir(&src).unwrap();
        fs::write(src.join("file"), b"some bytes").unwrap();
        let root = import_path(&store, &src, &NoProgress).unwrap().root;
        let record = LayerRecord::write(&store, &base(root)).unwrap();
        metadata::tests::saved(&store, "env", &"ab".repeat(32), record);
        let id = ObjectId::of(b"some bytes");
        let supply = moved(&store, dir.path().join("elsewhere"));
        let findings = || verify(&store, &|_| Ok(UpperState::default()), &NoProgress).unwrap().findings;
        assert!(!findings().is_empty());
        store.objects().supply_from(supply.clone());

        let mut text = String::new();
        store.objects().open(&id).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "some bytes");
        assert_eq!(store.objects().read(&id, 100).unwrap(), b"some bytes");
        assert_eq!((store.objects().size(&id).unwrap(), store.objects().on_disk(&id).unwrap()), (10, 0));
        assert!(!store.objects().contains(&id));
        assert_eq!(findings().iter().map(|finding| &finding.message).collect::<Vec<_>>(), [""; 0]);
        let options =
            GcOptions { dry_run: false, uppers: &|_| Ok(UpperRoots::default()), cancelled: &|| false };
        assert_eq!(collect(&store, &options).unwrap().objects, 0);

        // Bytes from anywhere else are not trusted.
        let other = ObjectId::of(b"other");
        assert!(store.objects().open(&other).unwrap_err().is_missing());
        fs::write(supply.dir.join(other.to_hex()), b"wrong").unwrap();
        let wrong = store.objects().read(&other, 100).unwrap_err();
        assert!(matches!(wrong, StoreError::Corrupt { .. }), "{wrong}");
        supply.is_reachable.store(false, Ordering::Relaxed);
        let unreachable = store.objects().read(&id, 100).unwrap_err();
        assert!(!unreachable.is_missing(), "{unreachable}");
        assert!(unreachable.to_string().contains("fetch"), "{unreachable}");
    }
}
