//! Disk usage of environments and snapshots: what each refers to, and what only it refers to.
//!
//! Every tree is read once, however many refer to it; further queries are answered from memory.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::Result;
use crate::gc::keep_parents;
use crate::id::{LayerHash, ObjectId, RecordId};
use crate::inode::{Body, InodeRecord};
use crate::layer::LayerRecord;
use crate::open::Store;
use crate::reach::UpperRoots;
use crate::tree::{self, Keys, Target, Trees};

/// A set of layers and uppers that refers to content.
#[derive(Debug, Default, Clone)]
pub struct Group {
    /// Layers.
    pub layers: Vec<RecordId>,
    /// What the uppers refer to.
    pub uppers: Vec<UpperRoots>,
}

/// The disk usage of a group: objects and layer records in bytes, as counted by `du`. Data files in uppers
/// are not included.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Everything it refers to.
    pub bytes: u64,
    /// What no other group refers to: what a collection frees once this group is gone.
    pub exclusive_bytes: u64,
}

/// What a tree contains.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Number of names, without the root.
    pub entries: u64,
    /// Total size of all regular files in bytes; one with several names counts once.
    pub bytes: u64,
}

/// The kind of a tree object: a root, a directory listing, or a link table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Root,
    Names,
    Inos,
}

/// A tree object that was read. Objects and nodes are counted separately, because a file may have the same
/// bytes as a tree.
struct Node {
    object: u32,
    /// Nodes that it refers to, each as often as it is named.
    below: Box<[u32]>,
    /// Objects with content.
    content: Box<[u32]>,
    own: Shown,
}

/// The trees of the store, read as far as they were asked for.
///
/// The caller must hold [`crate::lock::StoreLock::shared`] from before it read what it asks about until this
/// is dropped.
pub struct Survey {
    trees: Trees,
    layers: HashMap<RecordId, LayerRecord>,
    by_hash: HashMap<LayerHash, Vec<RecordId>>,
    nodes: Vec<Node>,
    known: HashMap<(ObjectId, Kind), u32>,
    objects: HashMap<ObjectId, u32>,
    /// For each object, the bytes that its removal frees.
    sizes: Vec<u64>,
}

