//! Collection: what nobody refers to goes.
//!
//! Marks from every environment's base, head and snapshots, from uppers, pins and operations under way; sweeps by scanning the
//! disk. It refuses, and deletes nothing, when any of what it must follow cannot be read: an unreadable tree could
//! refer to anything. Records on the way down a marked layer's parents are kept; their trees only if something above refers to them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::atomic::{TEMP_PREFIX, fsync_dir};
use crate::error::{IoContext, Result, StoreError};
use crate::fail;
use crate::id::{InstanceId, LayerHash, ObjectId, RecordId};
use crate::inode::Timestamp;
use crate::layer::LayerRecord;
use crate::lock::StoreLock;
use crate::metadata::Metadata;
use crate::open::Store;
use crate::reach::{Fault, Reach, Watch};
use crate::{files, pins, staging, wal};

/// What an upper on disk refers to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UpperRoots {
    /// Root objects: the head it stands on, and any other it needs.
    pub roots: Vec<ObjectId>,
    /// Directory listings that its own directories lie over; followed downwards.
    pub trees: Vec<ObjectId>,
    /// Content objects, and block lists, that its own inodes refer to.
    pub objects: Vec<ObjectId>,
}

/// Says what the upper of an environment refers to; nothing when it has none. It belongs to the file system, so the caller gives it.
pub type UpperRootsOf<'a> = &'a dyn Fn(&InstanceId) -> Result<UpperRoots>;

/// How to collect.
#[derive(Clone, Copy)]
pub struct GcOptions<'a> {
    /// Only say what would go.
    pub dry_run: bool,
    /// Reads uppers.
    pub uppers: UpperRootsOf<'a>,
}

/// What went, or would go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GcReport {
    /// Objects.
    pub objects: u64,
    /// Their sizes and those of layer records and staged files, in bytes.
    pub bytes: u64,
    /// Layer records.
    pub layers: u64,
    /// Staging directories and unfinished files of dead operations.
    pub staging: u64,
}

/// Frees what nobody refers to. A run frees exactly what a dry run just before it says.
///
/// Takes the store's lock, exclusively unless it is a dry run: the caller must not hold it.
///
/// # Errors
/// Any record, layer or tree that cannot be read stops the collection before the first deletion.
pub fn collect(store: &Arc<Store>, options: &GcOptions<'_>) -> Result<GcReport> {
    let _lock = if options.dry_run { StoreLock::shared(store)? } else { StoreLock::exclusive(store)? };
    let start = Timestamp::now();
    fail::point("gc.mark").at("read", store.layout().objects())?;
    let marked = mark(store, options.uppers)?;
    let mut sweep = Sweep { start, dry_run: options.dry_run, report: GcReport::default() };
    // Layers first: a crash in between leaves no record whose tree is gone.
    sweep.layers(store, &marked.records)?;
    fail::point("gc.sweep-objects").at("list", store.layout().objects())?;
    sweep.objects(store, &marked.objects)?;
    sweep.unfinished(store)?;
    fail::point("gc.sweep-staging").at("list", &store.layout().staging())?;
    let swept = staging::sweep(store.layout(), options.dry_run)?;
    sweep.report.staging += swept.batches;
    sweep.report.bytes += swept.bytes;
    Ok(sweep.report)
}

struct Marked {
    records: HashSet<RecordId>,
    objects: HashSet<ObjectId>,
}

fn mark(store: &Arc<Store>, uppers: UpperRootsOf<'_>) -> Result<Marked> {
    let mut by_hash: HashMap<LayerHash, Vec<RecordId>> = HashMap::new();
    let mut layers: HashMap<RecordId, LayerRecord> = HashMap::new();
    for id in LayerRecord::list(store)? {
        let record = LayerRecord::read(store, &id).map_err(refuse)?;
        by_hash.entry(record.hash).or_default().push(id);
        layers.insert(id, record);
    }
    let mut records = HashSet::new();
    let mut reach = Reach::new(store.clone());
    let mut instances = Metadata::instances(store)?;
    for instance in &instances {
        let metadata = Metadata::load(store, instance).map_err(refuse)?;
        for (what, _, id) in metadata.layers() {
            let by = Rc::from(format!("{what} of environment {}", metadata.name));
            let record =
                layers.get(&id).ok_or_else(|| refuse(format!("layer record {id}, {by}, is missing")))?;
            if records.insert(id) {
                reach.root(record.tree, &by);
                record.object_refs.iter().for_each(|object| reach.object(*object, &by));
            }
        }
    }
    keep_parents(&mut records, &layers, &by_hash);
    instances.extend(wal::instances(store.layout())?);
    instances.sort_unstable();
    instances.dedup();
    for instance in &instances {
        let by = Rc::from(format!("the uncommitted changes of environment {instance}"));
        let upper = uppers(instance).map_err(|error| refuse(format!("reading {by} failed: {error}")))?;
        upper.roots.iter().for_each(|root| reach.root(*root, &by));
        upper.trees.iter().for_each(|tree| reach.tree(*tree, &by));
        upper.objects.iter().for_each(|object| reach.object(*object, &by));
    }
    let by = Rc::from("the pin of a running mount");
    pins::live(store.layout())?.into_iter().for_each(|root| reach.root(root, &by));
    let objects = reach.run(&mut Strict)?;
    Ok(Marked { records, objects })
}

