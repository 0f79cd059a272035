//! What differs between two roots.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::inode::{Body, FileKind, Ino, InodeRecord};
use crate::root::Root;

use super::cursor::Cursor;
use super::walk::resolve;
use super::{Keys, Target, Trees};

/// How a path differs.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// It is in the new root only.
    Added(&'a InodeRecord),
    /// It is in the old root only.
    Removed(&'a InodeRecord),
    /// It is in both, of one kind, and differs.
    Modified {
        /// What it was.
        old: &'a InodeRecord,
        /// What it is.
        new: &'a InodeRecord,
    },
}

/// Calls `visit` with each path (`/` for the root, else `/a/b`) that differs, in path order, component by component:
/// parents before children.
///
/// Equal subtrees are not opened, except to find the names of a linked inode that changed. What is below an added or
/// removed directory is visited too. A path whose kind changed is removed (with what is below it), then added.
///
/// A path is modified when anything but atime, ctime, number, link count or listing differs (of a file's content: the
/// bytes, not where they lie), or when it is one of several names in either root and of another inode than before (see
/// [`Renumbered`]); for directories times do not count.
pub fn diff(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    visit: &mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
) -> Result<()> {
    compare_roots(trees, old, new, false, visit)
}

/// [`diff`], but a directory's modification time counts too.
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
    let Some(old) = old else {
        visit(b"/", Change::Added(&new.inode))?;
        let frame = Frame { length: 0, work: Work::Added(Cursor::new(new.tree(), Keys::Names)) };
        // There is no old root to resolve links in, and none is asked for: everything is added.
        return Differ {
            trees,
            old: new,
            new,
            directory_times,
            changed: HashSet::new(),
            renumbered: Renumbered::default(),
            path: Vec::new(),
            stack: vec![frame],
            visit,
        }
        .run();
    };
    let changed = changed_links(trees, old, new)?;
    let renumbered = Renumbered::default();
    let (path, stack) = (Vec::new(), Vec::new());
    let mut differ = Differ { trees, old, new, directory_times, changed, renumbered, path, stack, visit };
    differ.compare(Some((&old.inode, false)), Some((&new.inode, false)))?;
    differ.run()
}

/// Numbers of the inodes that stand in both link tables and differ.
pub fn changed_links(trees: &Trees, old: &Root, new: &Root) -> Result<HashSet<Ino>> {
    let mut changed = HashSet::new();
    let mut old_links = Cursor::new(old.links.as_ref(), Keys::Inos);
    let mut new_links = Cursor::new(new.links.as_ref(), Keys::Inos);
    if old.links == new.links {
        return Ok(changed);
    }
    loop {
        if skip_equal_chunk(trees, &mut old_links, &mut new_links, |_| true)? {
            continue;
        }
        let (Some(a), Some(b)) = (old_links.peek(trees)?, new_links.peek(trees)?) else { return Ok(changed) };
        match a.name().cmp(b.name()) {
            Ordering::Less => old_links.advance(),
            Ordering::Greater => new_links.advance(),
            Ordering::Equal => {
                if a.raw() != b.raw()
                    && let (Some(Target::Inode(a)), Some(Target::Inode(b))) =
                        (old_links.target()?, new_links.target()?)
                    && (a.kind() != b.kind() || differs(&a, &b))
                {
                    changed.insert(b.ino);
                }
                old_links.advance();
                new_links.advance();
            }
        }
    }
}

