//! The tree that an import builds: metadata in memory, then numbered and written bottom-up.

use std::collections::BTreeMap;

use crate::content::FileContent;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use crate::object::Batch;
use crate::root::Root;
use crate::tree::{self, Entry, Target, WrittenDir};

/// The name at the root that belongs to the control files.
const RESERVED: &[u8] = b".karapace";

/// The deepest nesting taken in: what a path of PATH_MAX bytes can reach.
const MAX_DEPTH: usize = 2048;

/// The longest target of a symbolic link that Linux knows.
const MAX_TARGET: usize = 4095;

/// A directory of the tree, by its place in the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirId(usize);

/// Anything else, by its place in the builder; several names may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LeafId(usize);

/// The root directory.
pub(super) const ROOT: DirId = DirId(0);

/// What is said of an inode beside its content.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Xattrs,
}

/// What an inode other than a directory is.
#[derive(Debug)]
pub(super) enum Content {
    Regular(FileContent),
    Symlink(Box<[u8]>),
    /// A FIFO or a device with its number.
    Special(FileKind, u64),
}

enum Shape {
    Content(Content),
    /// A hard link whose target had not come yet: its normalised name.
    Pending(Vec<Box<[u8]>>),
    /// Its record has been written, in the link table if it has several names.
    Written(FileKind),
}

#[derive(Clone, Copy)]
enum Child {
    Directory(DirId),
    Leaf(LeafId),
}

struct Directory {
    /// Levels below the root.
    depth: usize,
    attributes: Attributes,
    children: BTreeMap<Box<[u8]>, Child>,
    ino: Ino,
    subdirectories: u32,
    written: WrittenDir,
}

struct Leaf {
    attributes: Attributes,
    shape: Shape,
    ino: Ino,
    names: u32,
}

type Reason<T> = std::result::Result<T, String>;

/// Entries in any order; of two with one name the later wins.
pub(super) struct Builder {
    directories: Vec<Directory>,
    leaves: Vec<Leaf>,
    /// Whether some hard link came before its target.
    pending: bool,
}

impl Builder {
    pub fn new() -> Builder {
        let root = Directory::new(0, Attributes::missing_directory());
        Builder { directories: vec![root], leaves: Vec::new(), pending: false }
    }

    /// Puts a directory at an archive's path. One that is there already keeps what is in it.
    pub fn put_directory(&mut self, path: &[u8], attributes: Attributes) -> Reason<()> {
        let components = normalise(path)?;
        match components.split_last() {
            None => self.set_root(attributes),
            Some((name, above)) => {
                let parent = self.parent(above)?;
                self.add_directory(parent, name, attributes)?;
            }
        }
        Ok(())
    }

    /// Puts anything else at an archive's path.
    pub fn put(&mut self, path: &[u8], attributes: Attributes, content: Content) -> Reason<()> {
        let components = normalise(path)?;
        let (name, above) = components.split_last().ok_or("the root must be a directory")?;
        let parent = self.parent(above)?;
        self.add(parent, name, attributes, content).map(|_| ())
    }

    /// Gives what has the name `target` a further name. A target that has not come yet may come later.
    pub fn put_link(&mut self, path: &[u8], target: &[u8]) -> Reason<()> {
        let components = normalise(path)?;
        let wanted = normalise(target).map_err(|reason| format!("the target of its hard link: {reason}"))?;
        let (name, above) = components.split_last().ok_or("the root must be a directory")?;
        let parent = self.parent(above)?;
        let leaf = match self.find(&wanted) {
            Some(Child::Directory(_)) => return Err("it is a hard link to a directory".to_owned()),
            Some(Child::Leaf(leaf)) => leaf,
            None => {
                self.pending = true;
                self.push(Attributes::default(), Shape::Pending(wanted))
            }
        };
        self.add_link(parent, name, leaf)
    }

    /// Puts a directory below another.
    pub fn add_directory(&mut self, parent: DirId, name: &[u8], attributes: Attributes) -> Reason<DirId> {
        check_name(parent, name)?;
        if let Some(&Child::Directory(known)) = self.directories[parent.0].children.get(name) {
            self.directories[known.0].attributes = attributes;
            return Ok(known);
        }
        let depth = self.directories[parent.0].depth + 1;
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let directory = DirId(self.directories.len());
        self.directories.push(Directory::new(depth, attributes));
        self.directories[parent.0].children.insert(name.into(), Child::Directory(directory));
        Ok(directory)
    }

