//! Differences between the view and its head, computed without storing anything: a visitor of the store's
//! walk over two trees, with the dirty inodes overlaid on the new one.
//!
//! The rules are those of the store's `diff` of two trees: a path counts if its content or metadata differ; a
//! difference in times alone counts only for non-directories. Directories without changes below them are
//! never opened.

use std::collections::{BTreeMap, HashMap};

use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO};
use karapace_store::root::Root;
use karapace_store::tree::{
    Below, Linked, New, Renumbered, Target, Visitor, changed_links, compare, differs,
};

use crate::attr::{DiffEntry, DiffKind};
use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::{FileBody, Node, NodeBody};
use crate::view::table::State;

/// What a name in the view resolves to.
enum Found<'a> {
    Node(Ino, &'a Node),
    /// `true`: the inode has several names.
    Record(InodeRecord, bool),
}

impl Found<'_> {
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
}

/// Collects the differing paths.
struct Differ<'a> {
    view: &'a View,
    state: &'a State,
    old_root: &'a Root,
    /// Dirty inodes with one name, by parent directory.
    in_place: HashMap<Ino, Vec<(&'a [u8], Ino)>>,
    renumbered: Renumbered,
    out: Vec<DiffEntry>,
}

impl View {
    /// Every path that differs from the tree below the upper: parents before children, siblings ordered by
    /// the bytes of their names.
    pub fn diff(&self) -> Result<Vec<DiffEntry>> {
        self.compare_with(None)
    }

    /// Every path that differs from the root object `old`, in the same order.
    pub fn diff_from(&self, old: &ObjectId) -> Result<Vec<DiffEntry>> {
        self.compare_with(Some(&*self.trees.root(old)?))
    }

    fn compare_with(&self, old_root: Option<&Root>) -> Result<Vec<DiffEntry>> {
        let state = self.state.read();
        let old_root = old_root.unwrap_or(&state.root);
        // If a linked inode changed, all its names differ.
        let mut linked = changed_links(&self.trees, old_root, &state.root)?;
        let mut differ = Differ {
            view: self,
            state: &state,
            old_root,
            in_place: HashMap::new(),
            renumbered: Renumbered::default(),
            out: Vec::new(),
        };
        for (ino, node) in state.dirty_nodes().filter(|(_, n)| !n.is_orphan()) {
            if let Some(place) = &node.place {
                differ.in_place.entry(place.parent).or_default().push((&place.name, ino));
            }
            if node.linked {
                linked.insert(ino);
            }
        }
        let old = old_root.inode.clone();
        let new = Found::Node(ROOT_INO, state.node(ROOT_INO)?);
        differ.pair(b"/", &old, false, &new)?;
        let below = differ.below(Some(&old), Some(&new))?;
        below.map_or(Ok(()), |below| compare(&self.trees, Linked::Some(&linked), below, &mut differ))?;
        Ok(differ.out)
    }
}

impl Visitor for Differ<'_> {
    /// The number of an inode in the table.
    type Over = Ino;
    type Error = Error;

    fn is_one(&mut self, old: &Target, new: &New<Ino>) -> Result<bool> {
        Ok(old.kind()
            == match new {
                New::Listed(new) => new.kind(),
                New::Over(ino) => self.state.node(*ino)?.kind(),
            })
    }

    fn visit(
        &mut self,
        path: &[u8],
        old: Option<Target>,
        new: Option<New<Ino>>,
    ) -> Result<Option<Below<Ino>>> {
        match (old, new) {
            (Some(old), Some(new)) => {
                let linked = matches!(old, Target::Link { .. });
                let (old, new) = (self.resolve(self.old_root, old)?, self.find(new)?);
                self.pair(path, &old, linked, &new)?;
                self.below(Some(&old), Some(&new))
            }
            (Some(old), None) => {
                self.push(DiffKind::Deleted, path);
                match old {
                    Target::Inode(old) => self.below(Some(&old), None),
                    Target::Link { .. } => Ok(None),
                }
            }
            (None, Some(new)) => {
                self.push(DiffKind::Added, path);
                match new {
                    New::Listed(Target::Link { .. }) => Ok(None),
                    new => {
                        let new = self.find(new)?;
                        self.below(None, Some(&new))
                    }
                }
            }
            (None, None) => Ok(None),
        }
    }
}

impl<'a> Differ<'a> {
    fn push(&mut self, kind: DiffKind, path: &[u8]) {
        self.out.push(DiffEntry { kind, path: path.to_vec() });
    }

    /// Compares a path that both sides have with the same kind of inode. `linked`: the old inode had several
    /// names.
    fn pair(&mut self, path: &[u8], old: &InodeRecord, linked: bool, new: &Found<'_>) -> Result<()> {
        let relinked = (linked || new.is_linked())
            && !{
                let was = (self.old_root, old.ino, old.nlink);
                self.renumbered.is_one(&self.view.trees, was, (&self.state.root, new.ino(), new.nlink()))?
            };
        if relinked || !self.same(old, new)? {
            self.push(DiffKind::Modified, path);
        }
        Ok(())
    }

    /// The listings below a path; `None` if neither side is a directory.
    fn below(&self, old: Option<&InodeRecord>, new: Option<&Found<'_>>) -> Result<Option<Below<Ino>>> {
        let (old, old_links) = old.map_or((None, false), InodeRecord::listing);
        let mut names = BTreeMap::new();
        let (new, links) = match new {
            Some(Found::Node(ino, node)) => match node.dir() {
                Some(body) => {
                    let in_place = self.in_place.get(ino).into_iter().flatten();
                    names.extend(in_place.map(|(name, ino)| (Box::from(*name), Some(*ino))));
                    names.extend(body.changes.iter().map(|(name, change)| (name.clone(), *change)));
                    (body.tree, body.links)
                }
                None => (None, false),
            },
            Some(Found::Record(record, _)) => record.listing(),
            None => (None, false),
        };
        let is_any = old.is_some() || new.is_some() || !names.is_empty();
        let over = names.into_iter().collect();
        Ok(is_any.then_some(Below { old, new, links: links || old_links, over }))
    }

    /// The inode record of an entry in a listing of `root`.
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

    /// What a name in the view resolves to.
    fn find(&self, new: New<Ino>) -> Result<Found<'a>> {
        let state = self.state;
        let target = match new {
            New::Over(ino) => return Ok(Found::Node(ino, state.node(ino)?)),
            New::Listed(target) => target,
        };
        let ino = target.ino();
        Ok(match state.nodes.get(&ino) {
            Some(node) if node.dirty => Found::Node(ino, node),
            _ => {
                let linked = matches!(target, Target::Link { .. });
                Found::Record(self.resolve(&state.root, target)?, linked)
            }
        })
    }

    /// Whether two inodes of the same kind are equal; for directories compares only the metadata.
    fn same(&self, old: &InodeRecord, new: &Found<'_>) -> Result<bool> {
        let (ino, node) = match new {
            Found::Record(new, _) => return Ok(!differs(old, new)),
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
                // The file was rewritten and its mtime set back, so only the bytes can tell.
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
