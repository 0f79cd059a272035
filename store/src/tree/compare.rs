//! Walks two trees at once, or a tree and one that an upper overlays.
//!
//! The walk decides which names are visited, and in which order; the visitor decides what counts as a
//! difference.

use std::iter::Peekable;
use std::vec;

use crate::error::StoreError;
use crate::id::ObjectId;

use super::pairs::{Linked, Pair, Pairs};
use super::{Target, Trees};

/// What a name refers to on the new side.
#[derive(Clone, Debug)]
pub enum New<O> {
    /// What the new tree's listing says.
    Listed(Target),
    /// What the visitor supplied instead of the listing's entry.
    Over(O),
}

/// A name with what overrides its entry in the listing; `None` hides the name.
pub type Over<O> = (Box<[u8]>, Option<O>);

/// The listings of a directory on both sides.
#[derive(Debug)]
pub struct Below<O> {
    /// The old side's; `None` when it is empty or absent.
    pub old: Option<ObjectId>,
    /// The new side's; `None` when it is empty or absent.
    pub new: Option<ObjectId>,
    /// Whether linked inodes may have names here or below; if not, equal listings are not opened.
    pub links: bool,
    /// What overrides the new listing, sorted by name; visited whether or not it differs.
    pub over: Vec<Over<O>>,
}

/// Called for what differs between two trees.
pub trait Visitor {
    /// What overrides an entry of the new tree.
    type Over;
    /// The error that ends the walk.
    type Error: From<StoreError>;

    /// Whether both sides of a name are visited in one call. Otherwise the old side is visited as removed,
    /// with everything below it, and then the new side as added.
    fn is_one(&mut self, old: &Target, new: &New<Self::Over>) -> Result<bool, Self::Error>;

    /// Visits a name that differs, or may differ: its path (`/a/b`), and what it refers to on each side.
    /// Returns the listings to visit below it.
    ///
    /// # Errors
    /// Any error ends the walk.
    fn visit(
        &mut self,
        path: &[u8],
        old: Option<Target>,
        new: Option<New<Self::Over>>,
    ) -> Result<Option<Below<Self::Over>>, Self::Error>;
}

/// Work left to do. The stack is explicit, because a tree may be deeper than a thread's stack allows.
struct Frame<O> {
    /// Length of the path to this point.
    length: usize,
    work: Work<O>,
}

enum Work<O> {
    Names(Box<Names<O>>),
    /// The new side of the path, visited once the old side has been visited as removed.
    Later(New<O>),
}

/// The names of a directory that are still to be visited.
struct Names<O> {
    old: Option<ObjectId>,
    /// `None` when both listings are known to be equal.
    pairs: Option<Pairs>,
    pair: Option<Pair>,
    over: Peekable<vec::IntoIter<Over<O>>>,
}

/// A name, with what it refers to on each side.
type Named<O> = (Box<[u8]>, Option<Target>, Option<New<O>>);

/// Walks both roots' directories `below`, in the order of paths compared by component: parents before
/// children. `linked` are the linked inodes that differ; all their names are visited.
///
/// # Errors
/// When a tree cannot be read; also any error of the visitor.
pub fn compare<V: Visitor>(
    trees: &Trees,
    linked: Linked<'_>,
    below: Below<V::Over>,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let mut path: Vec<u8> = Vec::new();
    let mut stack = vec![Frame { length: 0, work: Work::Names(Box::new(Names::new(below, linked))) }];
    while let Some(mut frame) = stack.pop() {
        path.truncate(frame.length);
        let (old, new) = match &mut frame.work {
            Work::Names(names) => {
                let Some((name, old, new)) = names.next(trees, linked)? else { continue };
                stack.push(frame);
                path.push(b'/');
                path.extend_from_slice(&name);
                (old, new)
            }
            Work::Later(_) => match frame.work {
                Work::Later(new) => (None, Some(new)),
                Work::Names(_) => continue,
            },
        };
        let length = path.len();
        let new = match (&old, new) {
            (Some(old), Some(new)) if !visitor.is_one(old, &new)? => {
                stack.push(Frame { length, work: Work::Later(new) });
                None
            }
            (_, new) => new,
        };
        if let Some(below) = visitor.visit(&path, old, new)? {
            stack.push(Frame { length, work: Work::Names(Box::new(Names::new(below, linked))) });
        }
    }
    Ok(())
}

impl<O> Names<O> {
    fn new(below: Below<O>, linked: Linked<'_>) -> Names<O> {
        let Below { old, new, links, over } = below;
        let differ = old != new || (links && !linked.is_none());
        let pairs = differ.then(|| Pairs::new(old.as_ref(), new.as_ref()));
        Names { old, pairs, pair: None, over: over.into_iter().peekable() }
    }

    /// The next name that exists on at least one side.
    fn next(&mut self, trees: &Trees, linked: Linked<'_>) -> Result<Option<Named<O>>, StoreError> {
        loop {
            if self.pair.is_none()
                && let Some(pairs) = &mut self.pairs
            {
                self.pair = pairs.next(trees, linked)?;
            }
            let is_before = |name: &[u8]| self.pair.as_ref().is_none_or(|pair| *name <= *pair.name);
            let Some((name, over)) = self.over.next_if(|(name, _)| is_before(name)) else {
                let pair = self.pair.take();
                return Ok(pair.map(|pair| (pair.name, pair.old, pair.new.map(New::Listed))));
            };
            let old = match self.pair.take_if(|pair| pair.name == name) {
                Some(pair) => pair.old,
                None => self.old.map_or(Ok(None), |old| trees.lookup(&old, &name))?,
            };
            if old.is_some() || over.is_some() {
                return Ok(Some((name, old, over.map(New::Over))));
            }
        }
    }
}
