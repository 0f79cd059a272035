//! What differs between the view and its head, without storing anything.
//!
//! The rules are those of the store's `diff` of two trees: a path counts when its content or metadata differ; times alone
//! only of what is no directory. Directories that nothing below has changed are never opened.

use std::collections::{BTreeSet, HashMap, HashSet};

use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO};
use karapace_store::root::Root;
use karapace_store::tree::{Renumbered, Target, changed_links};

use crate::attr::{DiffEntry, DiffKind};
use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::{FileBody, Node, NodeBody};
use crate::view::table::State;
use karapace_store::deep::deep;

/// One side of a comparison of directories.
#[derive(Clone, Copy)]
enum Dir {
    /// In the inode table.
    Node(Ino),
    /// A listing of the lower view.
    Tree(Option<ObjectId>),
}

/// What a name of the view leads to.
enum Found<'a> {
    Node(Ino, &'a Node),
    /// `true`: one of several names.
    Record(InodeRecord, bool),
}

impl Found<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Found::Node(_, node) => node.kind(),
            Found::Record(record, _) => record.kind(),
        }
    }

    fn ino(&self) -> Ino {
        match self {
            Found::Node(ino, _) => *ino,
            Found::Record(record, _) => record.ino,
        }
    }

    fn nlink(&self) -> u32 {
        match self {
            Found::Node(_, node) => node.meta.nlink,
            Found::Record(record, _) => record.nlink,
        }
    }

    fn is_linked(&self) -> bool {
        match self {
            Found::Node(_, node) => node.linked,
            Found::Record(_, linked) => *linked,
        }
    }

    fn dir(&self) -> Dir {
        match self {
            Found::Node(ino, _) => Dir::Node(*ino),
            Found::Record(record, _) => Dir::Tree(tree_of(record).0),
        }
    }
}

/// The listing of a directory's record, and whether it has linked inodes below.
fn tree_of(record: &InodeRecord) -> (Option<ObjectId>, bool) {
    match record.body {
        Body::Directory { tree, links } => (tree, links),
        _ => (None, false),
    }
}

struct Differ<'a> {
    view: &'a View,
    state: &'a State,
    old_root: &'a Root,
    /// Names of changed inodes that are where they were, by directory.
    in_place: HashMap<Ino, Vec<&'a [u8]>>,
    /// Linked inodes that changed: all their names count.
    linked: HashSet<Ino>,
    renumbered: Renumbered,
    out: Vec<DiffEntry>,
}

impl View {
    /// Every path that differs from the tree below the upper, parents before children, siblings by the bytes of their names.
    pub fn diff(&self) -> Result<Vec<DiffEntry>> {
        deep(|| self.compare_with(None))?
    }

    /// Every path that differs from the root object `old`, in the same order.
    pub fn diff_from(&self, old: &ObjectId) -> Result<Vec<DiffEntry>> {
        let old = self.trees.root(old)?;
        deep(|| self.compare_with(Some(&old)))?
    }

    fn compare_with(&self, old_root: Option<&Root>) -> Result<Vec<DiffEntry>> {
        let state = self.state.read();
        let old_root = old_root.unwrap_or(&state.root);
        let mut differ = Differ {
            view: self,
            state: &state,
            old_root,
            in_place: HashMap::new(),
            linked: changed_links(&self.trees, old_root, &state.root)?,
            renumbered: Renumbered::default(),
            out: Vec::new(),
        };
        for (ino, node) in state.dirty_nodes().filter(|(_, n)| !n.is_orphan()) {
            if let Some(place) = &node.place {
                differ.in_place.entry(place.parent).or_default().push(&place.name);
            }
            if node.linked {
                differ.linked.insert(ino);
            }
        }
        let old = old_root.inode.clone();
        let new = Found::Node(ROOT_INO, state.node(ROOT_INO)?);
        differ.compare(b"/", &old, false, &new)?;
        Ok(differ.out)
    }
}