impl Survey {
    /// Reads all layer records.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn new(store: Arc<Store>) -> Result<Survey> {
        let (mut layers, mut by_hash) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        for id in LayerRecord::list(&store)? {
            let record = LayerRecord::read(&store, &id)?;
            by_hash.entry(record.hash).or_default().push(id);
            layers.insert(id, record);
        }
        Ok(Survey {
            trees: Trees::new(store),
            layers,
            by_hash,
            nodes: Vec::new(),
            known: HashMap::new(),
            objects: HashMap::new(),
            sizes: Vec::new(),
        })
    }

    /// The usage of each group, in total and exclusively.
    ///
    /// # Errors
    /// When a layer or a tree cannot be read.
    pub fn measure(&mut self, groups: &[Group]) -> Result<Vec<Usage>> {
        let mut starts = Vec::with_capacity(groups.len());
        for group in groups {
            starts.push(self.start(group)?);
        }
        let mut owners = Owners::new(self.sizes.len());
        let mut seen = vec![u32::MAX; self.nodes.len()];
        let mut usages = vec![Usage::default(); groups.len()];
        for (number, (mut todo, objects)) in starts.into_iter().enumerate() {
            let group = number as u32;
            let mut total = 0;
            let mut meet = |object: u32| {
                if owners.meet(object, group) {
                    total += self.sizes[object as usize];
                }
            };
            objects.into_iter().for_each(&mut meet);
            while let Some(node) = todo.pop() {
                if std::mem::replace(&mut seen[node as usize], group) == group {
                    continue;
                }
                let node = &self.nodes[node as usize];
                meet(node.object);
                node.content.iter().copied().for_each(&mut meet);
                todo.extend(&node.below);
            }
            usages[number].bytes = total;
        }
        for (object, owner) in owners.only() {
            usages[owner as usize].exclusive_bytes += self.sizes[object];
        }
        self.measure_records(groups, &mut usages)?;
        Ok(usages)
    }

    /// What the tree of a layer contains.
    ///
    /// # Errors
    /// When the layer or a tree cannot be read.
    pub fn shown(&mut self, layer: &RecordId) -> Result<Shown> {
        let root = LayerRecord::read(self.trees.store(), layer)?.tree;
        let top = self.node(&root, Kind::Root)?;
        let mut sums: HashMap<u32, Shown> = HashMap::new();
        let mut path = vec![(top, 0)];
        while let Some((node, next)) = path.pop() {
            let below = &self.nodes[node as usize].below;
            let open = below[next..].iter().position(|child| !sums.contains_key(child));
            if let Some(at) = open {
                let child = below[next + at];
                path.push((node, next + at));
                path.push((child, 0));
                continue;
            }
            let mut sum = self.nodes[node as usize].own;
            for child in below {
                sum.entries += sums[child].entries;
                sum.bytes += sums[child].bytes;
            }
            sums.insert(node, sum);
        }
        Ok(sums[&top])
    }

    /// The starting points of a group: nodes and single objects. Everything below them has then been read.
    fn start(&mut self, group: &Group) -> Result<(Vec<u32>, Vec<u32>)> {
        let (mut nodes, mut objects) = (Vec::new(), Vec::new());
        for layer in &group.layers {
            let record = self.layer(layer)?;
            let (tree, refs) = (record.tree, record.object_refs.clone());
            nodes.push(self.node(&tree, Kind::Root)?);
            for object in &refs {
                objects.push(self.object(object)?);
            }
        }
        for upper in &group.uppers {
            for root in &upper.roots {
                nodes.push(self.node(root, Kind::Root)?);
            }
            for tree in &upper.trees {
                nodes.push(self.node(tree, Kind::Names)?);
            }
            for object in &upper.objects {
                objects.push(self.object(object)?);
            }
        }
        Ok((nodes, objects))
    }

    fn layer(&mut self, id: &RecordId) -> Result<&LayerRecord> {
        Ok(match self.layers.entry(*id) {
            Entry::Occupied(known) => known.into_mut(),
            // Written since the records were listed.
            Entry::Vacant(new) => new.insert(LayerRecord::read(self.trees.store(), id)?),
        })
    }

    fn object(&mut self, id: &ObjectId) -> Result<u32> {
        if let Some(known) = self.objects.get(id) {
            return Ok(*known);
        }
        // An absent object frees nothing, whether it is promised or missing.
        let size = self.trees.store().objects().on_disk(id)?;
        let index = self.sizes.len() as u32;
        self.sizes.push(size);
        self.objects.insert(*id, index);
        Ok(index)
    }

    /// The node for a tree, read with everything below it.
    fn node(&mut self, id: &ObjectId, kind: Kind) -> Result<u32> {
        let mut todo = Vec::new();
        let top = self.enter((*id, kind), &mut todo)?;
        while let Some((index, id, kind)) = todo.pop() {
            let mut node = Reading::default();
            match kind {
                Kind::Root => {
                    let root = self.trees.root(&id)?;
                    node.below.extend(root.links.map(|links| (links, Kind::Inos)));
                    node.record(&root.inode);
                }
                Kind::Names => node.listing(&self.trees.node(&id, Keys::Names)?, Kind::Names)?,
                Kind::Inos => node.listing(&self.trees.node(&id, Keys::Inos)?, Kind::Inos)?,
            }
            let mut below = Vec::with_capacity(node.below.len());
            for key in node.below {
                below.push(self.enter(key, &mut todo)?);
            }
            let mut content = Vec::with_capacity(node.content.len());
            for object in &node.content {
                content.push(self.object(object)?);
            }
            let place = &mut self.nodes[index as usize];
            (place.below, place.content, place.own) = (below.into(), content.into(), node.own);
        }
        Ok(top)
    }

    /// The number of a node; a new one is added to `todo`, to be read.
    fn enter(&mut self, key: (ObjectId, Kind), todo: &mut Vec<(u32, ObjectId, Kind)>) -> Result<u32> {
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let object = self.object(&key.0)?;
        let index = self.nodes.len() as u32;
        self.nodes.push(Node {
            object,
            below: Box::default(),
            content: Box::default(),
            own: Shown::default(),
        });
        self.known.insert(key, index);
        todo.push((index, key.0, key.1));
        Ok(index)
    }

    /// Adds layer records, including their ancestors down to the base, which a collection keeps too.
    fn measure_records(&self, groups: &[Group], usages: &mut [Usage]) -> Result<()> {
        let mut holders: HashMap<RecordId, (usize, u64)> = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            let mut records: HashSet<RecordId> = group.layers.iter().copied().collect();
            keep_parents(&mut records, &self.layers, &self.by_hash);
            for record in records {
                let size = LayerRecord::on_disk(self.trees.store(), &record)?;
                usages[number].bytes += size;
                let holder = holders.entry(record).or_insert((number, size));
                if holder.0 != number {
                    holder.0 = usize::MAX;
                }
            }
        }
        for (number, size) in holders.into_values() {
            if let Some(usage) = usages.get_mut(number) {
                usage.exclusive_bytes += size;
            }
        }
        Ok(())
    }
}

