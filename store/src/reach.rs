//! Walks everything that is reachable from roots, for collection and verification.

use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::content::FileContent;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{Body, InodeRecord};
use crate::open::Store;
use crate::tree::{self, Keys, Target, Tree, Trees};

/// What an upper on disk refers to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct UpperRoots {
    /// Root objects: that of the head, and any others that the upper needs.
    pub roots: Vec<ObjectId>,
    /// Directory listings that its directories overlay; followed downwards.
    pub trees: Vec<ObjectId>,
    /// Content objects and block lists that its own inodes refer to.
    pub objects: Vec<ObjectId>,
}

/// A root, tree or block list that could not be read.
pub(crate) struct Fault {
    pub id: ObjectId,
    /// What refers to it.
    pub by: Met,
    pub error: StoreError,
}

/// Where the walk met something: what referred to the root it started from, and the path below that root.
#[derive(Clone, Debug)]
pub(crate) struct Met {
    by: Rc<str>,
    path: Vec<u8>,
}

impl Met {
    /// The path inside the environment, if there is one: an inode with several names has none, nor has the
    /// root itself.
    pub fn path(&self) -> Option<String> {
        self.path.starts_with(b"/").then(|| String::from_utf8_lossy(&self.path).into_owned())
    }

    /// The path, or a text in place of one.
    pub fn place(&self) -> String {
        match self.path() {
            Some(path) => path,
            None if self.path.is_empty() => "/".to_owned(),
            None => "a file with several names".to_owned(),
        }
    }
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_empty() {
            true => f.write_str(&self.by),
            false => write!(f, "{} in {}", String::from_utf8_lossy(&self.path), self.by),
        }
    }
}

/// Receives what a walk finds.
pub(crate) trait Watch {
    /// A tree cannot be read. Returning an error stops the walk; otherwise it skips that tree.
    fn fault(&mut self, fault: Fault) -> Result<()>;

    /// A root or tree, before it is read. Called once for each.
    fn opened(&mut self, _id: &ObjectId) {}

    /// An object whose bytes the walk does not need: content, a block list, or an object named by an upper.
    /// Called each time it is met.
    fn object(&mut self, _id: &ObjectId, _by: &dyn Fn() -> Met) -> Result<()> {
        Ok(())
    }

    /// The content of a nonempty file; possibly more than once.
    fn file(&mut self, _content: &FileContent, _by: &dyn Fn() -> Met) -> Result<()> {
        Ok(())
    }

