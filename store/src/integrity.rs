//! Checking a store: every byte against its name, every reference against what it names.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use crate::atomic::TEMP_PREFIX;
use crate::content::{self, BLOCK, BlockList, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::gc::UpperRootsOf;
use crate::id::{InstanceId, ObjectId, RecordId};
use crate::import::Progress;
use crate::layer::{LayerKind, LayerRecord};
use crate::lock::StoreLock;
use crate::metadata::Metadata;
use crate::open::Store;
use crate::reach::{Fault, Reach, Watch};
use crate::{files, pins};

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// An object's bytes are not those its name says.
    CorruptObject {
        /// The object.
        id: ObjectId,
    },
    /// An object that something refers to is not there.
    MissingObject {
        /// The object.
        id: ObjectId,
        /// What refers to it.
        referenced_by: String,
    },
    /// A root, tree or block list cannot be read.
    CorruptTree {
        /// Its object.
        id: ObjectId,
        /// What refers to it.
        referenced_by: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer record cannot be read, or contradicts itself.
    CorruptLayer {
        /// The record.
        id: RecordId,
        /// What is wrong with it.
        reason: String,
    },
    /// An environment's record cannot be read.
    CorruptMetadata {
        /// The environment.
        instance: InstanceId,
        /// What is wrong with it.
        reason: String,
    },
    /// A reference names what is not there, or not what it should be.
    BadReference {
        /// What refers.
        from: String,
        /// To what.
        to: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What an environment has changed since its head cannot be read.
    CorruptUpper {
        /// The environment.
        instance: InstanceId,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that does not belong where it is.
    Stray {
        /// The file.
        path: PathBuf,
    },
    /// Objects that nothing refers to: no damage, a collection frees them.
    Orphans {
        /// How many.
        objects: u64,
        /// Their sizes, in bytes.
        bytes: u64,
    },
}

impl Finding {
    /// Whether something is damaged; otherwise it is only worth knowing.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Orphans { .. } | Self::Stray { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CorruptObject { id } => write!(f, "object {id}: its bytes are not those its name says"),
            Self::MissingObject { id, referenced_by } => {
                write!(f, "object {id} is missing; {referenced_by} refers to it")
            }
            Self::CorruptTree { id, referenced_by, reason } => {
                write!(f, "tree {id} of {referenced_by} is unreadable: {reason}")
            }
            Self::CorruptLayer { id, reason } => write!(f, "layer record {id}: {reason}"),
            Self::CorruptMetadata { instance, reason } => {
                write!(f, "environment record {instance}: {reason}")
            }
            Self::BadReference { from, to, reason } => write!(f, "{from} refers to {to}: {reason}"),
            Self::CorruptUpper { instance, reason } => {
                write!(f, "uncommitted changes of environment {instance}: {reason}")
            }
            Self::Stray { path } => write!(f, "{} does not belong there", path.display()),
            Self::Orphans { objects, bytes } => {
                write!(f, "{objects} objects ({bytes} bytes) that nothing refers to: gc frees them")
            }
        }
    }
}

/// Checks everything: every object's bytes, every record, every tree, every reference down to the objects, uppers and pins.
/// Reads the whole store; `progress` is told of bytes and objects. Findings are in no particular order.
///
/// Takes the store's lock shared, so a collection waits.
///
/// # Errors
/// Only what keeps it from looking: what it finds wrong is in the list.
pub fn verify(store: &Arc<Store>, uppers: UpperRootsOf<'_>, progress: &dyn Progress) -> Result<Vec<Finding>> {
    let _lock = StoreLock::shared(store)?;
    let mut check = Check { store, sizes: HashMap::new(), contents: HashSet::new(), findings: Vec::new() };
    check.objects(progress)?;
    check.layers()?;
    let mut reach = Reach::new(store.clone());
    check.environments(&mut reach, uppers)?;
    let by = Rc::from("the pin of a running mount");
    let pinned = pins::live(store.layout())?;
    pinned.roots.into_iter().for_each(|root| reach.root(root, &by));
    pinned.objects.into_iter().for_each(|object| reach.object(object, &by));
    let marked = reach.run(&mut check)?;
    check.orphans(&marked);
    Ok(check.findings)
}

struct Check<'a> {
    store: &'a Store,
    /// Sizes of the objects on disk when they were read.
    sizes: HashMap<ObjectId, u64>,
    /// Contents that have been checked, by a hash of their description.
    contents: HashSet<ObjectId>,
    findings: Vec<Finding>,
}

