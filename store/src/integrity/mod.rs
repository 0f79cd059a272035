//! Verifies a store (every byte against its name, every reference against its target), and repairs what can
//! be repaired.
//!
//! [`verify`] checks everything and returns findings (`finding`): `places` checks which files are where,
//! `content` and `sizes` the bytes of files; `affected` then determines what needs the damaged objects.
//! [`repair`] works on these findings. [`place_of`] looks up one object. References are followed by
//! `reach`, as for gc.

mod affected;
mod content;
mod finding;
mod place;
mod places;
pub mod repair;
mod sizes;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::retry_on_intr;

use crate::content::FileContent;
use crate::error::{IoContext, Result, StoreError};
use crate::id::{InstanceId, ObjectId, RecordId};
use crate::layer::{LayerKind, LayerRecord};
use crate::lock::StoreLock;
use crate::marks::Marks;
use crate::metadata::Metadata;
use crate::object::Shard;
use crate::open::Store;
use crate::progress::Progress;
use crate::reach::{Fault, Met, Reach, UpperRoots, Watch};
use crate::{files, pins, wal};

pub use finding::{Finding, Kind};
pub use place::place_of;
pub(crate) use places::is_orphan;
use sizes::Sizes;

/// The state of an environment's upper. The `fs` crate reads uppers, so the caller passes this.
#[derive(Debug, Default, Clone)]
pub struct UpperState {
    /// What the upper refers to.
    pub roots: UpperRoots,
    /// Faulty data files: the kind of fault, the file, and what is wrong with it.
    pub faults: Vec<(Kind, PathBuf, String)>,
}

impl UpperState {
    fn start(&self, reach: &mut Reach, by: &Rc<str>) {
        self.roots.roots.iter().for_each(|root| reach.root(*root, by));
        self.roots.trees.iter().for_each(|tree| reach.tree(*tree, by));
        self.roots.objects.iter().for_each(|object| reach.object(*object, by));
    }
}

/// Inspects the upper of an environment; empty when it has none.
pub type UpperStateOf<'a> = &'a dyn Fn(&InstanceId) -> Result<UpperState>;

/// The result of a verification.
#[derive(Debug, Default, Clone)]
pub struct Verified {
    /// The findings, in no particular order.
    pub findings: Vec<Finding>,
    /// How many objects were read.
    pub objects: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Verifies everything: every object's bytes, every record, every tree, every reference down to the objects,
/// uppers, pins and intents, and looks for files that do not belong. Reads the whole store; `progress` is
/// told of bytes and objects.
///
/// Holds the store's lock shared, so a collection waits; commands and mounts continue.
///
/// # Errors
/// Only if the check itself cannot continue: damage is reported in the findings.
pub fn verify(store: &Arc<Store>, uppers: UpperStateOf<'_>, progress: &dyn Progress) -> Result<Verified> {
    let _lock = StoreLock::shared(store)?;
    let mut check = Check::new(store);
    check.places()?;
    check.objects(progress)?;
    check.layers()?;
    let mut reach = Reach::new(store.clone());
    let (environments, states) = check.environments(&mut reach, uppers)?;
    check.held(&mut reach)?;
    reach.run(&mut check)?;
    check.orphans()?;
    check.name_affected(&environments, &states)?;
    Ok(Verified { findings: check.findings, objects: check.objects, bytes: check.bytes })
}

struct Check<'a> {
    store: &'a Store,
    shared: &'a Arc<Store>,
    sizes: Sizes,
    /// The objects that were read, their number and their size in bytes.
    read: Marks,
    objects: u64,
    bytes: u64,
    /// The objects that something refers to, and how many of them were read.
    marked: Marks,
    needed: u64,
    /// Those of them that are missing.
    missing: HashSet<ObjectId>,
    /// Whether a promised tree could not be fetched, so that what it refers to is unknown.
    is_partial: bool,
    /// Contents that need no second check, by a hash of their description: those with a block list, and those
    /// found wrong.
    contents: HashSet<ObjectId>,
    /// The user that owns the store.
    owner: u32,
    findings: Vec<Finding>,
    /// The findings about an object, or about the content with this hash: indexes into `findings`.
    by_object: HashMap<ObjectId, Vec<usize>>,
    /// The same for layer records.
    by_record: HashMap<RecordId, usize>,
}

