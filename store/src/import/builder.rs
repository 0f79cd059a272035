//! The tree that an import builds: metadata in memory, then numbered and written bottom-up.
//!
//! A layer of an image, or an overlay's upper directory, is built in a builder of its own and then laid over
//! what is below it ([`Builder::cover`]): so it does not matter where in a layer a deletion stands.

mod check;
mod cover;
mod follow;
mod lower;
mod trail;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use self::check::{check_name, too_deep};
pub(super) use self::check::{check_xattrs, normalise, refuse, why_not_settable};
pub(super) use self::follow::Way;
use crate::content::{Extent, FileContent};
use crate::inode::{FileKind, Ino, Timestamp, Xattrs};
use crate::tree::WrittenDir;

/// Maximum nesting: what a path of PATH_MAX bytes can reach.
const MAX_DEPTH: usize = 2048;

/// Maximum length in bytes of a symbolic link's target on Linux.
const MAX_TARGET: usize = 4095;

/// Maximum number of bytes of metadata held in memory, roughly: about eight million entries. Without a limit
/// a compressed archive could demand any amount.
pub(super) const MAX_METADATA: u64 = 2 << 30;

/// How many symbolic links are followed for one name, as in Linux.
const MAX_LINKS: usize = 40;

/// Index of a directory in the builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DirId(usize);

/// Index of any other inode in the builder; several names may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LeafId(usize);

/// The root directory of a builder that has not covered another.
pub(super) const ROOT: DirId = DirId(0);

/// The attributes of an inode, without its content.
#[derive(Debug, Clone, Default)]
pub(super) struct Attributes {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Access and change time, if they differ from the modification time.
    pub other_times: Option<(Timestamp, Timestamp)>,
    pub xattrs: Xattrs,
}

/// What an inode other than a directory is.
#[derive(Debug)]
pub(super) enum Content {
    Regular(FileContent),
    Symlink(Box<[u8]>),
    /// A FIFO, a socket, or a device with its number.
    Special(FileKind, u64),
    /// A regular file of this size whose content is that of a file below: an overlay's metadata-only copy.
    Below(u64, Option<Redirect>),
}

/// Where in the lower tree a renamed entry of an overlay's upper was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Under another name in the same directory.
    Name(Box<[u8]>),
    /// At a path from the root.
    Path(Vec<Box<[u8]>>),
}

enum Shape {
    Content(Content),
    /// A hard link whose target has not been read yet: its normalised name.
    Pending(Vec<Box<[u8]>>),
    /// A hard link to an inode of the layers below, whatever happens to its name there.
    Same(LeafId),
    /// Its record has been written; to the link table if it has several names.
    Written(FileKind),
}

#[derive(Clone, Copy)]
enum Child {
    Directory(DirId),
    Leaf(LeafId),
}

/// What a directory of a layer says about the layers below.
#[derive(Debug, Default)]
struct Marks {
    /// Whether nothing of them shows.
    opaque: bool,
    /// The names that do not show.
    whiteouts: BTreeSet<Box<[u8]>>,
    /// Where the directory was below.
    redirect: Option<Redirect>,
}

struct Directory {
    /// Levels below the root.
    depth: usize,
    /// Whether its attributes were given explicitly.
    explicit: bool,
    attributes: Attributes,
    children: BTreeMap<Box<[u8]>, Child>,
    marks: Option<Box<Marks>>,
    ino: Ino,
    /// Whether the result already contains it, by itself or through what covers it.
    taken: bool,
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

/// A tree under construction. Entries come in any order; of two with one name the later wins.
pub(super) struct Builder {
    directories: Vec<Directory>,
    leaves: Vec<Leaf>,
    root: DirId,
    /// The next inode number to assign.
    next_ino: Ino,
    /// Whether some hard link came before its target.
    pending: bool,
    /// Whether the layer has renames or metadata-only files, which look things up in the layers below.
    renames: bool,
    /// How many more bytes of metadata are allowed.
    room: u64,
}

impl Builder {
    /// An empty tree that accepts at most `room` bytes of metadata.
    pub fn new(room: u64) -> Builder {
        let root = Directory::new(0, Attributes::missing_directory());
        let next_ino = crate::inode::ROOT_INO + 1;
        Builder {
            directories: vec![root],
            leaves: Vec::new(),
            root: ROOT,
            next_ino,
            pending: false,
            renames: false,
            room,
        }
    }

