use super::*;
use crate::batch::Batch;
use crate::import::import_path;
use crate::layer::tests::base;
use crate::lock::StoreLock;
use crate::metadata::{self, SnapshotEntry};
use crate::pins::Pin;
use crate::progress::NoProgress;
use crate::tree::Trees;

fn options(dry_run: bool, uppers: UpperRootsOf<'_>) -> GcOptions<'_> {
    GcOptions { dry_run, uppers, cancelled: &|| false }
}

struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Place { dir, store }
    }

    /// Imports a directory of files with these names and contents.
    fn import(&self, files: &[(&str, &[u8])]) -> ObjectId {
        let src = self.dir.path().join("src");
        for (name, bytes) in files {
            let path = src.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let imported = import_path(&self.store, &src, &NoProgress).unwrap();
        fs::remove_dir_all(src).unwrap();
        imported.root
    }

    fn layer(&self, tree: ObjectId, hash: u8, parent: Option<u8>) -> (LayerHash, RecordId) {
        let mut record = base(tree);
        record.hash = LayerHash::from_bytes([hash; 32]);
        record.parent = parent.map(|p| LayerHash::from_bytes([p; 32]));
        (record.hash, LayerRecord::write(&self.store, &record).unwrap())
    }

    fn objects(&self) -> usize {
        let objects = self.store.files().list(self.store.objects().dir()).unwrap();
        objects.iter().map(|dir| self.store.files().list(dir).unwrap().len()).sum()
    }

    /// Does a dry run, then a run that must do what the dry run reported.
    fn collect(&self) -> GcReport {
        let none = |_: &InstanceId| Ok(UpperRoots::default());
        self.collect_with(&none)
    }

    fn collect_with(&self, uppers: UpperRootsOf<'_>) -> GcReport {
        let before = self.objects();
        let said = collect(&self.store, &options(true, uppers)).unwrap();
        assert_eq!(self.objects(), before);
        let done = collect(&self.store, &options(false, uppers)).unwrap();
        assert_eq!(said, done);
        assert_eq!(self.objects() as u64, before as u64 - done.objects);
        assert_eq!(collect(&self.store, &options(false, uppers)).unwrap(), GcReport::default());
        done
    }

    /// Whether everything a tree refers to is present.
    fn is_whole(&self, root: ObjectId) -> bool {
        struct Whole<'a>(&'a Store, bool);
        impl Watch for Whole<'_> {
            fn fault(&mut self, _: Fault) -> Result<()> {
                self.1 = false;
                Ok(())
            }
            fn object(&mut self, id: &ObjectId, _: &dyn Fn() -> crate::reach::Met) -> Result<()> {
                self.1 &= self.0.objects().contains(id);
                Ok(())
            }
        }
        let mut whole = Whole(&self.store, true);
        let mut reach = Reach::new(self.store.clone());
        reach.root(root, &Rc::from("test"));
        reach.run(&mut whole).unwrap();
        whole.1
    }
}

const BIG: &[u8] = &[5; 3 << 20];

#[test]
fn an_environment_keeps_its_layers_and_the_rest_goes() {
    let place = Place::new();
    let (kept, snap) =
        (place.import(&[("d/a", b"a"), ("big", BIG)]), place.import(&[("d/a", b"b"), ("c", b"c")]));
    let gone = place.import(&[("d/a", b"x"), ("big", &[6; 3 << 20])]);
    let (_, base) = place.layer(kept, 1, None);
    let (hash, record) = place.layer(snap, 2, Some(1));
    place.layer(gone, 3, None);
    let mut env = metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let parent = env.base_layer;
    let created_at = env.created_at;
    env.snapshots.push(SnapshotEntry { hash, record, parent, name: None, message: None, created_at });
    env.save(&place.store).unwrap();
    let report = place.collect();
    assert_eq!((report.layers, report.staging), (1, 0));
    assert!(report.objects >= 4 && report.bytes > 3 << 20, "{report:?}");
    assert!(place.is_whole(kept) && place.is_whole(snap) && !place.is_whole(gone));
    Metadata::delete(&place.store, &env.instance).unwrap();
    assert_eq!(place.collect().layers, 2);
    assert_eq!(place.objects(), 0);
}

#[test]
fn a_parent_keeps_its_record_but_not_its_tree() {
    let place = Place::new();
    let trees = [b"1", b"2", b"3"].map(|bytes| place.import(&[("f", bytes)]));
    place.layer(trees[0], 1, None);
    let (_, middle) = place.layer(trees[1], 2, Some(1));
    let (_, top) = place.layer(trees[2], 3, Some(2));
    metadata::tests::saved(&place.store, "env", &"ab".repeat(32), top);
    assert_eq!(place.collect().layers, 0);
    LayerRecord::read(&place.store, &middle).unwrap();
    assert!(place.is_whole(trees[2]) && !place.is_whole(trees[1]) && !place.is_whole(trees[0]));
}

