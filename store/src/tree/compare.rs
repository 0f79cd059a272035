//! The walk over two trees at once, and over a tree and what an upper lays over one.
//!
//! It knows which names to look at and in which order; what differs there, and what of it counts, its visitor
//! knows.

use std::iter::Peekable;
use std::vec;

use crate::error::StoreError;
use crate::id::ObjectId;

use super::pairs::{Linked, Pair, Pairs};
use super::{Target, Trees};

/// What a name stands for on the new side.
#[derive(Clone, Debug)]
pub enum New<O> {
    /// As the new tree's listing has it.
    Listed(Target),
    /// As the visitor has it, whatever the listing says.
    Over(O),
}

/// A name and what is laid over what the listing says of it; None: the name is hidden.
pub type Over<O> = (Box<[u8]>, Option<O>);

/// The listings of a directory on both sides.
#[derive(Debug)]
pub struct Below<O> {
    /// The old side's; None when it is empty or not there.
    pub old: Option<ObjectId>,
    /// The new side's.
    pub new: Option<ObjectId>,
    /// Whether linked inodes may have names at or below; if not, equal listings are not opened.
    pub links: bool,
    /// What lies over the new listing, sorted by name; visited whether or not it differs.
    pub over: Vec<Over<O>>,
}

/// Is led through two trees.
pub trait Visitor {
    /// What lies over the new tree.
    type Over;
    /// What ends the walk.
    type Error: From<StoreError>;

    /// Whether both sides of a name are visited as one. Otherwise what was goes, with all that is below it,
    /// and then what is comes.
    fn is_one(&mut self, old: &Target, new: &New<Self::Over>) -> Result<bool, Self::Error>;

    /// A name that differs, or may: its path (`/a/b`) and what it stands for on each side. Gives what is
    /// below it.
    ///
    /// # Errors
    /// Any ends the walk.
    fn visit(
        &mut self,
        path: &[u8],
        old: Option<Target>,
        new: Option<New<Self::Over>>,
    ) -> Result<Option<Below<Self::Over>>, Self::Error>;
}

/// Work left to do. An explicit stack, because a tree may be deeper than a thread's.
struct Frame<O> {
    /// Length of the path that this is about.
    length: usize,
    work: Work<O>,
}

enum Work<O> {
    Names(Box<Names<O>>),
    /// What comes to the path once what was there has gone.
    Later(New<O>),
}

/// The names of a directory that are still to be visited.
struct Names<O> {
    old: Option<ObjectId>,
    /// None where both listings are known to be the same.
    pairs: Option<Pairs>,
    pair: Option<Pair>,
    over: Peekable<vec::IntoIter<Over<O>>>,
}

/// A name with what it stands for on each side.
type Named<O> = (Box<[u8]>, Option<Target>, Option<New<O>>);

/// Leads `visitor` through the roots' directories `below`, in the order of paths, component by component:
/// parents before children. `linked`: linked inodes that differ; all their names are visited.
///
/// # Errors
/// When a tree cannot be read, and what the visitor says.
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

    /// The next name that something stands for on one side at least.
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
