use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::Store;
use crate::batch::Batch;
use crate::error::{IoContext, StoreError};
use crate::gc::{GcOptions, GcReport, collect};
use crate::import::import_path;
use crate::inode::FileKind;
use crate::integrity::{UpperState, verify};
use crate::layer::LayerRecord;
use crate::layer::tests::base;
use crate::layout::Layout;
use crate::metadata;
use crate::progress::NoProgress;
use crate::reach::UpperRoots;
use crate::tree::{Entry, Target, Trees, update_dir, write_dir};
use elsewhere::Elsewhere;

mod elsewhere;

/// A store with one environment, of one file with the content "some bytes", and a supply that has nothing
/// yet.
struct Place {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    supply: Arc<Elsewhere>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let src = dir.path().join("src");
        fs::create_dir(&src).unwrap();
        fs::write(src.join("file"), b"some bytes").unwrap();
        let root = import_path(&store, &src, &NoProgress).unwrap().root;
        let record = LayerRecord::write(&store, &base(root)).unwrap();
        metadata::tests::saved(&store, "env", &"ab".repeat(32), record);
        let supply = Elsewhere::new(&dir.path().join("elsewhere"));
        Place { _dir: dir, store, supply }
    }

    fn begin_supply(&self) {
        self.store.objects().supply_from(self.supply.clone());
    }

    fn findings(&self) -> Vec<String> {
        let verified = verify(&self.store, &|_| Ok(UpperState::default()), &NoProgress).unwrap();
        verified.findings.into_iter().map(|finding| finding.message).collect()
    }

    fn collect(&self) -> Result<GcReport> {
        let uppers = &|_: &_| Ok(UpperRoots::default());
        collect(&self.store, &GcOptions { dry_run: false, uppers, cancelled: &|| false })
    }

    fn put(&self, bytes: &[u8]) -> ObjectId {
        let mut batch = Batch::new(&self.store).unwrap();
        let id = batch.put(bytes).unwrap();
        batch.commit().unwrap();
        id
    }
}

#[test]
fn what_is_promised_is_read_and_is_no_damage() {
    let place = Place::new();
    let (store, id) = (&place.store, ObjectId::of(b"some bytes"));
    place.supply.take(store, |_| true);
    assert!(!place.findings().is_empty());
    place.begin_supply();

    let mut text = String::new();
    store.objects().open(&id).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "some bytes");
    assert_eq!(store.objects().read(&id, 100).unwrap(), b"some bytes");
    assert_eq!((store.objects().size(&id).unwrap(), store.objects().on_disk(&id).unwrap()), (10, 0));
    assert!(!store.objects().contains(&id));
    assert_eq!(place.findings(), [""; 0]);
    assert_eq!(place.collect().unwrap().objects, 0);

    // Bytes from anywhere else are not trusted.
    let other = ObjectId::of(b"other");
    assert!(store.objects().open(&other).unwrap_err().is_missing());
    fs::write(place.supply.dir.join(other.to_hex()), b"wrong").unwrap();
    let wrong = store.objects().read(&other, 100).unwrap_err();
    assert!(matches!(wrong, StoreError::Corrupt { .. }), "{wrong}");
    place.supply.is_reachable.store(false, Ordering::Relaxed);
    let unreachable = store.objects().read(&id, 100).unwrap_err();
    assert!(!unreachable.is_missing(), "{unreachable}");
    assert!(unreachable.to_string().contains("fetch"), "{unreachable}");
}

#[test]
fn a_supply_that_cannot_be_reached_is_no_damage_and_nothing_is_lost_by_it() {
    let place = Place::new();
    place.begin_supply();
    place.supply.is_reachable.store(false, Ordering::Relaxed);
    // The bytes of a file are needed neither for a collection nor to know what is garbage.
    let content = ObjectId::of(b"some bytes");
    place.supply.take(&place.store, |id| *id == content);
    let garbage = place.put(b"garbage");
    assert_eq!(place.collect().unwrap().objects, 1);
    assert!(!place.store.objects().contains(&garbage));
    assert_eq!(place.findings(), [""; 0]);
    assert_eq!(place.supply.asked(), []);

    // What a tree refers to is not known without it.
    assert_eq!(place.put(b"some bytes"), content);
    place.supply.take(&place.store, |id| *id != content);
    assert_eq!(place.findings(), [""; 0]);
    let refused = place.collect().unwrap_err().to_string();
    assert!(refused.contains("nothing was collected") && refused.contains("fetch"), "{refused}");
    assert!(place.store.objects().contains(&content));
    place.supply.is_reachable.store(true, Ordering::Relaxed);
    assert_eq!(place.collect().unwrap().objects, 0);
    assert_eq!(place.findings(), [""; 0]);
}

#[test]
fn what_a_batch_has_staged_is_not_asked_of_the_supply() {
    let place = Place::new();
    place.begin_supply();
    let trees = Trees::new(place.store.clone());
    let mut batch = Batch::new(&place.store).unwrap();
    let target = Target::Link { ino: 2, kind: FileKind::Regular };
    let entry =
        |number: u32| Entry { name: format!("{number:05}").into_bytes().into(), target: target.clone() };
    // Large enough to be split: an index and its parts.
    let base = write_dir(&mut batch, &mut (0..20_000).map(entry)).unwrap().tree.unwrap();
    let change = BTreeMap::from([(b"00007".as_slice().into(), None)]);
    let changed = update_dir(&trees, &mut batch, Some(&base), &change).unwrap().tree.unwrap();
    batch.commit().unwrap();
    assert_eq!(trees.len(&changed).unwrap(), 19_999);
    assert_eq!(place.supply.asked(), []);
}