/// Adds the records on the way down from marked ones to their bases, so that a chain can be followed. Not their trees.
fn keep_parents(
    records: &mut HashSet<RecordId>,
    layers: &HashMap<RecordId, LayerRecord>,
    by_hash: &HashMap<LayerHash, Vec<RecordId>>,
) {
    let mut todo: Vec<RecordId> = records.iter().copied().collect();
    while let Some(id) = todo.pop() {
        let parent = layers.get(&id).and_then(|record| record.parent);
        for parent in parent.and_then(|hash| by_hash.get(&hash)).into_iter().flatten() {
            if records.insert(*parent) {
                todo.push(*parent);
            }
        }
    }
}

fn refuse(why: impl std::fmt::Display) -> StoreError {
    StoreError::Invalid(format!("nothing was collected: {why}"))
}

/// Whatever cannot be read ends the collection.
struct Strict;

impl Watch for Strict {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        Err(refuse(format!("{} refers to {}: {}", fault.by, fault.id, fault.error)))
    }
}

struct Sweep {
    start: Timestamp,
    dry_run: bool,
    report: GcReport,
}

impl Sweep {
    fn layers(&mut self, store: &Store, marked: &HashSet<RecordId>) -> Result<()> {
        let dir = store.layout().layers();
        let gone: Vec<PathBuf> = LayerRecord::list(store)?
            .iter()
            .filter(|id| !marked.contains(id))
            .map(|id| store.layout().layer(id))
            .collect();
        self.report.layers += self.remove(&dir, &gone, self.start)?;
        Ok(())
    }

    fn objects(&mut self, store: &Store, marked: &HashSet<ObjectId>) -> Result<()> {
        for dir in files::list(store.layout().objects())? {
            // What is no object is left for verify-store to report.
            if !dir.is_dir() {
                continue;
            }
            let mut gone = files::list(&dir)?;
            gone.retain(|path| files::object_id(path).is_some_and(|id| !marked.contains(&id)));
            self.report.objects += self.remove(&dir, &gone, self.start)?;
        }
        Ok(())
    }

    /// Records that a crash left half-written. One that is being written is minutes old at most.
    fn unfinished(&mut self, store: &Store) -> Result<()> {
        let old = Timestamp { secs: self.start.secs - 3600, ..self.start };
        for dir in [store.layout().layers(), store.layout().metadata()] {
            let mut gone = files::list(&dir)?;
            gone.retain(|path| files::name(path).is_some_and(|name| name.starts_with(TEMP_PREFIX)));
            self.report.staging += self.remove(&dir, &gone, old)?;
        }
        Ok(())
    }