    /// The root or listing `parent` contains a part: a listing, an object, or a content by its hash. Called
    /// each time it is met.
    fn part(&mut self, _parent: &ObjectId, _part: Part<'_>) {}
}

/// What a root or a listing refers to.
pub(crate) enum Part<'a> {
    Listing(&'a ObjectId),
    Content(&'a ObjectId),
}

enum Node {
    Root(ObjectId),
    Tree(ObjectId, Keys),
    Object(ObjectId),
}

/// The walk's position: what referred to the root, and the directory's path below it. The text for a message
/// is composed only when needed.
type Place = Rc<(Rc<str>, Vec<u8>)>;

/// The walk: add the starting points, then run it.
pub(crate) struct Reach {
    trees: Trees,
    todo: Vec<(Node, Place)>,
    /// Roots and trees that have been opened. A file may have the same bytes as a tree, and meeting it as
    /// content does not cover what it refers to as a tree. So this set is exact, and has trees only.
    opened: HashSet<ObjectId>,
}

impl Reach {
    pub fn new(store: Arc<Store>) -> Reach {
        Reach { trees: Trees::uncached(store), todo: Vec::new(), opened: HashSet::new() }
    }

    /// Adds a root object as a starting point; `by` says what refers to it.
    pub fn root(&mut self, id: ObjectId, by: &Rc<str>) {
        self.todo.push((Node::Root(id), Rc::new((by.clone(), Vec::new()))));
    }

    /// Adds a directory's listing as a starting point.
    pub fn tree(&mut self, id: ObjectId, by: &Rc<str>) {
        self.todo.push((Node::Tree(id, Keys::Names), Rc::new((by.clone(), Vec::new()))));
    }

    /// Adds an object that refers to nothing else.
    pub fn object(&mut self, id: ObjectId, by: &Rc<str>) {
        self.todo.push((Node::Object(id), Rc::new((by.clone(), Vec::new()))));
    }

    /// Runs the walk, always in the same order.
    pub fn run(mut self, watch: &mut dyn Watch) -> Result<()> {
        while let Some((node, place)) = self.todo.pop() {
            match node {
                Node::Root(id) => self.open_root(&id, &place, watch)?,
                Node::Tree(id, keys) => self.open_tree(&id, keys, &place, watch)?,
                Node::Object(id) => watch.object(&id, &|| met(&place, b""))?,
            }
        }
        Ok(())
    }

    /// Whether a root or tree must be opened: it is met for the first time.
    fn is_new(&mut self, id: &ObjectId, watch: &mut dyn Watch) -> bool {
        let is_new = self.opened.insert(*id);
        if is_new {
            watch.opened(id);
        }
        is_new
    }

    fn open_root(&mut self, id: &ObjectId, place: &Place, watch: &mut dyn Watch) -> Result<()> {
        if !self.is_new(id, watch) {
            return Ok(());
        }
        match self.trees.root(id) {
            Ok(root) => {
                if let Some(links) = root.links {
                    watch.part(id, Part::Listing(&links));
                    let place = Rc::new((place.0.clone(), b" (files with several names)".to_vec()));
                    self.todo.push((Node::Tree(links, Keys::Inos), place));
                }
                self.record(b"", id, &root.inode, place, watch)
            }
            Err(error) => watch.fault(fault(id, place, error)),
        }
    }

    fn open_tree(&mut self, id: &ObjectId, keys: Keys, place: &Place, watch: &mut dyn Watch) -> Result<()> {
        if !self.is_new(id, watch) {
            return Ok(());
        }
        match self.trees.node(id, keys) {
            Ok(tree::Node::Leaf(tree)) => self.entries(id, &tree, place, watch),
            Ok(tree::Node::Index(index)) => {
                for chunk in index.chunks() {
                    watch.part(id, Part::Listing(&chunk.id));
                    if self.is_new(&chunk.id, watch) {
                        match self.trees.leaf(&chunk.id, keys) {
                            Ok(tree) => self.entries(&chunk.id, &tree, place, watch)?,
                            Err(error) => watch.fault(fault(&chunk.id, place, error))?,
                        }
                    }
                }
                Ok(())
            }
            Ok(tree::Node::Root(_)) => {
                watch.fault(fault(id, place, StoreError::corrupt("tree", id, "it is a root, not a listing")))
            }
            Err(error) => watch.fault(fault(id, place, error)),
        }
    }

    fn entries(&mut self, id: &ObjectId, tree: &Tree, place: &Place, watch: &mut dyn Watch) -> Result<()> {
        for entry in tree.iter() {
            match entry.to_target() {
                Ok(Target::Inode(record)) => {
                    let name = if tree.keys() == Keys::Names { entry.name() } else { b"" };
                    self.record(name, id, &record, place, watch)?;
                }
                // Its record is in the link table.
                Ok(Target::Link { .. }) => {}
                Err(error) => watch.fault(fault(id, place, error))?,
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        name: &[u8],
        parent: &ObjectId,
        record: &InodeRecord,
        place: &Place,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        match &record.body {
            Body::Directory { tree: Some(tree), .. } => {
                watch.part(parent, Part::Listing(tree));
                let path = if name.is_empty() { Vec::new() } else { [&place.1, &b"/"[..], name].concat() };
                self.todo.push((Node::Tree(*tree, Keys::Names), Rc::new((place.0.clone(), path))));
            }
            Body::Regular(content) => {
                let by = || met(place, name);
                for object in content.objects() {
                    watch.part(parent, Part::Content(&object));
                    watch.object(&object, &by)?;
                }
                if content.size > 0 {
                    watch.part(parent, Part::Content(&content.hash));
                    watch.file(content, &by)?;
                }
            }
            Body::Directory { tree: None, .. } | Body::Symlink(_) | Body::Special => {}
        }
        Ok(())
    }
}

fn fault(id: &ObjectId, place: &Place, error: StoreError) -> Fault {
    Fault { id: *id, by: met(place, b""), error }
}

/// An entry of the directory, or the directory itself.
fn met(place: &Place, name: &[u8]) -> Met {
    let (by, directory) = &**place;
    let slash = if name.is_empty() { &b""[..] } else { b"/" };
    Met { by: by.clone(), path: [directory, slash, name].concat() }
}
