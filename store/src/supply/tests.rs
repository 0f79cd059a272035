use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::Store;
use crate::batch::Batch;
use crate::error::{IoContext as _, StoreError};
use crate::gc::{GcOptions, collect};
use crate::import::import_path;
use crate::inode::FileKind;
use crate::integrity::{UpperState, verify};
use crate::layer::LayerRecord;
use crate::layer::tests::base;
use crate::metadata;
use crate::progress::NoProgress;
use crate::reach::UpperRoots;
use crate::tree::{Entry, Target, Trees, update_dir, write_dir};

/// A supply with objects in a directory, which can be made unreachable.
#[derive(Debug)]
struct Elsewhere {
    dir: PathBuf,
    is_reachable: AtomicBool,
    /// The objects that were asked for.
    asked: Mutex<Vec<ObjectId>>,
}

impl Elsewhere {
    /// The objects that were asked for since this was last called.
    fn asked(&self) -> Vec<ObjectId> {
        std::mem::take(&mut self.asked.lock())
    }
}

impl Supply for Elsewhere {
    fn open(&self, id: &ObjectId) -> Result<Option<File>> {
        self.asked.lock().push(*id);
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
    Arc::new(Elsewhere { dir, is_reachable: AtomicBool::new(true), asked: Mutex::default() })
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
    let options = GcOptions { dry_run: false, uppers: &|_| Ok(UpperRoots::default()), cancelled: &|| false };
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

#[test]
fn what_a_batch_has_staged_is_not_asked_of_the_supply() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let supply = moved(&store, dir.path().join("elsewhere"));
    store.objects().supply_from(supply.clone());
    let trees = Trees::new(store.clone());
    let mut batch = Batch::new(&store).unwrap();
    let target = Target::Link { ino: 2, kind: FileKind::Regular };
    let entry =
        |number: u32| Entry { name: format!("{number:05}").into_bytes().into(), target: target.clone() };
    // Large enough to be split: an index and its parts.
    let base = write_dir(&mut batch, &mut (0..20_000).map(entry)).unwrap().tree.unwrap();
    let change = BTreeMap::from([(b"00007".as_slice().into(), None)]);
    let changed = update_dir(&trees, &mut batch, Some(&base), &change).unwrap().tree.unwrap();
    assert_eq!(supply.asked(), []);
    batch.commit().unwrap();
    assert_eq!(trees.len(&changed).unwrap(), 19_999);
    assert_eq!(supply.asked(), []);
}