    /// Removes files of one directory, but what is newer than `limit`; counts them.
    fn remove(&mut self, dir: &Path, paths: &[PathBuf], limit: Timestamp) -> Result<u64> {
        let mut removed = 0;
        for path in paths {
            let metadata = match fs::symlink_metadata(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.at("read", path)?,
            };
            // The change time: unlike mtime nobody can set it, so an adopted file counts from its adoption.
            let changed = Timestamp { secs: metadata.ctime(), nanos: metadata.ctime_nsec() as u32 };
            if changed > limit {
                continue;
            }
            if !self.dry_run {
                fail::point("gc.remove").and_then(|()| fs::remove_file(path)).at("remove", path)?;
            }
            removed += 1;
            self.report.bytes += metadata.len();
        }
        if removed > 0 && !self.dry_run {
            fsync_dir(dir)?;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{NoProgress, import_path};
    use crate::layer::tests::base;
    use crate::lock::StoreLock;
    use crate::metadata::{self, SnapshotEntry};
    use crate::object::Batch;
    use crate::pins::Pin;
    use crate::tree::Trees;

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
            let objects = files::list(self.store.layout().objects()).unwrap();
            objects.iter().map(|dir| files::list(dir).unwrap().len()).sum()
        }

        /// A dry run, then a run that must do what it said.
        fn collect(&self) -> GcReport {
            let none = |_: &InstanceId| Ok(UpperRoots::default());
            self.collect_with(&none)
        }

        fn collect_with(&self, uppers: UpperRootsOf<'_>) -> GcReport {
            let before = self.objects();
            let said = collect(&self.store, &GcOptions { dry_run: true, uppers }).unwrap();
            assert_eq!(self.objects(), before);
            let done = collect(&self.store, &GcOptions { dry_run: false, uppers }).unwrap();
            assert_eq!(said, done);
            assert_eq!(self.objects() as u64, before as u64 - done.objects);
            assert_eq!(
                collect(&self.store, &GcOptions { dry_run: false, uppers }).unwrap(),
                GcReport::default()
            );
            done
        }

        /// Whether a tree is there whole.
        fn is_whole(&self, root: ObjectId) -> bool {
            struct Whole<'a>(&'a Store, bool);
            impl Watch for Whole<'_> {
                fn fault(&mut self, _: Fault) -> Result<()> {
                    self.1 = false;
                    Ok(())
                }
                fn object(&mut self, id: &ObjectId, _: &dyn Fn() -> String) -> Result<()> {
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
        let (pinned, upper) =
            (place.import(&[("f", b"pinned")]), place.import(&[("f", b"upper"), ("g", BIG)]));
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

    /// A file may hold the very bytes of a tree: met as content first, the tree must still be followed.
    #[test]
    fn a_file_with_a_trees_bytes_hides_nothing() {
        let place = Place::new();
        let inner = place.import(&[("deep/er/f", b"inner")]);
        let trees = Trees::new(place.store.clone());
        let tree = *trees.root(&inner).unwrap().tree().unwrap();
        let bytes = place.store.objects().read(&tree, 1 << 20).unwrap();
        let outer =
            place.import(&[("a", &bytes), ("z", &place.store.objects().read(&inner, 1 << 20).unwrap())]);
        let (_, outer_record) = place.layer(outer, 1, None);
        let (_, inner_record) = place.layer(inner, 1, Some(9));
        metadata::tests::saved(&place.store, "one", &"ab".repeat(32), outer_record);
        metadata::tests::saved(&place.store, "two", &"cd".repeat(32), inner_record);
        assert_eq!(place.collect().objects, 0);
        assert!(place.is_whole(inner));
    }

    #[test]
    fn it_refuses_when_something_cannot_be_read() {
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
                let error = collect(&place.store, &GcOptions { dry_run: false, uppers: &none }).unwrap_err();
                assert!(error.to_string().contains("nothing was collected"), "{error}");
            }
            fs::write(&path, &broken).unwrap();
            let error = collect(&place.store, &GcOptions { dry_run: false, uppers: &none }).unwrap_err();
            assert!(error.to_string().contains("nothing was collected"), "{error}");
            fs::write(&path, &bytes).unwrap();
        }
        let failing = |_: &InstanceId| Err(StoreError::Invalid("torn".to_owned()));
        assert!(collect(&place.store, &GcOptions { dry_run: false, uppers: &failing }).is_err());
        assert!(place.is_whole(gone));
        place.collect();
        assert!(!place.is_whole(gone));
    }

    #[test]
    fn dead_staging_goes_and_living_stays() {
        let place = Place::new();
        let mut living = Batch::new(&place.store).unwrap();
        living.put(b"living").unwrap();
        let dead = place.store.layout().staging().join("dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("0"), [0; 1000]).unwrap();
        let report = place.collect();
        assert_eq!(report, GcReport { staging: 1, bytes: 1000, ..GcReport::default() });
        assert_eq!(living.commit().unwrap().objects, 1);
    }

    #[test]
    fn a_dry_run_shares_the_store() {
        let place = Place::new();
        let _held = StoreLock::shared(&place.store).unwrap();
        let none = |_: &InstanceId| Ok(UpperRoots::default());
        collect(&place.store, &GcOptions { dry_run: true, uppers: &none }).unwrap();
    }
}