/// A node being read.
#[derive(Default)]
struct Reading {
    below: Vec<(ObjectId, Kind)>,
    content: Vec<ObjectId>,
    own: Shown,
}

impl Reading {
    fn listing(&mut self, node: &tree::Node, kind: Kind) -> Result<()> {
        match node {
            tree::Node::Leaf(tree) => {
                for entry in tree.iter() {
                    // The link table has no names.
                    self.own.entries += u64::from(kind == Kind::Names);
                    // An inode with several names is in the link table.
                    if let Target::Inode(record) = entry.to_target()? {
                        self.record(&record);
                    }
                }
            }
            tree::Node::Index(index) => {
                self.below.extend(index.chunks().iter().map(|chunk| (chunk.id, kind)))
            }
            // `Trees::node` returns listings only.
            tree::Node::Root(_) => {}
        }
        Ok(())
    }

    fn record(&mut self, record: &InodeRecord) {
        match &record.body {
            Body::Directory { tree, .. } => self.below.extend(tree.map(|tree| (tree, Kind::Names))),
            Body::Regular(content) => {
                self.content.extend(content.objects());
                self.own.bytes += content.size;
            }
            Body::Symlink(_) | Body::Special => {}
        }
    }
}

/// The group or groups that refer to each object.
struct Owners {
    /// The first group that met it.
    first: Vec<u32>,
    /// The last group that met it.
    last: Vec<u32>,
    shared: Vec<bool>,
}

impl Owners {
    const NOBODY: u32 = u32::MAX;

    fn new(objects: usize) -> Owners {
        let nobody = vec![Self::NOBODY; objects];
        Owners { first: nobody.clone(), last: nobody, shared: vec![false; objects] }
    }

    /// Whether `group` meets the object for the first time.
    fn meet(&mut self, object: u32, group: u32) -> bool {
        let at = object as usize;
        if std::mem::replace(&mut self.last[at], group) == group {
            return false;
        }
        if self.first[at] == Self::NOBODY {
            self.first[at] = group;
        } else {
            self.shared[at] = true;
        }
        true
    }

    /// The objects that only one group met, each with that group's number.
    fn only(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let alone = |(at, owner): &(usize, &u32)| **owner != Self::NOBODY && !self.shared[*at];
        self.first.iter().enumerate().filter(alone).map(|(at, owner)| (at, *owner))
    }
}