impl Check<'_> {
    fn objects(&mut self, progress: &dyn Progress) -> Result<()> {
        let top = self.store.layout().objects();
        let mut buf = vec![0; 1 << 20];
        for dir in files::list(top)? {
            if !dir.is_dir() {
                self.findings.push(Finding::Stray { path: dir });
                continue;
            }
            for path in files::list(&dir)? {
                let Some(id) = files::object_id(&path) else {
                    self.findings.push(Finding::Stray { path });
                    continue;
                };
                let file = self.store.objects().open(&id)?;
                let (size, hash) = hash(file, &mut buf).at("read", &path)?;
                if hash != id {
                    self.findings.push(Finding::CorruptObject { id });
                }
                self.sizes.insert(id, size);
                progress.add(size, 1);
            }
        }
        Ok(())
    }

    fn layers(&mut self) -> Result<()> {
        for path in files::list(&self.store.layout().layers())? {
            let Some(id) = files::name(&path).and_then(|name| name.parse::<RecordId>().ok()) else {
                self.stray(path);
                continue;
            };
            match LayerRecord::read(self.store, &id) {
                Ok(record) => {
                    let plain = matches!(record.kind, LayerKind::Base | LayerKind::Dependency);
                    if plain && record.hash.as_bytes() != record.tar_hash.as_bytes() {
                        let reason = "its hash is not its tar hash".to_owned();
                        self.findings.push(Finding::CorruptLayer { id, reason });
                    }
                }
                Err(StoreError::Corrupt { reason, .. }) => {
                    self.findings.push(Finding::CorruptLayer { id, reason });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn environments(&mut self, reach: &mut Reach, uppers: UpperRootsOf<'_>) -> Result<()> {
        for path in files::list(&self.store.layout().metadata())? {
            let Some(instance) = files::name(&path).and_then(|name| name.parse::<InstanceId>().ok()) else {
                self.stray(path);
                continue;
            };
            match Metadata::load(self.store, &instance) {
                Ok(metadata) => self.environment(&metadata, reach),
                Err(error @ (StoreError::Corrupt { .. } | StoreError::Version { .. })) => {
                    self.findings.push(Finding::CorruptMetadata { instance, reason: error.to_string() });
                }
                Err(error) => return Err(error),
            }
            match uppers(&instance) {
                Ok(upper) => {
                    let by = Rc::from(format!("the uncommitted changes of environment {instance}"));
                    upper.roots.into_iter().for_each(|root| reach.root(root, &by));
                    upper.trees.into_iter().for_each(|tree| reach.tree(tree, &by));
                    upper.objects.into_iter().for_each(|object| reach.object(object, &by));
                }
                Err(error) => {
                    self.findings.push(Finding::CorruptUpper { instance, reason: error.to_string() });
                }
            }
        }
        Ok(())
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
                    format!("that record is of layer {}, not {hash}", record.hash)
                }
                // The pass over the layers has reported it.
                Err(StoreError::Corrupt { .. }) => continue,
                Err(error) => error.to_string(),
            };
            self.findings.push(Finding::BadReference { from, to: format!("layer record {id}"), reason });
        }
    }

    fn orphans(&mut self, marked: &HashSet<ObjectId>) {
        let orphans = self.sizes.iter().filter(|(id, _)| !marked.contains(id));
        let (objects, bytes) = orphans.fold((0, 0), |(n, bytes), (_, size)| (n + 1, bytes + size));
        if objects > 0 {
            self.findings.push(Finding::Orphans { objects, bytes });
        }
    }

    /// Unfinished files of writers come and go.
    fn stray(&mut self, path: PathBuf) {
        if !files::name(&path).is_some_and(|name| name.starts_with(TEMP_PREFIX)) {
            self.findings.push(Finding::Stray { path });
        }
    }

    /// An object's size; one that came after the first pass is looked up.
    fn size(&self, id: &ObjectId) -> Option<u64> {
        self.sizes.get(id).copied().or_else(|| self.store.objects().size(id).ok())
    }
}