/// Skips the chunk at both cursors if it is the same, and `may_skip`, told whether it may have links, agrees.
fn skip_equal_chunk(
    trees: &Trees,
    old: &mut Cursor,
    new: &mut Cursor,
    may_skip: impl Fn(bool) -> bool,
) -> Result<bool> {
    match (old.chunk(trees)?, new.chunk(trees)?) {
        (Some((a, links)), Some((b, _))) if a == b && may_skip(links) => {
            old.skip_chunk();
            new.skip_chunk();
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Whether two inodes of one kind differ in what counts.
pub(super) fn differs(old: &InodeRecord, new: &InodeRecord) -> bool {
    let body = match (&old.body, &new.body) {
        (Body::Regular(a), Body::Regular(b)) => (a.size, a.hash) != (b.size, b.hash),
        (Body::Directory { .. }, Body::Directory { .. }) => false,
        (a, b) => a != b,
    };
    body || (old.mode, old.uid, old.gid, old.rdev) != (new.mode, new.uid, new.gid, new.rdev)
        || old.xattrs != new.xattrs
        || (old.kind() != FileKind::Directory && old.mtime != new.mtime)
}

/// Linked inodes that have one number in the old root and another in the new one. A restore under running programs numbers inodes
/// anew, and that is no difference: two numbers stand for one inode when neither root has both, it has as many names in both, and
/// no name was seen that says otherwise.
#[derive(Debug, Default)]
pub struct Renumbered {
    new: HashMap<Ino, Ino>,
    old: HashMap<Ino, Ino>,
}

impl Renumbered {
    /// Whether a name's inode in `old` and in `new`, each with its number and count of names, may be one. To be asked for each name
    /// in the order of paths.
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

/// Work left to do. An explicit stack, because a tree may be deeper than a thread's.
struct Frame {
    /// Length of the path that this is about.
    length: usize,
    work: Work,
}

enum Work {
    /// The directory is in both roots.
    Both(Box<Cursor>, Box<Cursor>),
    Added(Cursor),
    Removed(Cursor),
    /// An inode to report as added, after what was removed at its path.
    Later(Box<InodeRecord>),
}

struct Differ<'a> {
    trees: &'a Trees,
    old: &'a Root,
    new: &'a Root,
    directory_times: bool,
    /// Linked inodes that changed: their names may stand in directories that did not.
    changed: HashSet<Ino>,
    renumbered: Renumbered,
    path: Vec<u8>,
    stack: Vec<Frame>,
    visit: &'a mut dyn FnMut(&[u8], Change<'_>) -> Result<()>,
}

/// An entry that a step found: the resolved inode and whether it is one of several names.
type Found = Option<(InodeRecord, bool)>;

impl Differ<'_> {
    fn run(mut self) -> Result<()> {
        while let Some(mut frame) = self.stack.pop() {
            self.path.truncate(frame.length);
            if let Work::Later(record) = frame.work {
                self.compare(None, Some((&record, false)))?;
                continue;
            }
            let Some((old, new)) = self.step(&mut frame.work)? else { continue };
            self.stack.push(frame);
            self.compare(old.as_ref().map(|(r, link)| (r, *link)), new.as_ref().map(|(r, link)| (r, *link)))?;
        }
        Ok(())
    }

    /// Finds the next entry of a directory that may differ and appends it to the path; None at the end.
    fn step(&mut self, work: &mut Work) -> Result<Option<(Found, Found)>> {
        match work {
            Work::Added(cursor) => {
                let found = self.take(cursor, self.new, true)?;
                Ok(found.map(|found| (None, Some(found))))
            }
            Work::Removed(cursor) => {
                let found = self.take(cursor, self.old, true)?;
                Ok(found.map(|found| (Some(found), None)))
            }
            Work::Both(old, new) => self.step_both(old, new),
            Work::Later(_) => Ok(None),
        }
    }

    fn step_both(&mut self, old: &mut Cursor, new: &mut Cursor) -> Result<Option<(Found, Found)>> {
        loop {
            if skip_equal_chunk(self.trees, old, new, |links| self.changed.is_empty() || !links)? {
                continue;
            }
            let order = match (old.peek(self.trees)?, new.peek(self.trees)?) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => {
                    let order = a.name().cmp(b.name());
                    if order.is_eq() && a.raw() == b.raw() && !self.may_hide_change(&a) {
                        old.advance();
                        new.advance();
                        continue;
                    }
                    order
                }
            };
            return Ok(Some(match order {
                Ordering::Less => (self.take(old, self.old, true)?, None),
                Ordering::Greater => (None, self.take(new, self.new, true)?),
                Ordering::Equal => (self.take(old, self.old, true)?, self.take(new, self.new, false)?),
            }));
        }
    }

    /// Whether an entry that is equal in both roots may lead to a changed linked inode.
    fn may_hide_change(&self, entry: &super::EntryRef<'_>) -> bool {
        if self.changed.is_empty() {
            return false;
        }
        if entry.is_link() { self.changed.contains(&entry.ino()) } else { entry.has_links() }
    }

    /// Takes the entry at the cursor and, with `name`, appends its name to the path.
    fn take(&mut self, cursor: &mut Cursor, root: &Root, name: bool) -> Result<Found> {
        let Some(entry) = cursor.peek(self.trees)? else { return Ok(None) };
        let link = entry.is_link();
        if name {
            self.path.push(b'/');
            self.path.extend_from_slice(entry.name());
        }
        let target = cursor.target()?;
        cursor.advance();
        target.map(|target| Ok((resolve(self.trees, root, target)?, link))).transpose()
    }

    /// Reports how the path differs, given its inodes and whether they are linked, and queues what is below it.
    fn compare(
        &mut self,
        old: Option<(&InodeRecord, bool)>,
        new: Option<(&InodeRecord, bool)>,
    ) -> Result<()> {
        match (old, new) {
            (Some((old, _)), Some((new, _))) if old.kind() != new.kind() => {
                self.push(Work::Later(Box::new(new.clone())));
                self.report(Change::Removed(old))?;
                if let Some(cursor) = below(old) {
                    self.push(Work::Removed(cursor));
                }
            }
            (Some((old, old_link)), Some((new, new_link))) => {
                let touched = self.directory_times && old.mtime != new.mtime;
                let relinked = (old_link || new_link)
                    && !{
                        let was = (self.old, old.ino, old.nlink);
                        self.renumbered.is_one(self.trees, was, (self.new, new.ino, new.nlink))?
                    };
                if differs(old, new) || touched || relinked {
                    self.report(Change::Modified { old, new })?;
                }
                self.descend(old, new);
            }
            (Some((old, _)), None) => {
                self.report(Change::Removed(old))?;
                if let Some(cursor) = below(old) {
                    self.push(Work::Removed(cursor));
                }
            }
            (None, Some((new, _))) => {
                self.report(Change::Added(new))?;
                if let Some(cursor) = below(new) {
                    self.push(Work::Added(cursor));
                }
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// Queues a directory that is in both roots, unless nothing below it can differ.
    fn descend(&mut self, old: &InodeRecord, new: &InodeRecord) {
        let (Body::Directory { tree: a, .. }, Body::Directory { tree: b, links }) = (&old.body, &new.body)
        else {
            return;
        };
        if a != b || (*links && !self.changed.is_empty()) {
            let cursor = |tree: &Option<_>| Box::new(Cursor::new(tree.as_ref(), Keys::Names));
            self.push(Work::Both(cursor(a), cursor(b)));
        }
    }

    fn push(&mut self, work: Work) {
        self.stack.push(Frame { length: self.path.len(), work });
    }

    fn report(&mut self, change: Change<'_>) -> Result<()> {
        let path: &[u8] = if self.path.is_empty() { b"/" } else { &self.path };
        (self.visit)(path, change)
    }
}

/// The listing of a directory that has one.
fn below(record: &InodeRecord) -> Option<Cursor> {
    match &record.body {
        Body::Directory { tree: Some(tree), .. } => Some(Cursor::new(Some(tree), Keys::Names)),
        _ => None,
    }
}
