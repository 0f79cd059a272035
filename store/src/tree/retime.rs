//! Modification times after a restore.
//!
//! Programs that compare times (make, cargo, caches of listings) take a file for unchanged when an older file
//! replaces it. So what a restore brings in gets the current time, as files checked out by git do, and
//! nothing that stays gets an older one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::batch::Batch;
use crate::deep::deep;
use crate::error::{IoContext, Result, StoreError};
use crate::inode::{Body, FileKind, Ino, InodeRecord, Timestamp};
use crate::root::Root;

use super::diff::differs;
use super::{Linked, Pair, Pairs, Target, Trees, update_dir, update_links};

/// The result of [`retime`].
#[derive(Clone, Debug)]
pub struct Retimed {
    /// The tree.
    pub root: Root,
    /// How many inodes other than directories got the current time.
    pub touched: u64,
}

/// Returns `after` with the modification times it would have if `before` had been changed into it at the time
/// `now`. A new or changed file gets `now`, and so does a directory in which a name came, went or changed its
/// kind. Everything else keeps the modification time from `before`, and all its times if nothing of it
/// differs. The change time is `now` wherever anything differs. Objects are added to `batch`.
///
/// `after` must be stored. Both trees are from one environment's history: a number means one inode in both.
pub fn retime(
    trees: &Trees,
    batch: &mut Batch,
    before: &Root,
    after: &Root,
    now: Timestamp,
) -> Result<Retimed> {
    let mut retime = Retime { trees, batch, before, after, now, names: HashMap::new(), touched: 0 };
    deep(|| retime.run()).at("start a thread for", trees.store().root())?
}

struct Retime<'a> {
    trees: &'a Trees,
    batch: &'a mut Batch,
    before: &'a Root,
    after: &'a Root,
    now: Timestamp,
    /// The linked inodes of `after` whose names have been visited.
    names: HashMap<Ino, Names>,
    touched: u64,
}

/// What was found at the names of a linked inode.
#[derive(Default)]
struct Names {
    /// An inode with the same content.
    same: Option<InodeRecord>,
    /// Whether an inode with another content was at one of the names.
    differs: bool,
}