impl<'a> Differ<'a> {
    fn push(&mut self, kind: DiffKind, path: &[u8]) {
        self.out.push(DiffEntry { kind, path: path.to_vec() });
    }

    /// One path that both sides have; `linked`: it was one of several names.
    fn compare(&mut self, path: &[u8], old: &InodeRecord, linked: bool, new: &Found<'_>) -> Result<()> {
        if old.kind() != new.kind() {
            self.whole_old(DiffKind::Deleted, path, old)?;
            return self.whole_new(path, new);
        }
        let relinked = (linked || new.is_linked())
            && !{
                let was = (self.old_root, old.ino, old.nlink);
                self.renumbered.is_one(&self.view.trees, was, (&self.state.root, new.ino(), new.nlink()))?
            };
        if relinked || !self.same(old, new)? {
            self.push(DiffKind::Modified, path);
        }
        if old.kind() == FileKind::Directory {
            let (tree, links) = tree_of(old);
            self.compare_dirs(path, tree, links, new.dir())?;
        }
        Ok(())
    }

    fn compare_dirs(&mut self, path: &[u8], old: Option<ObjectId>, links: bool, new: Dir) -> Result<()> {
        let search_links = links && !self.linked.is_empty();
        let mut names: BTreeSet<Box<[u8]>> = BTreeSet::new();
        let tree = match new {
            Dir::Tree(tree) => tree,
            Dir::Node(ino) => {
                let body = self.state.node(ino)?.dir().ok_or(Error::NotDirectory)?;
                names.extend(body.changes.keys().cloned());
                names.extend(self.in_place.get(&ino).into_iter().flatten().map(|name| Box::from(*name)));
                body.tree
            }
        };
        if tree != old || search_links {
            for tree in [tree, old].into_iter().flatten() {
                self.view.trees.for_each(&tree, &mut |entry| {
                    names.insert(entry.name().into());
                    Ok(())
                })?;
            }
        }
        for name in names {
            let before = match old {
                Some(tree) => self.view.trees.lookup(&tree, &name)?,
                None => None,
            };
            let linked = matches!(before, Some(Target::Link { .. }));
            let before = before.map(|target| self.resolve(self.old_root, target)).transpose()?;
            let after = self.find(new, &name)?;
            let path = join(path, &name);
            match (before, after) {
                (None, None) => {}
                (Some(old), None) => self.whole_old(DiffKind::Deleted, &path, &old)?,
                (None, Some(new)) => self.whole_new(&path, &new)?,
                (Some(old), Some(new)) => self.compare(&path, &old, linked, &new)?,
            }
        }
        Ok(())
    }

    /// The record for an entry of a listing of `root`.
    fn resolve(&self, root: &Root, target: Target) -> Result<InodeRecord> {
        match target {
            Target::Inode(record) => Ok(record),
            Target::Link { ino, .. } => self
                .view
                .trees
                .link(root, ino)?
                .ok_or_else(|| Error::Corrupt(format!("inode {ino} is not in the link table"))),
        }
    }

