//! Collection: deletes what nothing refers to.
//!
//! The mark phase starts from every environment's base, head and snapshots, from uppers, pins and running
//! operations; the sweep scans the disk. If anything that must be followed cannot be read, gc refuses and
//! deletes nothing: an unreadable tree could refer to anything. The set of marks is compact (`marks.rs`) and
//! may have false positives, so some garbage may survive a run, but nothing referenced is ever deleted. The
//! records of a marked layer's ancestors are kept; their trees only if something else refers to them.
//!
//! Other processes work meanwhile: gc holds the store's lock exclusively only for a moment at the start and
//! for each directory of the sweep. An object that gets a reference after the start is either reachable from
//! what was marked, or has been written or refreshed since ([`crate::object::Objects::refresh`]), which its
//! change time shows; the sweep spares everything that changed since the start.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::error::{IoContext, Result, StoreError};
use crate::fail;
use crate::files::TEMP_PREFIX;
use crate::id::{InstanceId, LayerHash, ObjectId, RecordId};
use crate::inode::Timestamp;
use crate::layer::LayerRecord;
use crate::lock::{CollectionLock, StoreLock};
use crate::marks::Marks;
use crate::metadata::Metadata;
use crate::object::Shard;
use crate::open::Store;
pub use crate::reach::UpperRoots;
use crate::reach::{Fault, Met, Reach, Watch};
use crate::wait::Deadline;
use crate::{files, integrity, pins, staging, wal};

/// Returns what an environment's upper refers to; nothing if it has no upper. The `fs` crate reads uppers, so
/// the caller passes this.
pub type UpperRootsOf<'a> = &'a dyn Fn(&InstanceId) -> Result<UpperRoots>;

/// How to collect.
#[derive(Clone, Copy)]
pub struct GcOptions<'a> {
    /// Only report what would be deleted.
    pub dry_run: bool,
    /// Reads uppers.
    pub uppers: UpperRootsOf<'a>,
    /// Polled during the run; once it returns true, the collection ends with [`StoreError::Cancelled`].
    pub cancelled: &'a dyn Fn() -> bool,
}

/// What was deleted, or would be.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct GcReport {
    /// Objects.
    pub objects: u64,
    /// Disk space in bytes of the objects, layer records and staged files, as `du` counts it.
    pub bytes: u64,
    /// Layer records.
    pub layers: u64,
    /// Staging directories and unfinished files of dead operations.
    pub staging: u64,
}

/// Deletes what nothing refers to. A run deletes exactly what a dry run just before it reports, if nothing
/// else uses the store in between.
///
/// Takes the store's lock, shared and for moments exclusively; the caller must not hold it.
///
/// # Errors
/// Any record, layer or tree that cannot be read stops the collection before the first deletion.
/// [`StoreError::Locked`] while another collection runs. What was removed before an error stays removed.
pub fn collect(store: &Arc<Store>, options: &GcOptions<'_>) -> Result<GcReport> {
    collect_with(Marks::new(), store, options)
}

/// [`collect`], with the set that objects are marked in.
fn collect_with(marks: Marks, store: &Arc<Store>, options: &GcOptions<'_>) -> Result<GcReport> {
    let _only = if options.dry_run { None } else { Some(CollectionLock::try_acquire(store)?) };
    let start = {
        // With the exclusive lock, every running operation has finished: what it wrote is referred to.
        let _alone = lock(store, options)?;
        next_time(store)?
    };
    fail::point("gc.mark").at("read", store.objects().dir())?;
    let marked = {
        let _shared = StoreLock::shared(store)?;
        mark(marks, store, options)?
    };
    let mut sweep = Sweep { start, options: *options, report: GcReport::default() };
    // Layers first: a crash in between leaves no record whose tree is gone.
    sweep.layers(store, &marked.records)?;
    fail::point("gc.sweep-objects").at("list", store.objects().dir())?;
    sweep.objects(store, &marked.objects)?;
    sweep.unfinished(store)?;
    fail::point("gc.sweep-staging").at("list", &store.layout().staging())?;
    let swept = staging::sweep(store, options.dry_run)?;
    sweep.report.staging += swept.batches;
    sweep.report.bytes += swept.bytes;
    Ok(sweep.report)
}