impl Retime<'_> {
    fn run(&mut self) -> Result<Retimed> {
        let old = Target::Inode(self.before.inode.clone());
        let root = self.entry(Some(&old), &Target::Inode(self.after.inode.clone()))?;
        let inode = match root {
            Some(Target::Inode(inode)) => inode,
            _ => self.after.inode.clone(),
        };
        let links = self.links()?;
        let links = match links.is_empty() {
            true => self.after.links,
            false => update_links(self.trees, self.batch, self.after.links.as_ref(), &links)?,
        };
        Ok(Retimed { root: Root { inode, links, next_ino: self.after.next_ino }, touched: self.touched })
    }

    /// The entry that replaces `new`, whose old entry is `old`; `None` if `new` stays as it is.
    fn entry(&mut self, old: Option<&Target>, new: &Target) -> Result<Option<Target>> {
        if old == Some(new) && !self.links_differ_below(new) {
            return Ok(None);
        }
        let old = old.map(|old| self.record(self.before, old)).transpose()?;
        let record = match new {
            Target::Link { ino, .. } => {
                self.note(*ino, old)?;
                return Ok(None);
            }
            Target::Inode(record) => record,
        };
        let retimed = match record.kind() {
            FileKind::Directory => self.directory(old.as_ref(), record)?,
            _ => self.file(old.as_ref(), record),
        };
        Ok((retimed != *record).then_some(Target::Inode(retimed)))
    }

    /// The times of an inode other than a directory. `old`: the inode that was there before, if any.
    fn file(&mut self, old: Option<&InodeRecord>, new: &InodeRecord) -> InodeRecord {
        match old.filter(|old| same_content(old, new)) {
            Some(old) => self.as_before(old, new),
            None => {
                self.touched += 1;
                InodeRecord { mtime: self.now, ctime: self.now, ..new.clone() }
            }
        }
    }

    /// `new` with the modification time of `old`, and with its other times too if nothing else differs.
    fn as_before(&self, old: &InodeRecord, new: &InodeRecord) -> InodeRecord {
        let new = InodeRecord { mtime: old.mtime, ..new.clone() };
        if differs(old, &new) || old.nlink != new.nlink {
            return InodeRecord { ctime: self.now, ..new };
        }
        InodeRecord { atime: old.atime, ctime: old.ctime, ..new }
    }

    fn directory(&mut self, old: Option<&InodeRecord>, new: &InodeRecord) -> Result<InodeRecord> {
        let old = old.filter(|old| old.kind() == FileKind::Directory);
        let (tree, links) = new.listing();
        let old_tree = old.and_then(|old| old.listing().0);
        let (mut edits, mut relisted) = (BTreeMap::new(), old.is_none());
        let none = HashSet::new();
        let linked = if self.before.links == self.after.links { Linked::Some(&none) } else { Linked::Any };
        let mut pairs = Pairs::new(old_tree.as_ref(), tree.as_ref());
        while let Some(Pair { name, old: was, new: target }) = pairs.next(self.trees, linked)? {
            relisted |= was.as_ref().map(Target::kind) != target.as_ref().map(Target::kind);
            let Some(target) = target else { continue };
            if let Some(edit) = self.entry(was.as_ref(), &target)? {
                edits.insert(name, Some(edit));
            }
        }
        let body = match edits.is_empty() {
            true => Body::Directory { tree, links },
            false => {
                let written = update_dir(self.trees, self.batch, tree.as_ref(), &edits)?;
                Body::Directory { tree: written.tree, links: written.links }
            }
        };
        let new = InodeRecord { body, ..new.clone() };
        Ok(match old.filter(|_| !relisted) {
            Some(old) => self.as_before(old, &new),
            None => InodeRecord { mtime: self.now, ctime: self.now, ..new },
        })
    }

    /// Records what was at a name of the linked inode `ino`.
    fn note(&mut self, ino: Ino, old: Option<InodeRecord>) -> Result<()> {
        let new = self.linked(self.after, ino)?;
        let names = self.names.entry(ino).or_default();
        match old {
            Some(old) if same_content(&old, &new) => names.same = Some(old),
            Some(_) => names.differs = true,
            None => {}
        }
        Ok(())
    }

    /// The changes to the link table, once all names have been visited.
    fn links(&mut self) -> Result<BTreeMap<Ino, Option<InodeRecord>>> {
        let mut changes = BTreeMap::new();
        for (ino, names) in std::mem::take(&mut self.names) {
            let new = self.linked(self.after, ino)?;
            // Also looked up by number: perhaps only its new names were visited.
            let itself = self.trees.link(self.before, ino)?.filter(|old| same_content(old, &new));
            let old = itself.or(names.same).filter(|_| !names.differs);
            let retimed = self.file(old.as_ref(), &new);
            if retimed != new {
                changes.insert(ino, Some(retimed));
            }
        }
        Ok(changes)
    }

    fn record(&self, root: &Root, target: &Target) -> Result<InodeRecord> {
        match target {
            Target::Inode(record) => Ok(record.clone()),
            Target::Link { ino, .. } => self.linked(root, *ino),
        }
    }

    fn linked(&self, root: &Root, ino: Ino) -> Result<InodeRecord> {
        let missing = || StoreError::corrupt("link table", ino, "an inode that is named is not in it");
        self.trees.link(root, ino)?.ok_or_else(missing)
    }

    /// Whether equal entries may refer to linked inodes that differ.
    fn links_differ_below(&self, entry: &Target) -> bool {
        let holds_links = match entry {
            Target::Link { .. } => true,
            Target::Inode(record) => record.listing().1,
        };
        holds_links && self.before.links != self.after.links
    }
}

/// Whether two inodes, neither a directory, have the same kind and content.
pub fn same_content(old: &InodeRecord, new: &InodeRecord) -> bool {
    let body = match (&old.body, &new.body) {
        (Body::Regular(old), Body::Regular(new)) => (old.size, old.hash) == (new.size, new.hash),
        (old, new) => old == new,
    };
    body && (old.kind(), old.rdev) == (new.kind(), new.rdev)
}