impl<'a> Check<'a> {
    fn new(store: &'a Arc<Store>) -> Check<'a> {
        Check {
            store,
            shared: store,
            sizes: Sizes::new(store.objects()),
            read: Marks::new(),
            objects: 0,
            bytes: 0,
            marked: Marks::new(),
            needed: 0,
            missing: HashSet::new(),
            is_partial: false,
            contents: HashSet::new(),
            owner: 0,
            findings: Vec::new(),
            by_object: HashMap::new(),
            by_record: HashMap::new(),
        }
    }
}

impl Check<'_> {
    /// Adds a finding about an object.
    fn found(&mut self, id: ObjectId, finding: Finding) {
        self.by_object.entry(id).or_default().push(self.findings.len());
        self.findings.push(finding.object(id));
    }

    fn objects(&mut self, progress: &dyn Progress) -> Result<()> {
        let mut buf = vec![0; 1 << 20];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut shards = self.store.objects().shards()?;
        std::mem::take(&mut shards.strays).into_iter().for_each(|path| self.stray(path));
        for shard in shards {
            let Shard { dir, objects, strays } = shard?;
            strays.into_iter().for_each(|path| self.stray(path));
            // Opened by name in an open directory: resolving the whole path for each file costs as much as
            // reading a small object.
            let dir = self.store.files().open_dir(&dir).at("open", &dir)?;
            for (id, path) in objects {
                self.look_at_object(&dir, &path)?;
                let name = files::name(&path).unwrap_or_default();
                let file = retry_on_intr(|| openat(&dir, name, flags, Mode::empty()));
                let size = match file.map_err(io::Error::from).and_then(|file| hash(file.into(), &mut buf)) {
                    Ok((size, found)) => {
                        progress.add(size, 1);
                        if found != id {
                            let message = format!("object {id}: its bytes do not match its name");
                            self.found(id, Finding::new(Kind::CorruptObject, message).file(&path));
                        }
                        size
                    }
                    Err(error) => {
                        let message = format!("object {id} cannot be read: {error}");
                        self.found(id, Finding::new(Kind::CorruptObject, message).file(&path));
                        path.symlink_metadata().map_or(0, |metadata| metadata.len())
                    }
                };
                self.read.insert(&id);
                self.objects += 1;
                self.bytes += size;
            }
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<()> {
        for path in self.store.files().list_if_there(&self.store.layout().layers())? {
            let Some(id) = files::name(&path).and_then(|name| name.parse::<RecordId>().ok()) else {
                self.stray(path);
                continue;
            };
            let reason = match LayerRecord::read(self.store, &id) {
                Ok(record) => {
                    let plain = matches!(record.kind, LayerKind::Base | LayerKind::Dependency);
                    if !plain || record.hash.as_bytes() == record.tar_hash.as_bytes() {
                        continue;
                    }
                    "its hash differs from its tar hash".to_owned()
                }
                Err(StoreError::Missing { .. }) => continue,
                Err(StoreError::Corrupt { reason, .. }) => reason,
                Err(error) => error.to_string(),
            };
            let finding = Finding::new(Kind::CorruptLayer, format!("layer record {id}: {reason}"));
            self.by_record.insert(id, self.findings.len());
            self.findings.push(finding.object(id).file(&path));
        }
        Ok(())
    }

    /// Checks environment records and uppers. Returns the environments that can be read, and the uppers by
    /// environment name.
    fn environments(
        &mut self,
        reach: &mut Reach,
        uppers: UpperStateOf<'_>,
    ) -> Result<(Vec<Metadata>, HashMap<String, UpperState>)> {
        let (mut environments, mut states) = (Vec::new(), HashMap::new());
        for path in self.store.files().list_if_there(&Metadata::dir(self.store))? {
            let Some(instance) = files::name(&path).and_then(|name| name.parse::<InstanceId>().ok()) else {
                self.stray(path);
                continue;
            };
            let mut name = instance.to_hex();
            match Metadata::load(self.store, &instance) {
                Ok(metadata) => {
                    self.environment(&metadata, reach);
                    name.clone_from(&metadata.name);
                    environments.push(metadata);
                }
                Err(StoreError::Missing { .. }) => continue,
                Err(error) => {
                    let finding = Finding::new(
                        Kind::CorruptEnvironment,
                        format!(
                            "environment record {instance}: {error}; gc removes nothing until it can be read or is gone"
                        ),
                    );
                    self.findings.push(finding.object(instance).file(&path).environment(&name));
                }
            }
            let upper_dir = self.store.upper_dir(&instance);
            match uppers(&instance) {
                Ok(state) => {
                    for (kind, file, reason) in &state.faults {
                        let message = format!(
                            "uncommitted changes of environment {name}: {}: {reason}",
                            file.display()
                        );
                        let finding = Finding::new(*kind, message).object(instance).file(file);
                        self.findings.push(finding.environment(&name));
                    }
                    state.start(reach, &Rc::from(format!("the uncommitted changes of environment {name}")));
                    states.insert(name, state);
                }
                // The environment was removed meanwhile.
                Err(_) if !path.exists() => {}
                Err(error) => {
                    let message = format!("uncommitted changes of environment {name}: {error}");
                    let finding = Finding::new(Kind::CorruptUpper, message).object(instance).file(&upper_dir);
                    self.findings.push(finding.environment(&name));
                }
            }
        }
        Ok((environments, states))
    }

    fn environment(&mut self, metadata: &Metadata, reach: &mut Reach) {
        for (what, hash, id) in metadata.layers() {
            let from = format!("{what} of environment {}", metadata.name);
            let reason = match LayerRecord::read(self.store, &id) {
                Ok(record) => {
                    let by = Rc::from(from.as_str());
                    reach.root(record.tree, &by);
                    record.object_refs.iter().for_each(|object| reach.object(*object, &by));
                    if record.hash == hash {
                        continue;
                    }
                    format!("that record describes layer {}, not {hash}", record.hash)
                }
                Err(error) => match self.by_record.get(&id) {
                    Some(index) => {
                        let finding = &mut self.findings[*index];
                        if !finding.environments.contains(&metadata.name) {
                            finding.environments.push(metadata.name.clone());
                        }
                        let layer = what.trim_start_matches("the ").trim_start_matches("snapshot ");
                        finding.affected.push(format!("{}@{layer}", metadata.name));
                        continue;
                    }
                    None => error.to_string(),
                },
            };
            let finding =
                Finding::new(Kind::BadReference, format!("{from} refers to layer record {id}: {reason}"));
            self.findings.push(finding.object(id).environment(&metadata.name));
        }
    }

    /// Checks the pins of live processes, and the intents of operations.
    fn held(&mut self, reach: &mut Reach) -> Result<()> {
        let by = Rc::from("the pin of a running mount");
        let (pinned, unreadable) = pins::read(self.store)?;
        pinned.roots.into_iter().for_each(|root| reach.root(root, &by));
        pinned.objects.into_iter().for_each(|object| reach.object(object, &by));
        for (path, reason) in unreadable {
            let message = format!("the pin {} cannot be read: {reason}", path.display());
            self.findings.push(Finding::new(Kind::CorruptPin, message).file(&path));
        }
        for (path, reason) in wal::read(self.store)?.1 {
            let message = format!("the intent {} cannot be read: {reason}", path.display());
            self.findings.push(Finding::new(Kind::CorruptIntent, message).file(&path));
        }
        Ok(())
    }

    /// Records that something refers to an object.
    fn mark(&mut self, id: &ObjectId) {
        if self.marked.insert(id) && self.read.contains(id) {
            self.needed += 1;
        }
    }

    /// Reports unreferenced objects that existed at the start: newer ones may get a reference later.
    fn orphans(&mut self) -> Result<()> {
        if self.needed == self.objects || self.is_partial {
            return Ok(());
        }
        let (mut objects, mut bytes) = (0, 0);
        for shard in self.store.objects().shards()? {
            for (id, path) in shard?.objects {
                if self.read.contains(&id) && !self.marked.contains(&id) {
                    objects += 1;
                    bytes += path.symlink_metadata().map_or(0, |metadata| metadata.len());
                }
            }
        }
        if objects > 0 {
            let message =
                format!("{objects} objects ({bytes} bytes) that nothing refers to: `karapace gc` frees them");
            self.findings.push(Finding::new(Kind::Orphans, message));
        }
        Ok(())
    }

    /// An object's size in bytes; `None` when it is neither present nor promised.
    fn size(&mut self, id: &ObjectId) -> Option<u64> {
        self.sizes.of(id).or_else(|| self.store.objects().promised(id))
    }

    fn missing(&mut self, id: ObjectId, by: &Met) {
        self.missing.insert(id);
        let message = format!("object {id} is missing; {by} refers to it");
        self.found(id, Finding::new(Kind::MissingObject, message).path(by.path()));
    }
}

impl Watch for Check<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        let (id, by) = (fault.id, fault.by);
        let reason = match fault.error {
            StoreError::Corrupt { reason, .. } if self.size(&id).is_some() => reason,
            // A quarantined object can still be opened, and is found corrupt there.
            StoreError::Missing { .. } | StoreError::Corrupt { .. } => {
                self.missing(id, &by);
                return Ok(());
            }
            // The supply cannot provide it at the moment, which is not damage.
            _ if self.store.objects().is_elsewhere(&id) => {
                self.is_partial = true;
                return Ok(());
            }
            error => error.to_string(),
        };
        let message = format!("tree {id} of {by} is unreadable: {reason}");
        // The object may have been found corrupt already; what refers to it says more.
        match self.by_object.get(&id).and_then(|found| found.first()) {
            Some(index) if self.findings[*index].kind == Kind::CorruptObject => {
                let finding = &mut self.findings[*index];
                (finding.kind, finding.message, finding.path) = (Kind::CorruptTree, message, by.path());
            }
            Some(_) => {}
            None => self.found(id, Finding::new(Kind::CorruptTree, message).path(by.path())),
        }
        Ok(())
    }

    fn opened(&mut self, id: &ObjectId) {
        self.mark(id);
    }

    fn object(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) -> Result<()> {
        self.mark(id);
        if self.size(id).is_none() && !self.missing.contains(id) {
            self.missing(*id, &by());
        }
        Ok(())
    }

    fn file(&mut self, content: &FileContent, by: &dyn Fn() -> Met) -> Result<()> {
        // Checking a plain content again costs less than remembering that it was checked.
        if !content.is_plain() && !self.is_first(content) {
            return Ok(());
        }
        if let Some(reason) = self.content(content)?
            && (!content.is_plain() || self.is_first(content))
        {
            let by = by();
            let message = format!("{by} refers to content {}: {reason}", content.hash);
            self.found(content.hash, Finding::new(Kind::BadReference, message).path(by.path()));
        }
        Ok(())
    }
}

/// The number of bytes left in a file, and their hash.
fn hash(mut file: File, buf: &mut [u8]) -> io::Result<(u64, ObjectId)> {
    let mut hasher = blake3::Hasher::new();
    loop {
        match file.read(buf) {
            Ok(0) => return Ok((hasher.count(), hasher.finalize().into())),
            Ok(got) => {
                hasher.update(&buf[..got]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
