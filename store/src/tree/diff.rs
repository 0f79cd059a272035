//! The differences between two roots.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;

use crate::error::{Result, StoreError};
use crate::inode::{Body, FileKind, Ino, InodeRecord};
use crate::root::Root;

use super::compare::{Below, New, Visitor, compare};
use super::pairs::{Linked, Pair, Pairs};
use super::walk::resolve;
use super::{Keys, Target, Trees};

/// How a path differs.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// The path exists only in the new root.
    Added(&'a InodeRecord),
    /// The path exists only in the old root.
    Removed(&'a InodeRecord),
    /// The path exists in both roots, with the same kind of inode, and differs.
    Modified {
        /// The old inode.
        old: &'a InodeRecord,
        /// The new inode.
        new: &'a InodeRecord,
    },
}

/// Calls `visit` with each path (`/` for the root, else `/a/b`) that differs, in the order of paths compared
/// by component: parents before children.
///
/// Equal subtrees are not opened, except to find the names of a linked inode that changed. Everything below
/// an added or removed directory is visited too. A path whose kind changed is reported as removed (with
/// everything below it), then as added.
///
/// A path counts as modified when anything but atime, ctime, inode number, link count or listing differs (for
/// a file's content: its bytes, not where they are stored), or when it is one of several names in either root
/// and refers to another inode than before (see [`Renumbered`]). A directory's times do not count.
///
/// # Errors
/// When a tree cannot be read; also any error of `visit`.
pub fn diff(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    visit: &mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    compare_roots(trees, old, new, false, visit)
}

/// Like [`diff`], but a directory's modification time counts too.
///
/// # Errors
/// Those of [`diff`].
pub fn diff_with_times(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    visit: &mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    compare_roots(trees, old, new, true, visit)
}

fn compare_roots(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    directory_times: bool,
    visit: &mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    let changed = match old {
        Some(old) => changed_links(trees, old, new)?,
        None => HashSet::new(),
    };
    let renumbered = Renumbered::default();
    let mut differ =
        Differ { trees, old: old.unwrap_or(new), new, directory_times, renumbered, report: visit };
    let below =
        differ.found(b"/", old.map(|old| (old.inode.clone(), false)), Some((new.inode.clone(), false)))?;
    below.map_or(Ok(()), |below| compare(trees, Linked::Some(&changed), below, &mut differ))
}

/// The numbers of the inodes that are in both link tables and differ.
pub fn changed_links(trees: &Trees, old: &Root, new: &Root) -> Result<HashSet<Ino>> {
    let mut changed = HashSet::new();
    let none = HashSet::new();
    let mut pairs = Pairs::of(Keys::Inos, old.links.as_ref(), new.links.as_ref());
    while let Some(Pair { old, new, .. }) = pairs.next(trees, Linked::Some(&none))? {
        if let (Some(Target::Inode(old)), Some(Target::Inode(new))) = (old, new)
            && (old.kind() != new.kind() || differs(&old, &new))
        {
            changed.insert(new.ino);
        }
    }
    Ok(changed)
}

/// Whether two inodes of the same kind differ in what [`diff`] reports.
pub fn differs(old: &InodeRecord, new: &InodeRecord) -> bool {
    let body = match (&old.body, &new.body) {
        (Body::Regular(a), Body::Regular(b)) => (a.size, a.hash) != (b.size, b.hash),
        (Body::Directory { .. }, Body::Directory { .. }) => false,
        (a, b) => a != b,
    };
    body || (old.mode, old.uid, old.gid, old.rdev) != (new.mode, new.uid, new.gid, new.rdev)
        || old.xattrs != new.xattrs
        || (old.kind() != FileKind::Directory && old.mtime != new.mtime)
}

/// Linked inodes that have one number in the old root and another in the new one. A restore under running
/// programs gives inodes new numbers, which does not count as a difference. Two numbers stand for the same
/// inode when neither root has both, the inode has equally many names in both, and no name seen so far
/// contradicts it.
#[derive(Debug, Default)]
pub struct Renumbered {
    new: HashMap<Ino, Ino>,
    old: HashMap<Ino, Ino>,
}

impl Renumbered {
    /// Whether a name's inode in `old` and in `new`, each given with its number and link count, may be the
    /// same. Must be called for every name, in the order of paths.
    pub fn is_one(
        &mut self,
        trees: &Trees,
        (old_root, old, old_names): (&Root, Ino, u32),
        (new_root, new, new_names): (&Root, Ino, u32),
    ) -> Result<bool> {
        if old == new {
            return Ok(true);
        }
        match (self.new.get(&old), self.old.get(&new)) {
            (None, None) => {}
            (known, other) => return Ok(known == Some(&new) && other == Some(&old)),
        }
        let is_one = old_names == new_names
            && trees.link(old_root, old)?.is_some()
            && trees.link(old_root, new)?.is_none()
            && trees.link(new_root, old)?.is_none();
        if is_one {
            self.new.insert(old, new);
            self.old.insert(new, old);
        }
        Ok(is_one)
    }
}

/// Reports how each path differs.
struct Differ<'a> {
    trees: &'a Trees,
    old: &'a Root,
    new: &'a Root,
    directory_times: bool,
    renumbered: Renumbered,
    report: &'a mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
}

/// The inode that a name refers to, and whether the inode has several names.
type Found = (InodeRecord, bool);

impl Visitor for Differ<'_> {
    type Over = Infallible;
    type Error = StoreError;

    fn is_one(&mut self, old: &Target, new: &New<Infallible>) -> Result<bool> {
        match new {
            New::Listed(new) => Ok(old.kind() == new.kind()),
            New::Over(never) => match *never {},
        }
    }

    fn visit(
        &mut self,
        path: &[u8],
        old: Option<Target>,
        new: Option<New<Infallible>>,
    ) -> Result<Option<Below<Infallible>>> {
        let find = |root: &Root, target: Target| {
            let linked = matches!(target, Target::Link { .. });
            Ok::<Found, StoreError>((resolve(self.trees, root, target)?, linked))
        };
        let old = old.map(|old| find(self.old, old)).transpose()?;
        let new = new.map(|New::Listed(new)| find(self.new, new)).transpose()?;
        self.found(path, old, new)
    }
}

impl Differ<'_> {
    /// Reports how the path differs. Returns the listings below it, if either side is a directory.
    fn found(
        &mut self,
        path: &[u8],
        old: Option<Found>,
        new: Option<Found>,
    ) -> Result<Option<Below<Infallible>>> {
        match (&old, &new) {
            (Some((old, old_link)), Some((new, new_link))) => {
                let touched = self.directory_times && old.mtime != new.mtime;
                let relinked = (*old_link || *new_link)
                    && !{
                        let was = (self.old, old.ino, old.nlink);
                        self.renumbered.is_one(self.trees, was, (self.new, new.ino, new.nlink))?
                    };
                if differs(old, new) || touched || relinked {
                    (self.report)(path, Change::Modified { old, new })?;
                }
            }
            (Some((old, _)), None) => (self.report)(path, Change::Removed(old))?,
            (None, Some((new, _))) => (self.report)(path, Change::Added(new))?,
            (None, None) => {}
        }
        let listing = |found: Option<Found>| found.map_or((None, false), |(inode, _)| inode.listing());
        let ((old, _), (new, links)) = (listing(old), listing(new));
        let is_any = old.is_some() || new.is_some();
        Ok(is_any.then_some(Below { old, new, links, over: Vec::new() }))
    }
}