    /// Puts anything else below a directory.
    pub fn add(
        &mut self,
        parent: DirId,
        name: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Reason<LeafId> {
        match &content {
            Content::Symlink(target) if target.is_empty() => {
                return Err("it links to an empty name".to_owned());
            }
            Content::Symlink(target) if target.len() > MAX_TARGET => {
                return Err(format!("the target of its link is longer than {MAX_TARGET} bytes"));
            }
            _ => {}
        }
        check_name(parent, name)?;
        let leaf = self.push(attributes, Shape::Content(content));
        self.add_link(parent, name, leaf)?;
        Ok(leaf)
    }

    /// A further name for a leaf, below a directory.
    pub fn add_link(&mut self, parent: DirId, name: &[u8], leaf: LeafId) -> Reason<()> {
        check_name(parent, name)?;
        self.directories[parent.0].children.insert(name.into(), Child::Leaf(leaf));
        Ok(())
    }

    pub fn set_root(&mut self, attributes: Attributes) {
        self.directories[ROOT.0].attributes = attributes;
    }

    /// Settles hard links, numbers inodes in path order, writes all directories, the link table and the root object.
    /// Gives the root and the number of names below it.
    pub fn write(mut self, batch: &mut Batch) -> Result<(ObjectId, u64)> {
        if self.pending {
            self.settle()?;
        }
        let (order, next_ino) = self.number();
        let names = order.iter().map(|directory| self.directories[directory.0].children.len() as u64).sum();
        let mut linked = BTreeMap::new();
        // Backwards, so that a directory comes after all that is below it.
        for directory in order.into_iter().rev() {
            self.write_directory(directory, batch, &mut linked)?;
        }
        let links = tree::write_links(batch, &mut linked.into_values())?;
        let inode = self.directories[ROOT.0].record();
        let root = Root { inode, links, next_ino }.write(batch)?;
        Ok((root, names))
    }

    fn push(&mut self, attributes: Attributes, shape: Shape) -> LeafId {
        self.leaves.push(Leaf { attributes, shape, ino: 0, names: 0 });
        LeafId(self.leaves.len() - 1)
    }

    /// The directory of these components, made where missing (0755, root's, time 0). Never through a link.
    fn parent(&mut self, components: &[Box<[u8]>]) -> Reason<DirId> {
        let mut at = ROOT;
        for (depth, name) in components.iter().enumerate() {
            at = match self.directories[at.0].children.get(name) {
                Some(&Child::Directory(directory)) => directory,
                Some(Child::Leaf(_)) => {
                    let above = components[..=depth].join(&b'/');
                    return Err(format!("{:?} above it is not a directory", String::from_utf8_lossy(&above)));
                }
                None => self.add_directory(at, name, Attributes::missing_directory())?,
            };
        }
        Ok(at)
    }

    fn find(&self, components: &[Box<[u8]>]) -> Option<Child> {
        components.iter().try_fold(Child::Directory(ROOT), |at, name| match at {
            Child::Directory(directory) => self.directories[directory.0].children.get(name).copied(),
            Child::Leaf(_) => None,
        })
    }

    /// Replaces pending hard links by what they name.
    fn settle(&mut self) -> Result<()> {
        let mut todo = vec![(ROOT, Vec::new())];
        while let Some((directory, path)) = todo.pop() {
            let children: Vec<_> = self.directories[directory.0]
                .children
                .iter()
                .map(|(name, &child)| (name.clone(), child))
                .collect();
            for (name, child) in children {
                let path = [&path, &b"/"[..], &name].concat();
                match child {
                    Child::Directory(below) => todo.push((below, path)),
                    Child::Leaf(leaf) => {
                        let target = self.target(leaf).map_err(|reason| refuse(&path[1..], &reason))?;
                        self.directories[directory.0].children.insert(name, Child::Leaf(target));
                    }
                }
            }
        }
        Ok(())
    }

    /// What a leaf stands for when hard links that came early are followed.
    fn target(&self, leaf: LeafId) -> Reason<LeafId> {
        let mut at = leaf;
        for _ in 0..=self.leaves.len() {
            let Shape::Pending(wanted) = &self.leaves[at.0].shape else { return Ok(at) };
            at = match self.find(wanted) {
                Some(Child::Leaf(leaf)) => leaf,
                Some(Child::Directory(_)) => return Err("it is a hard link to a directory".to_owned()),
                None => {
                    let wanted = wanted.join(&b'/');
                    let wanted = String::from_utf8_lossy(&wanted);
                    return Err(format!("it is a hard link to {wanted:?}, which is not in the archive"));
                }
            };
        }
        Err("it is a hard link to itself".to_owned())
    }

    /// Gives every inode its number. Returns the directories, parents before children, and the next number.
    fn number(&mut self) -> (Vec<DirId>, Ino) {
        self.directories[ROOT.0].ino = ROOT_INO;
        let mut next = ROOT_INO + 1;
        let mut order = vec![ROOT];
        let mut stack = vec![self.directories[ROOT.0].list()];
        while let Some(level) = stack.last_mut() {
            let Some(child) = level.next() else {
                stack.pop();
                continue;
            };
            let ino = match child {
                Child::Directory(below) => &mut self.directories[below.0].ino,
                Child::Leaf(leaf) => {
                    self.leaves[leaf.0].names += 1;
                    &mut self.leaves[leaf.0].ino
                }
            };
            if *ino == 0 {
                *ino = next;
                next += 1;
            }
            if let Child::Directory(below) = child {
                order.push(below);
                stack.push(self.directories[below.0].list());
            }
        }
        (order, next)
    }

    /// Writes a directory whose subdirectories are written. Inodes of several names go to `linked`.
    fn write_directory(
        &mut self,
        directory: DirId,
        batch: &mut Batch,
        linked: &mut BTreeMap<Ino, InodeRecord>,
    ) -> Result<()> {
        let children = std::mem::take(&mut self.directories[directory.0].children);
        let mut entries = Vec::with_capacity(children.len());
        let mut subdirectories = 0;
        for (name, child) in children {
            let target = match child {
                Child::Directory(below) => {
                    subdirectories += 1;
                    Target::Inode(self.directories[below.0].record())
                }
                Child::Leaf(leaf) => self.leaves[leaf.0].write(linked),
            };
            entries.push(Entry { name, target });
        }
        let directory = &mut self.directories[directory.0];
        directory.subdirectories = subdirectories;
        directory.written = tree::write_dir(batch, &mut entries.into_iter())?;
        Ok(())
    }
}

impl Directory {
    fn new(depth: usize, attributes: Attributes) -> Directory {
        let (children, written) = (BTreeMap::new(), WrittenDir::default());
        Directory { depth, attributes, children, ino: 0, subdirectories: 0, written }
    }

