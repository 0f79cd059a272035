//! Trees: directory listings as objects, and the link table in the same form.
//!
//! - `codec`: the bytes of a listing; `cursor` reads them; `split` writes a listing, `update` changes one.
//! - `walk`: visits one tree. `pairs`: the names that differ between two listings; `compare`: visits two
//!   trees at once, guided by `pairs`.
//! - `diff`, `graft`, `retime`: what differs between two trees, combining two trees, times after a restore.
//!   `stored`: a tree for [`crate::paths`].
//!
//! [`Trees`] reads objects and caches them parsed. Everything that compares trees finds the differences
//! through `pairs`, so that equal parts are not read.

use std::fmt;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::batch::Batch;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{FileKind, Ino, InodeRecord};
use crate::open::Store;
use crate::root::{ROOT_MAX, Root};

mod codec;
mod compare;
mod cursor;
mod diff;
mod graft;
mod pairs;
mod retime;
mod split;
mod stored;
#[cfg(test)]
mod tests;
mod update;
mod walk;

#[doc(hidden)]
pub use codec::check_index;
pub use codec::{EntryRef, Keys, Tree};
pub use compare::{Below, New, Over, Visitor, compare};
pub use diff::{Change, Renumbered, changed_links, diff, diff_with_times, differs};
pub use graft::{Numbers, Picks, graft, names_of};
pub use pairs::{Linked, Pair, Pairs};
pub use retime::{Retimed, retime, same_content};
pub use split::{write_dir, write_links};
pub use stored::StoredTree;
pub use update::{update_dir, update_links};
pub(crate) use walk::resolve;
pub use walk::walk;

pub(crate) use codec::{Chunk, Index};

/// Maximum size of a tree object, in bytes.
pub(crate) const TREE_MAX: u64 = 64 << 20;

/// Capacity of the cache of [`Trees`], in bytes of parsed objects.
const CACHE_BYTES: usize = 24 << 20;

/// What a name refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An inode with only this name.
    Inode(InodeRecord),
    /// One of several names of an inode, whose record is in the root's link table.
    Link {
        /// The inode's number.
        ino: Ino,
        /// The inode's kind.
        kind: FileKind,
    },
}

impl Target {
    /// The inode's number.
    pub fn ino(&self) -> Ino {
        match self {
            Target::Inode(record) => record.ino,
            Target::Link { ino, .. } => *ino,
        }
    }

    /// The inode's kind.
    pub fn kind(&self) -> FileKind {
        match self {
            Target::Inode(record) => record.kind(),
            Target::Link { kind, .. } => *kind,
        }
    }
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1 to 255 bytes without `/` and NUL, not `.` or `..`.
    pub name: Box<[u8]>,
    /// What it refers to.
    pub target: Target,
}

/// A directory that was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenDir {
    /// Its listing; `None` when the directory is empty.
    pub tree: Option<ObjectId>,
    /// Whether a name in it, at any depth, refers to an inode in the link table.
    pub links: bool,
}

/// A parsed object.
#[derive(Clone)]
pub(crate) enum Node {
    Leaf(Arc<Tree>),
    Index(Arc<Index>),
    Root(Arc<Root>),
}

impl Node {
    /// Parses the listing (leaf or index) `id`.
    pub(crate) fn parse(id: &ObjectId, bytes: Vec<u8>) -> Result<Node> {
        let node = if codec::is_index(&bytes) {
            Index::parse(&bytes).map(|index| Node::Index(Arc::new(index)))
        } else {
            Tree::parse(bytes).map(|tree| Node::Leaf(Arc::new(tree)))
        };
        node.map_err(|error| error.named(id))
    }

    fn cost(&self) -> usize {
        128 + match self {
            Node::Leaf(tree) => tree.byte_len(),
            Node::Index(index) => index.cost(),
            Node::Root(_) => 1024,
        }
    }
}

/// The trees of a store, with a cache of parsed objects whose size in bytes is bounded. Every object is
/// verified when it is read from disk.
///
/// Methods that read fail with [`StoreError::Missing`] when an object is absent, and with
/// [`StoreError::Corrupt`] when it is damaged or not of the kind expected.
pub struct Trees {
    store: Arc<Store>,
    cache: Mutex<Cache>,
}