impl Watch for Check<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        let (id, referenced_by) = (fault.id, fault.by);
        self.findings.push(match fault.error {
            StoreError::Missing { .. } => Finding::MissingObject { id, referenced_by },
            StoreError::Corrupt { reason, .. } => Finding::CorruptTree { id, referenced_by, reason },
            error => return Err(error),
        });
        Ok(())
    }

    fn object(&mut self, id: &ObjectId, by: &dyn Fn() -> String) -> Result<()> {
        if self.size(id).is_none() {
            self.findings.push(Finding::MissingObject { id: *id, referenced_by: by() });
        }
        Ok(())
    }

    fn file(&mut self, content: &FileContent, by: &dyn Fn() -> String) -> Result<()> {
        let mut description = Vec::new();
        content.encode(&mut description);
        description.push(content.is_plain().into());
        if !self.contents.insert(ObjectId::of(&description)) {
            return Ok(());
        }
        if let Some(reason) = self.content(content)? {
            let to = format!("content {}", content.hash);
            self.findings.push(Finding::BadReference { from: by(), to, reason });
        }
        Ok(())
    }
}

impl Check<'_> {
    /// What is wrong with a file's extents. That an object is missing is found elsewhere.
    fn content(&self, content: &FileContent) -> Result<Option<String>> {
        for extent in content.extents() {
            let Some(size) = self.size(&extent.object) else { return Ok(None) };
            let whole = !content.is_plain() || size == content.size;
            if !whole || extent.object_offset.checked_add(extent.length).is_none_or(|end| end > size) {
                return Ok(Some(format!(
                    "object {} has {size} bytes, which is not what it needs",
                    extent.object
                )));
            }
        }
        if content.is_plain() {
            return Ok(None);
        }
        let read = self.store.objects().read(&content.hash, BlockList::max_bytes(content.size));
        let list = match read.and_then(|bytes| BlockList::decode(&bytes)) {
            Ok(list) => list,
            Err(StoreError::Missing { .. }) => return Ok(None),
            Err(StoreError::Corrupt { reason, .. }) => return Ok(Some(format!("its block list: {reason}"))),
            Err(error) => return Err(error),
        };
        self.blocks(content, &list)
    }

    /// Compares a file's blocks, as its extents give them, with its list.
    fn blocks(&self, content: &FileContent, list: &BlockList) -> Result<Option<String>> {
        if list.size() != content.size {
            return Ok(Some(format!("its block list is of a file of {} bytes", list.size())));
        }
        let mut listed = 0;
        let mut block = vec![0; BLOCK as usize];
        for (start, length) in content.data_ranges() {
            for offset in (start..start + length).step_by(BLOCK as usize) {
                let part = &mut block[..BLOCK.min(content.size - offset) as usize];
                let got = content::read_at(self.store, content, offset, part)?;
                let number = offset / BLOCK;
                if got != part.len() || list.get(number) != Some(ObjectId::of(part)) {
                    return Ok(Some(format!("block {number} is not what its block list says")));
                }
                listed += 1;
            }
        }
        let holes = listed != list.len();
        Ok(holes.then(|| "its block list has data where it has holes".to_owned()))
    }
}