    fn list(&self) -> std::vec::IntoIter<Child> {
        self.children.values().copied().collect::<Vec<_>>().into_iter()
    }

    /// The record of a directory that is written; takes its attributes out.
    fn record(&mut self) -> InodeRecord {
        let body = Body::Directory { tree: self.written.tree, links: self.written.links };
        let attributes = std::mem::take(&mut self.attributes);
        attributes.record(self.ino, FileKind::Directory, 2 + self.subdirectories, 0, body)
    }
}

impl Leaf {
    /// What its next name points at; the first time its record is taken out.
    fn write(&mut self, linked: &mut BTreeMap<Ino, InodeRecord>) -> Target {
        let (kind, rdev, body) = match std::mem::replace(&mut self.shape, Shape::Written(FileKind::Regular)) {
            Shape::Content(Content::Regular(content)) => (FileKind::Regular, 0, Body::Regular(content)),
            Shape::Content(Content::Symlink(target)) => (FileKind::Symlink, 0, Body::Symlink(target)),
            Shape::Content(Content::Special(kind, rdev)) => (kind, rdev, Body::Special),
            // Nothing is pending once links are settled.
            Shape::Pending(_) => (FileKind::Regular, 0, Body::Regular(FileContent::empty())),
            Shape::Written(kind) => {
                self.shape = Shape::Written(kind);
                return Target::Link { ino: self.ino, kind };
            }
        };
        self.shape = Shape::Written(kind);
        let record = std::mem::take(&mut self.attributes).record(self.ino, kind, self.names, rdev, body);
        if self.names == 1 {
            return Target::Inode(record);
        }
        linked.insert(self.ino, record);
        Target::Link { ino: self.ino, kind }
    }
}

impl Attributes {
    /// Of a directory that an archive has no entry for.
    fn missing_directory() -> Attributes {
        Attributes { mode: 0o755, ..Attributes::default() }
    }

    fn record(self, ino: Ino, kind: FileKind, nlink: u32, rdev: u64, body: Body) -> InodeRecord {
        InodeRecord {
            ino,
            mode: kind.to_mode() | (self.mode & 0o7777),
            nlink,
            uid: self.uid,
            gid: self.gid,
            rdev,
            atime: self.mtime,
            mtime: self.mtime,
            ctime: self.mtime,
            xattrs: self.xattrs,
            body,
        }
    }
}

/// The components that a path names below the root.
fn normalise(path: &[u8]) -> Reason<Vec<Box<[u8]>>> {
    let mut components: Vec<Box<[u8]>> = Vec::new();
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("a name with '..' could leave the tree".to_owned()),
            name if components.len() < MAX_DEPTH => components.push(name.into()),
            _ => return Err(too_deep()),
        }
    }
    Ok(components)
}

/// No path could name it; without a bound a small archive could ask for any amount of work.
fn too_deep() -> String {
    format!("it is nested deeper than {MAX_DEPTH} levels")
}

fn check_name(parent: DirId, name: &[u8]) -> Reason<()> {
    if parent == ROOT && name == RESERVED {
        return Err("the name .karapace at the root is reserved for the control files".to_owned());
    }
    if name.len() > 255 {
        return Err("a component of its name is longer than 255 bytes".to_owned());
    }
    if name.contains(&0) {
        return Err("its name holds a NUL byte".to_owned());
    }
    Ok(())
}

/// Attributes as Linux can hold them; an archive may say anything.
pub(super) fn check_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Reason<()> {
    for (name, value) in xattrs {
        if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 64 << 10 {
            return Err(format!("its extended attribute {:?} is not one", String::from_utf8_lossy(name)));
        }
    }
    Ok(())
}

/// The error that names an entry.
pub(super) fn refuse(path: &[u8], reason: &str) -> StoreError {
    StoreError::Invalid(format!("cannot import {:?}: {reason}", String::from_utf8_lossy(path)))
}