struct Cache {
    nodes: LruCache<ObjectId, Node>,
    cost: usize,
    limit: usize,
}

impl Trees {
    /// The trees of `store`, with a cache of 24 MiB.
    pub fn new(store: Arc<Store>) -> Trees {
        Self::with_cache(store, CACHE_BYTES)
    }

    /// The same without a cache, for callers that read each object once.
    pub(crate) fn uncached(store: Arc<Store>) -> Trees {
        Self::with_cache(store, 0)
    }

    fn with_cache(store: Arc<Store>, limit: usize) -> Trees {
        Self { store, cache: Mutex::new(Cache { nodes: LruCache::unbounded(), cost: 0, limit }) }
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Empties the cache.
    pub fn clear_cache(&self) {
        let mut cache = self.cache.lock();
        cache.nodes = LruCache::unbounded();
        cache.cost = 0;
    }

    /// What `name` refers to in the directory with the listing `dir`; `None` if there is no such name.
    pub fn lookup(&self, dir: &ObjectId, name: &[u8]) -> Result<Option<Target>> {
        self.find(dir, Keys::Names, name)
    }

    /// Calls `f` for each entry of the listing `dir`, in the order of names; stops at the first error and
    /// returns it.
    pub fn for_each(&self, dir: &ObjectId, f: &mut dyn FnMut(EntryRef<'_>) -> Result<()>) -> Result<()> {
        let visit = &mut |tree: &Tree| tree.iter().try_for_each(&mut *f);
        match self.node(dir, Keys::Names)? {
            Node::Index(index) => (0..index.chunks().len()).try_for_each(|i| visit(&*self.chunk(&index, i)?)),
            Node::Leaf(tree) => visit(&tree),
            Node::Root(_) => Err(not_a_listing(dir)),
        }
    }

    /// The entries of a listing, in the order of names; none for the listing of an empty directory, `None`.
    pub fn entries(&self, dir: Option<ObjectId>) -> Result<Vec<(Box<[u8]>, Target)>> {
        let mut entries = Vec::new();
        if let Some(dir) = dir {
            self.for_each(&dir, &mut |entry| {
                entries.push((entry.name().into(), entry.to_target()?));
                Ok(())
            })?;
        }
        Ok(entries)
    }

    /// Whether the listing `id` is in the cache.
    pub fn is_loaded(&self, id: &ObjectId) -> bool {
        self.cache.lock().nodes.contains(id)
    }

    /// Loads the directory listing `id` into the cache, without the chunks of a split one.
    pub fn load(&self, id: &ObjectId) -> Result<()> {
        self.node(id, Keys::Names).map(drop)
    }

    /// The number of entries in the listing `dir`.
    pub fn len(&self, dir: &ObjectId) -> Result<u64> {
        match self.node(dir, Keys::Names)? {
            Node::Index(index) => Ok(index.len()),
            Node::Leaf(tree) => Ok(tree.len() as u64),
            Node::Root(_) => Err(not_a_listing(dir)),
        }
    }

    /// The root `id`.
    pub fn root(&self, id: &ObjectId) -> Result<Arc<Root>> {
        if let Some(node) = self.cached(id) {
            return match node {
                Node::Root(root) => Ok(root),
                _ => Err(StoreError::corrupt("root", id, "it is a directory listing")),
            };
        }
        let root =
            Root::decode(&self.store.objects().read(id, ROOT_MAX)?).map_err(|error| error.named(id))?;
        let root = Arc::new(root);
        self.insert(id, Node::Root(Arc::clone(&root)));
        Ok(root)
    }

    /// The inode `ino` in the root's link table; `None` if it is not there.
    pub fn link(&self, root: &Root, ino: Ino) -> Result<Option<InodeRecord>> {
        let Some(links) = &root.links else { return Ok(None) };
        match self.find(links, Keys::Inos, &ino.to_be_bytes())? {
            None => Ok(None),
            Some(Target::Inode(record)) if record.ino == ino => Ok(Some(record)),
            Some(_) => {
                Err(StoreError::corrupt("link table", links, format!("entry {ino} is not that inode")))
            }
        }
    }

    fn find(&self, dir: &ObjectId, keys: Keys, name: &[u8]) -> Result<Option<Target>> {
        let leaf = match self.node(dir, keys)? {
            Node::Leaf(tree) => tree,
            Node::Index(index) => match index.chunk_of(name) {
                Some(i) => self.chunk(&index, i)?,
                None => return Ok(None),
            },
            Node::Root(_) => return Err(not_a_listing(dir)),
        };
        match leaf.get(name) {
            Some(entry) => entry.to_target().map(Some).map_err(|error| error.named(dir)),
            None => Ok(None),
        }
    }

    /// The parsed listing `id`, whose keys must be of the given kind.
    pub(crate) fn node(&self, id: &ObjectId, keys: Keys) -> Result<Node> {
        let node = match self.cached(id) {
            Some(node) => node,
            None => {
                let node = Node::parse(id, self.store.objects().read(id, TREE_MAX)?)?;
                self.insert(id, node.clone());
                node
            }
        };
        check_keys(id, &node, keys)?;
        Ok(node)
    }

    /// Like [`Trees::node`], for a listing that must be a leaf: a chunk of an index.
    pub(crate) fn leaf(&self, id: &ObjectId, keys: Keys) -> Result<Arc<Tree>> {
        expect_leaf(id, self.node(id, keys)?)
    }

    /// Chunk `i` of `index`, checked against its entry in the index.
    pub(crate) fn chunk(&self, index: &Index, i: usize) -> Result<Arc<Tree>> {
        let leaf = self.leaf(&index.chunks()[i].id, index.keys())?;
        index.check(i, &leaf)?;
        Ok(leaf)
    }

    /// Like [`Trees::node`], but also finds objects staged in `batch`. The batch comes before the store,
    /// whose supply may have to ask a network for what it does not have.
    pub(crate) fn node_in(&self, batch: &Batch, id: &ObjectId, keys: Keys) -> Result<Node> {
        if !batch.stages(id) {
            return self.node(id, keys);
        }
        let node = Node::parse(id, batch.read(id, TREE_MAX)?)?;
        check_keys(id, &node, keys)?;
        Ok(node)
    }

    fn cached(&self, id: &ObjectId) -> Option<Node> {
        self.cache.lock().nodes.get(id).cloned()
    }

    fn insert(&self, id: &ObjectId, node: Node) {
        let mut cache = self.cache.lock();
        cache.cost += node.cost();
        if let Some((_, old)) = cache.nodes.push(*id, node) {
            cache.cost -= old.cost();
        }
        while cache.cost > cache.limit {
            match cache.nodes.pop_lru() {
                Some((_, old)) => cache.cost -= old.cost(),
                None => break,
            }
        }
    }
}

impl fmt::Debug for Trees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cache = self.cache.lock();
        f.debug_struct("Trees").field("cached", &cache.nodes.len()).field("bytes", &cache.cost).finish()
    }
}

fn check_keys(id: &ObjectId, node: &Node, wanted: Keys) -> Result<()> {
    let keys = match node {
        Node::Leaf(tree) => tree.keys(),
        Node::Index(index) => index.keys(),
        Node::Root(_) => return Err(not_a_listing(id)),
    };
    if keys == wanted {
        return Ok(());
    }
    let reason = match wanted {
        Keys::Names => "it is a link table, not a directory",
        Keys::Inos => "it is a directory, not a link table",
    };
    Err(StoreError::corrupt("tree", id, reason))
}

pub(crate) fn expect_leaf(id: &ObjectId, node: Node) -> Result<Arc<Tree>> {
    match node {
        Node::Leaf(tree) => Ok(tree),
        _ => Err(StoreError::corrupt("tree", id, "it is an index inside an index")),
    }
}

fn not_a_listing(id: &ObjectId) -> StoreError {
    StoreError::corrupt("tree", id, "it is a root, not a listing")
}