/// Size and hash of what is left of a file.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use crate::gc::UpperRoots;
    use crate::import::{NoProgress, import_path};
    use crate::layer::tests::base;
    use crate::metadata;
    use crate::pins::Pin;
    use crate::tree::Trees;

    struct Place {
        _dir: tempfile::TempDir,
        store: Arc<Store>,
        root: ObjectId,
        record: RecordId,
        env: Metadata,
    }

    const BIG: &[u8] = &[5; 3 << 20];

    impl Place {
        /// A store with one environment of one layer: two small files, of two names and of one, and a large one.
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            let src = dir.path().join("src");
            fs::create_dir_all(src.join("d")).unwrap();
            fs::write(src.join("d/small"), b"small").unwrap();
            fs::write(src.join("d/linked"), b"linked").unwrap();
            fs::hard_link(src.join("d/linked"), src.join("d/again")).unwrap();
            fs::write(src.join("d/big"), BIG).unwrap();
            let root = import_path(&store, &src, &NoProgress).unwrap().root;
            let record = LayerRecord::write(&store, &base(root)).unwrap();
            let env = metadata::tests::saved(&store, "env", &"ab".repeat(32), record);
            Place { _dir: dir, store, root, record, env }
        }

        fn verify(&self) -> Vec<Finding> {
            verify(&self.store, &|_| Ok(UpperRoots::default()), &NoProgress).unwrap()
        }

        fn tree(&self) -> ObjectId {
            *Trees::new(self.store.clone()).root(&self.root).unwrap().tree().unwrap()
        }
    }

    fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn flip(path: &Path) {
        overwrite(path, |bytes| *bytes.last_mut().unwrap() ^= 1);
    }

    #[test]
    fn a_whole_store_has_no_findings() {
        let place = Place::new();
        let _pin = Pin::hold(&place.store, &[place.root]).unwrap();
        assert_eq!(place.verify(), []);
    }

    #[test]
    fn a_changed_object_is_found() {
        let place = Place::new();
        for bytes in [&b"small"[..], b"linked"] {
            let id = ObjectId::of(bytes);
            flip(&place.store.layout().object(&id));
            assert!(place.verify().contains(&Finding::CorruptObject { id }));
        }
        flip(&place.store.layout().object(&ObjectId::of(BIG)));
        let findings = place.verify();
        assert!(findings.contains(&Finding::CorruptObject { id: ObjectId::of(BIG) }));
        assert!(
            findings.iter().any(|f| f.to_string().contains("/d/big") && f.to_string().contains("block 47"))
        );
        assert!(findings.iter().all(Finding::is_damage));
    }

    #[test]
    fn a_missing_object_is_named_with_its_file() {
        let place = Place::new();
        let id = ObjectId::of(b"small");
        fs::remove_file(place.store.layout().object(&id)).unwrap();
        let referenced_by = "/d/small in the head of environment env".to_owned();
        assert_eq!(place.verify(), [Finding::MissingObject { id, referenced_by }]);
    }

    #[test]
    fn a_shortened_object_is_not_what_its_file_needs() {
        let place = Place::new();
        overwrite(&place.store.layout().object(&ObjectId::of(BIG)), |bytes| bytes.truncate(1000));
        let findings = place.verify();
        assert!(findings.iter().any(|f| matches!(f, Finding::BadReference { .. })), "{findings:?}");
    }

    #[test]
    fn trees_roots_layers_and_records_are_checked() {
        let place = Place::new();
        let layout = place.store.layout();
        let (tree, tree_path) = (place.tree(), layout.object(&place.tree()));
        let bytes = fs::read(&tree_path).unwrap();
        flip(&tree_path);
        let findings = place.verify();
        assert!(findings.contains(&Finding::CorruptObject { id: tree }));
        assert!(findings.iter().any(|f| matches!(f, Finding::CorruptTree { id, .. } if *id == tree)));
        fs::write(&tree_path, bytes).unwrap();
        assert_eq!(place.verify(), []);

        flip(&layout.layer(&place.record));
        assert!(place.verify().iter().any(|f| matches!(f, Finding::CorruptLayer { .. })));
        fs::remove_file(layout.layer(&place.record)).unwrap();
        let findings = place.verify();
        assert!(
            findings.iter().any(|f| f.to_string().contains("the base of environment env")),
            "{findings:?}"
        );
        LayerRecord::write(&place.store, &base(place.root)).unwrap();
        assert_eq!(place.verify(), []);

        flip(&Metadata::path(&place.store, &place.env.instance));
        overwrite(&Metadata::path(&place.store, &place.env.instance), |bytes| bytes[20] = b'!');
        let findings = place.verify();
        assert!(findings.iter().any(|f| matches!(f, Finding::CorruptMetadata { .. })), "{findings:?}");
    }

    #[test]
    fn what_nobody_refers_to_is_no_damage() {
        let place = Place::new();
        Metadata::delete(&place.store, &place.env.instance).unwrap();
        fs::write(place.store.layout().objects().join("stray"), b"").unwrap();
        fs::write(place.store.layout().layers().join(".tmp-x"), b"").unwrap();
        let findings = place.verify();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(!findings.iter().any(Finding::is_damage));
    }

    #[test]
    fn uppers_are_followed() {
        let place = Place::new();
        let gone = ObjectId::of(b"gone");
        let uppers =
            |_: &InstanceId| Ok(UpperRoots { roots: vec![gone], trees: vec![], objects: vec![gone] });
        let findings = verify(&place.store, &uppers, &NoProgress).unwrap();
        assert!(findings.iter().all(|f| matches!(f, Finding::MissingObject { id, .. } if *id == gone)));
        assert!(!findings.is_empty());
        let torn = |_: &InstanceId| Err(StoreError::Invalid("torn".to_owned()));
        let findings = verify(&place.store, &torn, &NoProgress).unwrap();
        assert!(matches!(&findings[..], [Finding::CorruptUpper { reason, .. }] if reason == "torn"));
    }
}