    /// What a name of the view leads to.
    fn find(&self, dir: Dir, name: &[u8]) -> Result<Option<Found<'a>>> {
        let state = self.state;
        let tree = match dir {
            Dir::Tree(tree) => tree,
            Dir::Node(ino) => {
                let body = state.node(ino)?.dir().ok_or(Error::NotDirectory)?;
                match body.changes.get(name) {
                    Some(None) => return Ok(None),
                    Some(Some(ino)) => return Ok(Some(Found::Node(*ino, state.node(*ino)?))),
                    None => body.tree,
                }
            }
        };
        let Some(tree) = tree else { return Ok(None) };
        let Some(target) = self.view.trees.lookup(&tree, name)? else { return Ok(None) };
        let (ino, linked) = match &target {
            Target::Inode(record) => (record.ino, false),
            Target::Link { ino, .. } => (*ino, true),
        };
        Ok(Some(match state.nodes.get(&ino) {
            Some(node) if node.dirty => Found::Node(ino, node),
            _ => Found::Record(self.resolve(&self.state.root, target)?, linked),
        }))
    }

    /// A path and all below it that a tree has.
    fn whole_old(&mut self, kind: DiffKind, path: &[u8], old: &InodeRecord) -> Result<()> {
        self.push(kind, path);
        let Some(tree) = tree_of(old).0 else { return Ok(()) };
        let mut below = Vec::new();
        self.view.trees.for_each(&tree, &mut |entry| {
            below.push((Box::<[u8]>::from(entry.name()), entry.to_target()?));
            Ok(())
        })?;
        for (name, target) in below {
            let path = join(path, &name);
            match target {
                Target::Inode(record) => self.whole_old(kind, &path, &record)?,
                Target::Link { .. } => self.push(kind, &path),
            }
        }
        Ok(())
    }

    /// A path and all below it that the view has.
    fn whole_new(&mut self, path: &[u8], new: &Found<'_>) -> Result<()> {
        let ino = match new {
            Found::Record(record, _) => return self.whole_old(DiffKind::Added, path, record),
            Found::Node(ino, node) if node.kind() == FileKind::Directory => *ino,
            Found::Node(..) => {
                self.push(DiffKind::Added, path);
                return Ok(());
            }
        };
        self.push(DiffKind::Added, path);
        let mut names: BTreeSet<Box<[u8]>> = BTreeSet::new();
        self.view.for_each_entry(self.state, ino, &mut |name, _, _| {
            names.insert(name.into());
        })?;
        for name in names {
            if let Some(found) = self.find(Dir::Node(ino), &name)? {
                self.whole_new(&join(path, &name), &found)?;
            }
        }
        Ok(())
    }

    /// Whether two things of one kind are the same; of directories only the metadata.
    fn same(&self, old: &InodeRecord, new: &Found<'_>) -> Result<bool> {
        let (ino, node) = match new {
            Found::Record(new, _) => return Ok(same_records(old, new)),
            Found::Node(ino, node) => (*ino, *node),
        };
        let m = &node.meta;
        let directory = old.kind() == FileKind::Directory;
        let device = matches!(old.kind(), FileKind::CharDevice | FileKind::BlockDevice);
        if (old.mode, old.uid, old.gid) != (m.mode, m.uid, m.gid)
            || old.xattrs != node.xattrs
            || (device && old.rdev != m.rdev)
            || (!directory && (node.stale_times || old.mtime != m.mtime))
        {
            return Ok(false);
        }
        match (&old.body, &node.body) {
            (Body::Symlink(a), NodeBody::Symlink(b)) => Ok(a == b),
            (Body::Regular(a), NodeBody::File(FileBody::Lower(b))) => {
                Ok(a.hash == b.hash && a.size == b.size)
            }
            (Body::Regular(a), NodeBody::File(_)) => {
                // Rewritten with the time set back: only the bytes tell.
                if a.size != m.size {
                    return Ok(false);
                }
                self.same_bytes(a, ino, m.size)
            }
            _ => Ok(true),
        }
    }

    fn same_bytes(&self, old: &karapace_store::content::FileContent, ino: Ino, size: u64) -> Result<bool> {
        const STEP: usize = 1 << 20;
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at < size {
            a.clear();
            self.view.content.read(old, at, STEP, &mut a)?;
            self.view.read_locked(self.state, ino, at, STEP, &mut b)?;
            if a != b {
                return Ok(false);
            }
            at += STEP as u64;
        }
        Ok(true)
    }
}

fn same_records(a: &InodeRecord, b: &InodeRecord) -> bool {
    let directory = a.kind() == FileKind::Directory;
    (a.mode, a.uid, a.gid, a.rdev) == (b.mode, b.uid, b.gid, b.rdev)
        && a.xattrs == b.xattrs
        && (directory || a.mtime == b.mtime)
        && match (&a.body, &b.body) {
            (Body::Symlink(a), Body::Symlink(b)) => a == b,
            (Body::Regular(a), Body::Regular(b)) => a.hash == b.hash && a.size == b.size,
            _ => true,
        }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if path != b"/" {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}
