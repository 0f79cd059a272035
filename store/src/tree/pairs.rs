//! The names that differ between two listings. Everything that compares trees uses this, so that equal parts
//! are not read.

use std::cmp::Ordering;
use std::collections::HashSet;

use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::Ino;

use super::cursor::Cursor;
use super::{EntryRef, Keys, Target, Trees};

/// Linked inodes that differ. Their names do not show it, because their records are in the link tables.
#[derive(Clone, Copy, Debug)]
pub enum Linked<'a> {
    /// These inodes.
    Some(&'a HashSet<Ino>),
    /// Possibly any linked inode.
    Any,
}

impl Linked<'_> {
    /// Whether there are none, so that equal listings need not be opened.
    pub fn is_none(&self) -> bool {
        matches!(self, Linked::Some(inos) if inos.is_empty())
    }

    /// Whether an entry that is equal on both sides is a name of such an inode, or may have one below it.
    fn are_at(&self, entry: &EntryRef<'_>) -> bool {
        match self {
            Linked::Some(inos) if inos.is_empty() => false,
            Linked::Some(inos) if entry.is_link() => inos.contains(&entry.ino()),
            _ => entry.has_links(),
        }
    }
}

/// A name, with what it refers to on each side; at least one side has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: Box<[u8]>,
    /// What the name refers to in the old listing.
    pub old: Option<Target>,
    /// What the name refers to in the new listing.
    pub new: Option<Target>,
}

/// Compares two listings. Chunks that both have are skipped unread.
pub struct Pairs {
    old: Cursor,
    new: Cursor,
    is_same: bool,
}

impl Pairs {
    /// Compares two directory listings; `None` is an empty one.
    pub fn new(old: Option<&ObjectId>, new: Option<&ObjectId>) -> Pairs {
        Self::of(Keys::Names, old, new)
    }

    /// Compares two listings with keys of this kind.
    pub(super) fn of(keys: Keys, old: Option<&ObjectId>, new: Option<&ObjectId>) -> Pairs {
        Pairs { old: Cursor::new(old, keys), new: Cursor::new(new, keys), is_same: old == new }
    }

    /// The next name, in byte order, that differs, or that refers to one of `linked` or may lead to one;
    /// `None` at the end.
    pub fn next(&mut self, trees: &Trees, linked: Linked<'_>) -> Result<Option<Pair>> {
        if self.is_same && linked.is_none() {
            return Ok(None);
        }
        loop {
            if self.skip_equal_chunk(trees, linked)? {
                continue;
            }
            let order = match (self.old.peek(trees)?, self.new.peek(trees)?) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => {
                    let order = a.name().cmp(b.name());
                    if order.is_eq() && a.raw() == b.raw() && !linked.are_at(&b) {
                        self.old.advance();
                        self.new.advance();
                        continue;
                    }
                    order
                }
            };
            let old = if order.is_le() { take(&mut self.old, trees)? } else { None };
            let new = if order.is_ge() { take(&mut self.new, trees)? } else { None };
            return Ok(match (old, new) {
                (Some((name, old)), new) => Some(Pair { name, old: Some(old), new: new.map(|(_, new)| new) }),
                (None, new) => new.map(|(name, new)| Pair { name, old: None, new: Some(new) }),
            });
        }
    }

    /// Skips the chunk at both cursors if it is the same; returns whether it did.
    fn skip_equal_chunk(&mut self, trees: &Trees, linked: Linked<'_>) -> Result<bool> {
        match (self.old.chunk(trees)?, self.new.chunk(trees)?) {
            (Some((a, links)), Some((b, _))) if a == b && (!links || linked.is_none()) => {
                self.old.skip_chunk();
                self.new.skip_chunk();
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

/// Removes and returns the entry at a cursor; `None` at the end.
fn take(cursor: &mut Cursor, trees: &Trees) -> Result<Option<(Box<[u8]>, Target)>> {
    let Some(entry) = cursor.peek(trees)? else { return Ok(None) };
    let name = Box::from(entry.name());
    let target = cursor.target()?;
    cursor.advance();
    Ok(target.map(|target| (name, target)))
}