    /// How many more bytes of metadata are allowed.
    pub fn room(&self) -> u64 {
        self.room
    }

    /// Adds a directory at an archive's path. An existing one keeps its entries.
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

    /// Adds anything other than a directory at an archive's path.
    pub fn put(&mut self, path: &[u8], attributes: Attributes, content: Content) -> Reason<()> {
        let components = normalise(path)?;
        let (name, above) = components.split_last().ok_or("the root must be a directory")?;
        let parent = self.parent(above)?;
        self.add(parent, name, attributes, content).map(|_| ())
    }

    /// Adds a hard link to `target`, which may come later in the archive.
    pub fn put_link(&mut self, path: &[u8], target: &[u8]) -> Reason<()> {
        let components = normalise(path)?;
        let wanted = normalise(target).map_err(|reason| format!("the target of its hard link: {reason}"))?;
        let (name, above) = components.split_last().ok_or("the root must be a directory")?;
        let parent = self.parent(above)?;
        let leaf = match self.find(self.root, &wanted) {
            Some(Child::Directory(_)) => return Err("it is a hard link to a directory".to_owned()),
            Some(Child::Leaf(leaf)) => leaf,
            None => {
                self.pending = true;
                self.spend(wanted.iter().map(|name| name.len() + 32).sum())?;
                self.push(Attributes::default(), Shape::Pending(wanted))?
            }
        };
        self.add_link(parent, name, leaf)
    }

    /// Adds a directory below another.
    pub fn add_directory(&mut self, parent: DirId, name: &[u8], attributes: Attributes) -> Reason<DirId> {
        let directory = self.directory(parent, name)?;
        self.set_attributes(directory, attributes);
        Ok(directory)
    }

    /// Adds anything other than a directory below a directory.
    pub fn add(
        &mut self,
        parent: DirId,
        name: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Reason<LeafId> {
        match &content {
            Content::Symlink(target) if target.is_empty() => {
                return Err("the target of its link is empty".to_owned());
            }
            Content::Symlink(target) if target.len() > MAX_TARGET => {
                return Err(format!("the target of its link is longer than {MAX_TARGET} bytes"));
            }
            _ => {}
        }
        self.renames |= matches!(content, Content::Below(..));
        let attributes = match content {
            // On Linux a symbolic link has no other mode, whatever an archive says.
            Content::Symlink(_) => Attributes { mode: 0o777, ..attributes },
            _ => attributes,
        };
        check_name(parent == ROOT, name)?;
        let leaf = self.push(attributes, Shape::Content(content))?;
        self.add_link(parent, name, leaf)?;
        Ok(leaf)
    }

    /// Adds another name for a leaf, below a directory.
    pub fn add_link(&mut self, parent: DirId, name: &[u8], leaf: LeafId) -> Reason<()> {
        check_name(parent == ROOT, name)?;
        self.spend(name.len() + 64)?;
        self.directories[parent.0].children.insert(name.into(), Child::Leaf(leaf));
        Ok(())
    }

    /// Sets the attributes of the root directory.
    pub fn set_root(&mut self, attributes: Attributes) {
        self.set_attributes(self.root, attributes);
    }

    /// Hides `name` of the layers below in this directory. An entry of that name in this layer still shows.
    pub fn hide(&mut self, directory: DirId, name: &[u8]) -> Reason<()> {
        self.spend(name.len() + 64)?;
        self.marks(directory).whiteouts.insert(name.into());
        Ok(())
    }

    /// Hides everything of the layers below in this directory.
    pub fn set_opaque(&mut self, directory: DirId) {
        self.marks(directory).opaque = true;
    }

    /// Records where in the layers below the directory was.
    pub fn set_redirect(&mut self, directory: DirId, redirect: Redirect) {
        self.renames = true;
        self.marks(directory).redirect = Some(redirect);
    }

    /// Splits an archive's path, for a whiteout: returns the directory and the last component. Missing
    /// directories are made.
    pub fn place<'a>(&mut self, path: &'a [u8]) -> Reason<(DirId, &'a [u8])> {
        let end = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let above = normalise(&path[..end])?;
        Ok((self.parent(&above)?, &path[end..]))
    }