/// Takes the store's lock: shared for a dry run, else exclusive.
fn lock(store: &Store, options: &GcOptions<'_>) -> Result<StoreLock> {
    if options.dry_run { StoreLock::shared(store) } else { StoreLock::exclusive(store) }
}

/// The next timestamp that the store's file system can tell from the present one, by that file system's
/// clock, which may lag behind the system's or be another machine's.
fn next_time(store: &Store) -> Result<Timestamp> {
    if store.is_read_only() {
        return Ok(Timestamp::now());
    }
    let staging = store.layout().staging();
    let now = || -> Result<Timestamp> {
        let file = tempfile::tempfile_in(&staging).at("create a file in", &staging)?;
        Ok(change_time(&file.metadata().at("read", &staging)?))
    };
    let before = now()?;
    let wait = Deadline::never();
    loop {
        let time = now()?;
        if time != before {
            return Ok(time);
        }
        wait.pause();
    }
}

/// The change time: unlike the modification time it cannot be set, so an adopted file counts as new.
fn change_time(metadata: &fs::Metadata) -> Timestamp {
    Timestamp { secs: metadata.ctime(), nanos: metadata.ctime_nsec() as u32 }
}

struct Marked {
    records: HashSet<RecordId>,
    objects: Marks,
}

/// Marks everything reachable. Only what another operation removed during the marking may be absent.
fn mark(mut objects: Marks, store: &Arc<Store>, options: &GcOptions<'_>) -> Result<Marked> {
    let mut by_hash: HashMap<LayerHash, Vec<RecordId>> = HashMap::new();
    let mut layers: HashMap<RecordId, LayerRecord> = HashMap::new();
    for id in LayerRecord::list(store)? {
        let record = LayerRecord::read(store, &id).map_err(refuse)?;
        by_hash.entry(record.hash).or_default().push(id);
        layers.insert(id, record);
    }
    refuse_orphans(store)?;
    let mut records = HashSet::new();
    let mut reach = Reach::new(store.clone());
    let mut instances = Metadata::instances(store)?;
    for instance in &instances {
        let metadata = match Metadata::load(store, instance) {
            Err(error) if error.is_missing() => continue,
            other => other.map_err(refuse)?,
        };
        for (what, _, id) in metadata.layers() {
            if !records.insert(id) {
                continue;
            }
            let by = Rc::from(format!("{what} of environment {}", metadata.name));
            let record = match layers.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                // Written since the records were listed.
                Entry::Vacant(new) => {
                    let read = LayerRecord::read(store, &id);
                    new.insert(read.map_err(|error| refuse(format!("{by}: {error}")))?)
                }
            };
            reach.root(record.tree, &by);
            record.object_refs.iter().for_each(|object| reach.object(*object, &by));
        }
    }
    keep_parents(&mut records, &layers, &by_hash);
    instances.extend(wal::instances(store).map_err(refuse)?);
    instances.sort_unstable();
    instances.dedup();
    for instance in &instances {
        let by = Rc::from(format!("the uncommitted changes of environment {instance}"));
        let upper = match (options.uppers)(instance) {
            // It was destroyed, or is being made: then what it refers to is newer than the start.
            Err(_) if !Metadata::path(store, instance).exists() => continue,
            other => other.map_err(|error| refuse(format!("reading {by} failed: {error}")))?,
        };
        upper.roots.iter().for_each(|root| reach.root(*root, &by));
        upper.trees.iter().for_each(|tree| reach.tree(*tree, &by));
        upper.objects.iter().for_each(|object| reach.object(*object, &by));
    }
    let by = Rc::from("the pin of a running mount");
    let pinned = pins::live(store).map_err(refuse)?;
    pinned.roots.into_iter().for_each(|root| reach.root(root, &by));
    pinned.objects.into_iter().for_each(|object| reach.object(object, &by));
    reach.run(&mut Strict { cancelled: options.cancelled, objects: &mut objects })?;
    Ok(Marked { records, objects })
}