#[test]
fn pins_and_uppers_keep_what_they_name() {
    let place = Place::new();
    let (pinned, upper) = (place.import(&[("f", b"pinned")]), place.import(&[("f", b"upper"), ("g", BIG)]));
    let mut batch = Batch::new(&place.store).unwrap();
    let (kept, gone) = (batch.put(b"kept").unwrap(), batch.put(b"gone").unwrap());
    batch.commit().unwrap();
    let (_, base) = place.layer(pinned, 1, None);
    let env = metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let uppers = |instance: &InstanceId| {
        assert_eq!(*instance, env.instance);
        Ok(UpperRoots { roots: vec![upper], trees: vec![], objects: vec![kept] })
    };
    let pin = Pin::hold(&place.store, &[pinned]).unwrap();
    assert_eq!(place.collect_with(&uppers).objects, 1);
    assert!(place.store.objects().contains(&kept) && !place.store.objects().contains(&gone));
    Metadata::delete(&place.store, &env.instance).unwrap();
    place.collect();
    assert!(place.is_whole(pinned) && !place.is_whole(upper));
    drop(pin);
    place.collect();
    assert_eq!(place.objects(), 0);
}

/// A file may have the same bytes as a tree: even if it is met as content first, the tree must be followed.
#[test]
fn a_file_with_a_trees_bytes_hides_nothing() {
    let place = Place::new();
    let inner = place.import(&[("deep/er/f", b"inner")]);
    let trees = Trees::new(place.store.clone());
    let tree = *trees.root(&inner).unwrap().tree().unwrap();
    let bytes = place.store.objects().read(&tree, 1 << 20).unwrap();
    let outer = place.import(&[("a", &bytes), ("z", &place.store.objects().read(&inner, 1 << 20).unwrap())]);
    let (_, outer_record) = place.layer(outer, 1, None);
    let (_, inner_record) = place.layer(inner, 1, Some(9));
    metadata::tests::saved(&place.store, "one", &"ab".repeat(32), outer_record);
    metadata::tests::saved(&place.store, "two", &"cd".repeat(32), inner_record);
    assert_eq!(place.collect().objects, 0);
    assert!(place.is_whole(inner));
}

#[test]
fn a_collection_refuses_if_something_cannot_be_read() {
    let place = Place::new();
    let (kept, gone) = (place.import(&[("d/a", b"a")]), place.import(&[("d/a", b"b")]));
    let (_, base) = place.layer(kept, 1, None);
    let env = metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let trees = Trees::new(place.store.clone());
    let tree = *trees.root(&kept).unwrap().tree().unwrap();
    let layout = place.store.layout();
    for path in [
        layout.object(&kept),
        layout.object(&tree),
        layout.layer(&base),
        Metadata::path(&place.store, &env.instance),
    ] {
        let bytes = fs::read(&path).unwrap();
        let none = |_: &InstanceId| Ok(UpperRoots::default());
        let mut broken = bytes.clone();
        broken[10] ^= 1;
        fs::remove_file(&path).unwrap();
        if path != Metadata::path(&place.store, &env.instance) {
            let error = collect(&place.store, &options(false, &none)).unwrap_err();
            assert!(error.to_string().contains("nothing was collected"), "{error}");
        }
        fs::write(&path, &broken).unwrap();
        let error = collect(&place.store, &options(false, &none)).unwrap_err();
        assert!(error.to_string().contains("nothing was collected"), "{error}");
        fs::write(&path, &bytes).unwrap();
    }
    let failing = |_: &InstanceId| Err(StoreError::Invalid("torn".to_owned()));
    assert!(collect(&place.store, &options(false, &failing)).is_err());
    assert!(place.is_whole(gone));
    place.collect();
    assert!(!place.is_whole(gone));
}

/// Marks are compact, so garbage may seem to be needed, but what is needed must never seem to be garbage.
#[test]
fn marks_with_little_room_take_nothing_that_is_needed() {
    let place = Place::new();
    let files: Vec<_> =
        (0..800).map(|number| (format!("d{}/f{number}", number % 7), number.to_string())).collect();
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
    let kept = place.import(&files);
    let (_, base) = place.layer(kept, 1, None);
    metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let gone: Vec<_> = (0..20u8).map(|number| place.import(&[("f", &[b'x', number])])).collect();
    let before = place.objects();
    let none = |_: &InstanceId| Ok(UpperRoots::default());
    let run = |marks, dry_run| collect_with(marks, &place.store, &options(dry_run, &none)).unwrap();
    // With a single block, all its bits end up set, and everything seems marked.
    assert_eq!(run(Marks::with(1, u64::MAX), false), GcReport::default());
    assert_eq!(place.objects(), before);
    // With many small sets some garbage stays, the same in a dry run as in a run.
    let said = run(Marks::with(1, 100), true);
    assert_eq!(run(Marks::with(1, 100), false), said);
    assert!((1..60).contains(&said.objects), "{said:?}");
    assert!(place.is_whole(kept));
    place.collect();
    assert!(place.is_whole(kept) && !gone.iter().any(|root| place.is_whole(*root)));
}