    /// The names in the directory at this path, in order; none if there is no such directory.
    pub fn names_below(&self, path: &[&str]) -> Vec<String> {
        let path: Vec<Box<[u8]>> = path.iter().map(|name| name.as_bytes().into()).collect();
        match self.find(self.root, &path) {
            Some(Child::Directory(directory)) => {
                let names = self.directories[directory.0].children.keys();
                names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the layer itself has a directory at this path.
    pub fn has_directory(&self, path: &[Box<[u8]>]) -> bool {
        matches!(self.find(self.root, path), Some(Child::Directory(_)))
    }

    fn marks(&mut self, directory: DirId) -> &mut Marks {
        self.directories[directory.0].marks.get_or_insert_default()
    }

    fn set_attributes(&mut self, directory: DirId, attributes: Attributes) {
        let directory = &mut self.directories[directory.0];
        directory.attributes = attributes;
        directory.explicit = true;
    }

    /// The directory of this name; made if there is none or something else has the name.
    fn directory(&mut self, parent: DirId, name: &[u8]) -> Reason<DirId> {
        check_name(parent == ROOT, name)?;
        if let Some(&Child::Directory(known)) = self.directories[parent.0].children.get(name) {
            return Ok(known);
        }
        let depth = self.directories[parent.0].depth + 1;
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.spend(size_of::<Directory>() + name.len() + 64)?;
        let directory = DirId(self.directories.len());
        self.directories.push(Directory::new(depth, Attributes::missing_directory()));
        self.directories[parent.0].children.insert(name.into(), Child::Directory(directory));
        Ok(directory)
    }

    fn push(&mut self, attributes: Attributes, shape: Shape) -> Reason<LeafId> {
        let xattrs: usize = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        let content = match &shape {
            Shape::Content(Content::Regular(content)) => content.extents.len() * size_of::<Extent>(),
            Shape::Content(Content::Symlink(target)) => target.len(),
            _ => 0,
        };
        self.spend(size_of::<Leaf>() + xattrs + content)?;
        self.leaves.push(Leaf { attributes, shape, ino: 0, names: 0 });
        Ok(LeafId(self.leaves.len() - 1))
    }

    /// Charges bytes of metadata against the limit.
    fn spend(&mut self, bytes: usize) -> Reason<()> {
        let left = self.room.checked_sub(bytes as u64);
        self.room = left.ok_or_else(|| {
            let limit = MAX_METADATA >> 20;
            format!("with it the image exceeds the limit of {limit} MiB of names and attributes")
        })?;
        Ok(())
    }

    /// The directory at this path; missing ones are made (0755, root's, time 0). Follows no links.
    fn parent(&mut self, components: &[Box<[u8]>]) -> Reason<DirId> {
        let mut at = self.root;
        for (depth, name) in components.iter().enumerate() {
            if let Some(Child::Leaf(_)) = self.directories[at.0].children.get(name) {
                let above = components[..=depth].join(&b'/');
                return Err(format!("its parent {:?} is not a directory", String::from_utf8_lossy(&above)));
            }
            at = self.directory(at, name)?;
        }
        Ok(at)
    }

    fn find(&self, top: DirId, components: &[Box<[u8]>]) -> Option<Child> {
        components.iter().try_fold(Child::Directory(top), |at, name| match at {
            Child::Directory(directory) => self.directories[directory.0].children.get(name).copied(),
            Child::Leaf(_) => None,
        })
    }
}

impl Directory {
    fn new(depth: usize, attributes: Attributes) -> Directory {
        Directory {
            depth,
            explicit: false,
            attributes,
            children: BTreeMap::new(),
            marks: None,
            ino: 0,
            taken: false,
            subdirectories: 0,
            written: WrittenDir::default(),
        }
    }
}

impl Attributes {
    /// The attributes of a directory for which an archive has no entry.
    fn missing_directory() -> Attributes {
        Attributes { mode: 0o755, ..Attributes::default() }
    }
}