/// Refuses to collect when an environment's changes exist but its record is missing: what the record and its
/// snapshots referred to is unknown.
fn refuse_orphans(store: &Store) -> Result<()> {
    for dir in store.files().list(&store.layout().envs())? {
        let instance = files::name(&dir).and_then(|name| name.parse::<InstanceId>().ok());
        if let Some(instance) = instance
            && integrity::is_orphan(store, &instance)?
        {
            let (dir, record) = (dir.display(), Metadata::path(store, &instance));
            let record = record.display();
            return Err(refuse(format!(
                "{dir} has uncommitted changes, but the environment's record {record} is missing: restore it from a backup, or \
                 remove {dir} to give up the environment"
            )));
        }
    }
    Ok(())
}

/// Adds the ancestors' records of marked ones, down to their bases, so that a chain can be followed. Does not
/// mark their trees.
pub(crate) fn keep_parents(
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

/// Marks objects. Anything unreadable ends the collection.
struct Strict<'a> {
    cancelled: &'a dyn Fn() -> bool,
    objects: &'a mut Marks,
}

impl Watch for Strict<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        Err(refuse(format!("{} refers to {}: {}", fault.by, fault.id, fault.error)))
    }

    fn opened(&mut self, id: &ObjectId) {
        self.objects.insert(id);
    }

    fn object(&mut self, id: &ObjectId, _by: &dyn Fn() -> Met) -> Result<()> {
        self.objects.insert(id);
        if (self.cancelled)() { Err(StoreError::Cancelled) } else { Ok(()) }
    }
}

struct Sweep<'a> {
    start: Timestamp,
    options: GcOptions<'a>,
    report: GcReport,
}

impl Sweep<'_> {
    fn layers(&mut self, store: &Store, marked: &HashSet<RecordId>) -> Result<()> {
        let gone = |path: &Path| {
            let id = files::name(path).and_then(|name| name.parse::<RecordId>().ok());
            id.is_some_and(|id| !marked.contains(&id))
        };
        self.report.layers += self.directory(store, &store.layout().layers(), &gone)?;
        Ok(())
    }

    fn objects(&mut self, store: &Store, marked: &Marks) -> Result<()> {
        for shard in store.objects().shards()? {
            // Strays are left for verify-store to report.
            let Shard { dir, objects, .. } = shard?;
            let gone = objects.into_iter().filter(|(id, _)| !marked.contains(id)).map(|(_, path)| path);
            self.report.objects += self.remove(store, &dir, &gone.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Removes records that a crash left half-written. A writer holds the store's lock, so files from before
    /// the start belong to dead processes.
    fn unfinished(&mut self, store: &Store) -> Result<()> {
        let gone = |path: &Path| files::name(path).is_some_and(|name| name.starts_with(TEMP_PREFIX));
        for dir in [store.layout().layers(), Metadata::dir(store)] {
            self.report.staging += self.directory(store, &dir, &gone)?;
        }
        Ok(())
    }

    /// Removes the files of one directory for which `is_gone` holds, like [`Sweep::remove`].
    fn directory(&mut self, store: &Store, dir: &Path, is_gone: &dyn Fn(&Path) -> bool) -> Result<u64> {
        let mut gone = store.files().list(dir)?;
        gone.retain(|path| is_gone(path));
        self.remove(store, dir, &gone)
    }

    /// Removes these files of one directory, except those changed at or after the start; returns how many.
    fn remove(&mut self, store: &Store, dir: &Path, gone: &[PathBuf]) -> Result<u64> {
        if gone.is_empty() {
            return Ok(0);
        }
        // No other process may refer to a file between the check of its time and its removal.
        let _alone = lock(store, &self.options)?;
        let mut removed = 0;
        for path in gone {
            if (self.options.cancelled)() {
                return Err(StoreError::Cancelled);
            }
            let metadata = match fs::symlink_metadata(path) {
                // Its writer has given it its name since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.at("read", path)?,
            };
            if change_time(&metadata) >= self.start {
                continue;
            }
            if !self.options.dry_run {
                fail::point("gc.remove").and_then(|()| store.files().remove(path)).at("remove", path)?;
            }
            removed += 1;
            self.report.bytes += files::freed(&metadata);
        }
        if removed > 0 && !self.options.dry_run {
            store.files().sync_dir(dir)?;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests;