#[test]
fn staging_of_dead_processes_is_removed_and_of_living_ones_kept() {
    let place = Place::new();
    let mut living = Batch::new(&place.store).unwrap();
    living.put(b"living").unwrap();
    let dead = place.store.layout().staging().join("dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("0"), [0; 1000]).unwrap();
    let report = place.collect();
    assert!(report.bytes >= 1000);
    assert_eq!(report, GcReport { staging: 1, bytes: report.bytes, ..GcReport::default() });
    assert_eq!(living.commit().unwrap().objects, 1);
}

#[test]
fn records_are_written_while_a_dry_run_looks() {
    let place = Place::new();
    let path = place.store.layout().metadata().join("0".repeat(32));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..500 {
                place.store.files().write(&path, b"{}").unwrap();
            }
        });
        while !writer.is_finished() {
            let options = options(true, &|_| Ok(UpperRoots::default()));
            let mut sweep =
                Sweep { start: next_time(&place.store).unwrap(), options, report: GcReport::default() };
            sweep.unfinished(&place.store).unwrap();
        }
    });
}

#[test]
fn a_dry_run_shares_the_store() {
    let place = Place::new();
    let _held = StoreLock::shared(&place.store).unwrap();
    let none = |_: &InstanceId| Ok(UpperRoots::default());
    collect(&place.store, &options(true, &none)).unwrap();
}

#[test]
fn objects_stored_again_after_the_start_are_kept() {
    let place = Place::new();
    let root = place.import(&[("f", b"old")]);
    let content = ObjectId::of(b"old");
    // Between the marking, which no longer reaches it, and the sweep, another operation finds the object
    // instead of writing it.
    let met = std::cell::Cell::new(false);
    let uppers = |_: &InstanceId| Ok(UpperRoots::default());
    let (_, base) = place.layer(place.import(&[("g", b"kept")]), 1, None);
    metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let cancelled = || {
        if !met.replace(true) {
            let mut batch = Batch::new(&place.store).unwrap();
            assert_eq!(batch.put(b"old").unwrap(), content);
            assert_eq!(batch.commit().unwrap().objects, 0);
        }
        false
    };
    let report =
        collect(&place.store, &GcOptions { dry_run: false, uppers: &uppers, cancelled: &cancelled }).unwrap();
    assert!(met.get() && report.objects > 0, "{report:?}");
    assert!(place.store.objects().contains(&content));
    assert!(!place.is_whole(root));
    place.collect();
    assert!(!place.store.objects().contains(&content));
}

#[test]
fn a_cancelled_collection_leaves_an_intact_store() {
    let place = Place::new();
    let kept = place.import(&[("g", b"kept")]);
    let (_, base) = place.layer(kept, 1, None);
    metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    for i in 0..20u8 {
        place.import(&[("f", &[i])]);
    }
    let before = place.objects();
    let calls = std::cell::Cell::new(0);
    let cancelled = || calls.replace(calls.get() + 1) > 10;
    let none = |_: &InstanceId| Ok(UpperRoots::default());
    let result = collect(&place.store, &GcOptions { dry_run: false, uppers: &none, cancelled: &cancelled });
    assert!(matches!(result, Err(StoreError::Cancelled)));
    assert!(place.objects() < before && place.is_whole(kept));
    assert!(place.collect().objects > 0);
}

#[test]
fn the_bytes_are_those_that_du_counts() {
    let place = Place::new();
    let used = || {
        let du =
            std::process::Command::new("du").arg("-s").arg("--block-size=1").arg(place.dir.path()).output();
        let text = String::from_utf8(du.unwrap().stdout).unwrap();
        text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    // This run makes the lock files.
    place.collect();
    place.import(&[("f", b"x"), ("big", BIG)]);
    let before = used();
    let report = place.collect();
    // The size of directories does not change.
    assert_eq!(before - used(), report.bytes);
}

#[test]
fn one_collection_at_a_time_and_others_may_work_beside_it() {
    let place = Place::new();
    let (_, base) = place.layer(place.import(&[("g", b"kept")]), 1, None);
    metadata::tests::saved(&place.store, "env", &"ab".repeat(32), base);
    let none = |_: &InstanceId| Ok(UpperRoots::default());
    let uppers = |_: &InstanceId| {
        let _beside = StoreLock::try_shared(&place.store).unwrap();
        assert!(matches!(collect(&place.store, &options(false, &none)), Err(StoreError::Locked { .. })));
        Ok(UpperRoots::default())
    };
    collect(&place.store, &options(false, &uppers)).unwrap();
}
