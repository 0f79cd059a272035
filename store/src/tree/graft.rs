//! Combines two trees: takes chosen paths of one into the other.
//!
//! The result is `onto`, with the chosen paths as they are in `from`. Both trees are from one environment's
//! history, so a number means the same inode in both; in the result, too, each number stands for one inode.
//! An inode taken from `from` keeps its number if `onto` has that number at this very path, or has never used
//! it; otherwise it gets a fresh one.
//!
//! If an inode has several names, those that are taken still share one inode. If some names are not taken and
//! remain with another content or other attributes, the taken ones become an inode of their own: what was not
//! chosen does not change.
//!
//! There are two passes: the first counts which names of linked inodes come and go, which decides their
//! numbers; the second writes.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::batch::Batch;
use crate::deep::deep;
use crate::error::{IoContext, Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{Body, FileKind, Ino, InodeRecord};
use crate::paths::components;
use crate::root::Root;

use super::diff::differs;
use super::{Linked, Pair, Pairs, Target, Trees, update_dir, update_links};

/// The chosen paths.
#[derive(Clone, Debug, Default)]
pub struct Picks {
    pick: Pick,
    /// Whether missing directories above the path are made as well.
    make_parents: bool,
    below: BTreeMap<Box<[u8]>, Picks>,
}

/// What is taken at a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Pick {
    /// Nothing but what is picked below it.
    #[default]
    Pass,
    /// The inode itself: for a directory its attributes, and of its entries only what is picked below.
    Itself,
    /// The inode and everything below it.
    Whole,
}

impl Picks {
    /// Takes a path with everything below it; if `from` has nothing there, the path is removed. With
    /// `make_parents`, directories above it that `onto` lacks are taken too; otherwise the path is skipped
    /// when they are missing.
    pub fn whole(&mut self, path: &[u8], make_parents: bool) {
        let at = self.at(path);
        (at.pick, at.make_parents) = (Pick::Whole, make_parents);
    }

    /// Takes a path alone: for a directory only its attributes. A directory that `from` does not have is
    /// removed if nothing is left in it.
    pub fn itself(&mut self, path: &[u8]) {
        let at = self.at(path);
        (at.pick, at.make_parents) = (at.pick.max(Pick::Itself), true);
    }

    fn at(&mut self, path: &[u8]) -> &mut Picks {
        components(path).fold(self, |at, name| at.below.entry(name.into()).or_default())
    }
}

/// How inode numbers are assigned and interpreted.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// Lower bound of fresh numbers (which are also above those of either tree).
    pub next_ino: Ino,
    /// Whether `onto` came after `from` in one history. Then a linked inode's number that is missing from the
    /// link table of `onto` is free, and a linked inode that both trees have stays one inode: the names taken
    /// refer to its version in `onto`.
    pub onto_is_newer: bool,
}

/// Returns the root of `onto` with `picks` taken from `from`; the result is added to `batch`.
pub fn graft(
    trees: &Trees,
    batch: &mut Batch,
    onto: &Root,
    from: &Root,
    picks: &Picks,
    numbers: Numbers,
) -> Result<Root> {
    let next = numbers.next_ino.max(onto.next_ino).max(from.next_ino);
    let mut graft = Graft {
        trees,
        batch,
        onto,
        from,
        onto_is_newer: numbers.onto_is_newer,
        next,
        writing: false,
        dropped: HashMap::new(),
        dropped_plain: HashSet::new(),
        taken: HashMap::new(),
        mapped: HashMap::new(),
    };
    deep(|| graft.run(picks)).at("start a thread for", trees.store().root())?
}

struct Graft<'a> {
    trees: &'a Trees,
    batch: &'a mut Batch,
    onto: &'a Root,
    from: &'a Root,
    onto_is_newer: bool,
    /// The next fresh number.
    next: Ino,
    /// Whether this is the second pass.
    writing: bool,
    /// How many names `onto` loses, by linked inode.
    dropped: HashMap<Ino, u32>,
    /// The inodes with a single name that `onto` loses, as far as they were visited.
    dropped_plain: HashSet<Ino>,
    /// How many names are taken, by linked inode of `from`.
    taken: HashMap<Ino, u32>,
    /// The new numbers in the result of linked inodes of `from`.
    mapped: HashMap<Ino, Ino>,
}

impl Graft<'_> {
    fn run(&mut self, picks: &Picks) -> Result<Root> {
        let (onto, from) = (self.onto, self.from);
        let start = self.next;
        let target = |root: &Root| Some(Target::Inode(root.inode.clone()));
        self.combine(picks, target(onto), target(from), true)?;
        self.next = start;
        let links = self.settle_links()?;
        self.writing = true;
        let root = self.combine(picks, target(onto), target(from), true)?;
        let Some(Target::Inode(inode)) = root else {
            return Err(StoreError::invalid("the root directory cannot be replaced"));
        };
        let links = match links.is_empty() {
            true => onto.links,
            false => update_links(self.trees, self.batch, onto.links.as_ref(), &links)?,
        };
        Ok(Root { inode, links, next_ino: self.next })
    }

    /// After the first pass: decides the numbers of the linked inodes taken, and returns the changes to the
    /// link table.
    fn settle_links(&mut self) -> Result<BTreeMap<Ino, Option<InodeRecord>>> {
        let mut changes = BTreeMap::new();
        let (taken, dropped) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.dropped));
        for (ino, names) in &dropped {
            let Some(old) = self.trees.link(self.onto, *ino)? else { continue };
            let nlink = old.nlink.saturating_sub(*names);
            changes.insert(*ino, (nlink > 0).then_some(InodeRecord { nlink, ..old }));
        }
        let mut taken: Vec<(Ino, u32)> = taken.into_iter().collect();
        taken.sort_unstable();
        for (ino, names) in taken {
            let missing =
                || StoreError::corrupt("link table", ino, "an inode that a name refers to is not in it");
            let new = self.trees.link(self.from, ino)?.ok_or_else(missing)?;
            let old = match self.trees.link(self.onto, ino)? {
                Some(old) => changes.remove(&ino).unwrap_or(Some(old)),
                None if self.onto_is_newer
                    || ino >= self.onto.next_ino
                    || self.dropped_plain.contains(&ino) =>
                {
                    None
                }
                None => {
                    let fresh = self.fresh();
                    self.mapped.insert(ino, fresh);
                    changes.insert(fresh, Some(InodeRecord { ino: fresh, nlink: names, ..new }));
                    continue;
                }
            };
            let joined = match old {
                None => InodeRecord { nlink: names, ..new },
                Some(old) if self.onto_is_newer || (old.kind() == new.kind() && !differs(&old, &new)) => {
                    InodeRecord { nlink: old.nlink + names, ..old }
                }
                Some(old) => {
                    let fresh = self.fresh();
                    self.mapped.insert(ino, fresh);
                    changes.insert(ino, Some(old));
                    changes.insert(fresh, Some(InodeRecord { ino: fresh, nlink: names, ..new }));
                    continue;
                }
            };
            changes.insert(ino, Some(joined));
        }
        Ok(changes)
    }

    /// What the result has at a path. `parent_there`: whether `onto` has the directory that contains it.
    fn combine(
        &mut self,
        picks: &Picks,
        onto: Option<Target>,
        from: Option<Target>,
        parent_there: bool,
    ) -> Result<Option<Target>> {
        if picks.pick != Pick::Pass && !parent_there && !picks.make_parents {
            return Ok(onto);
        }
        match picks.pick {
            Pick::Whole => self.take(from, onto),
            Pick::Itself => match directory(from.as_ref()) {
                Some(new) => {
                    let ino = self.number(new.ino, onto.as_ref());
                    let new = InodeRecord { ino, ..new.clone() };
                    self.directory(picks, onto, from, Some(new), true).map(Some)
                }
                None if from.is_none() && directory(onto.as_ref()).is_some() => {
                    let left = self.directory(picks, onto, None, None, true)?;
                    let is_empty = matches!(&left, Target::Inode(r) if matches!(r.body, Body::Directory { tree: None, .. }));
                    Ok((!is_empty).then_some(left))
                }
                None => self.take(from, onto),
            },
            Pick::Pass if picks.below.is_empty() => Ok(onto),
            Pick::Pass if directory(onto.as_ref()).is_some() => {
                self.directory(picks, onto, from, None, true).map(Some)
            }
            Pick::Pass => match directory(from.as_ref()) {
                Some(new) => {
                    let ino = self.number(new.ino, onto.as_ref());
                    let new = InodeRecord { ino, ..new.clone() };
                    let made = self.directory(picks, None, from, Some(new), false)?;
                    let is_empty = matches!(&made, Target::Inode(r) if matches!(r.body, Body::Directory { tree: None, .. }));
                    if is_empty {
                        return Ok(onto);
                    }
                    self.lose(onto)?;
                    Ok(Some(made))
                }
                None => Ok(onto),
            },
        }
    }

    /// Returns a directory with the listing of `onto` and what is picked below, and with `attributes`, or
    /// else those of `onto`.
    fn directory(
        &mut self,
        picks: &Picks,
        onto: Option<Target>,
        from: Option<Target>,
        attributes: Option<InodeRecord>,
        is_there: bool,
    ) -> Result<Target> {
        let base = directory(onto.as_ref()).cloned();
        if base.is_none() {
            self.lose(onto)?;
        }
        let tree = base.as_ref().and_then(|base| base.listing().0);
        let from_tree = directory(from.as_ref()).and_then(|from| from.listing().0);
        let mut edits = BTreeMap::new();
        let mut subdirectories = base.as_ref().map_or(0, |base| i64::from(base.nlink) - 2);
        for (name, below) in &picks.below {
            let old = self.child(tree.as_ref(), name)?;
            let new = self.child(from_tree.as_ref(), name)?;
            let result = self.combine(below, old.clone(), new, is_there)?;
            if result != old {
                subdirectories += i64::from(directory(result.as_ref()).is_some())
                    - i64::from(directory(old.as_ref()).is_some());
                edits.insert(name.clone(), result);
            }
        }
        let links = base.as_ref().is_some_and(|base| base.listing().1);
        let mut record =
            attributes.or(base).ok_or_else(|| StoreError::invalid("a directory without attributes"))?;
        record.nlink = u32::try_from(subdirectories + 2).unwrap_or(2);
        record.body = self.listing(tree, links, edits)?;
        Ok(Target::Inode(record))
    }

    /// Returns the listing `base` with `edits`. In the first pass the result only shows whether it is empty.
    fn listing(
        &mut self,
        base: Option<ObjectId>,
        links: bool,
        edits: BTreeMap<Box<[u8]>, Option<Target>>,
    ) -> Result<Body> {
        if edits.is_empty() {
            return Ok(Body::Directory { tree: base, links });
        }
        if self.writing {
            let written = update_dir(self.trees, self.batch, base.as_ref(), &edits)?;
            return Ok(Body::Directory { tree: written.tree, links: written.links });
        }
        let added = edits.values().any(Option::is_some);
        let left = match &base {
            Some(tree) => self.trees.len(tree)? > edits.values().filter(|edit| edit.is_none()).count() as u64,
            None => false,
        };
        let something = ObjectId::from_bytes([0; 32]);
        Ok(Body::Directory { tree: (added || left).then_some(base.unwrap_or(something)), links })
    }

    /// Returns what `from` has, numbered for the result, in place of what `onto` has.
    fn take(&mut self, from: Option<Target>, onto: Option<Target>) -> Result<Option<Target>> {
        if from == onto && !self.links_differ_below(onto.as_ref()) {
            return Ok(onto);
        }
        let Some(new) = from else {
            self.lose(onto)?;
            return Ok(None);
        };
        let record = match new {
            Target::Link { ino, kind } => {
                self.lose(onto)?;
                if !self.writing {
                    *self.taken.entry(ino).or_default() += 1;
                }
                return Ok(Some(Target::Link { ino: *self.mapped.get(&ino).unwrap_or(&ino), kind }));
            }
            Target::Inode(record) => record,
        };
        let ino = self.number(record.ino, onto.as_ref());
        let mut taken = InodeRecord { ino, ..record.clone() };
        if record.kind() != FileKind::Directory {
            if self.is_one_of_its_names(&record, onto.as_ref())? {
                return Ok(onto);
            }
            self.lose(onto)?;
            return Ok(Some(Target::Inode(taken)));
        }
        let (base, links) = record.listing();
        let mut edits = BTreeMap::new();
        let old_tree = directory(onto.as_ref()).and_then(|old| old.listing().0);
        if directory(onto.as_ref()).is_none() {
            self.lose(onto)?;
        }
        let none = HashSet::new();
        let linked = if self.onto.links == self.from.links { Linked::Some(&none) } else { Linked::Any };
        let mut pairs = Pairs::new(old_tree.as_ref(), base.as_ref());
        while let Some(Pair { name, old: there, new: below }) = pairs.next(self.trees, linked)? {
            let Some(below) = below else {
                self.lose(there)?;
                continue;
            };
            let result = self.take(Some(below.clone()), there)?;
            if result.as_ref() != Some(&below) {
                edits.insert(name, result);
            }
        }
        taken.body = self.listing(base, links, edits)?;
        Ok(Some(Target::Inode(taken)))
    }

    /// Whether `onto` has at this path a name of the same, unchanged inode: then nothing needs to be taken.
    fn is_one_of_its_names(&self, new: &InodeRecord, onto: Option<&Target>) -> Result<bool> {
        let Some(Target::Link { ino, kind }) = onto else { return Ok(false) };
        if *ino != new.ino || *kind != new.kind() {
            return Ok(false);
        }
        Ok(self.trees.link(self.onto, *ino)?.is_some_and(|old| !differs(&old, new)))
    }

    /// Counts the names that `onto` loses at a path.
    fn lose(&mut self, onto: Option<Target>) -> Result<()> {
        if self.writing {
            return Ok(());
        }
        match onto {
            None => {}
            Some(Target::Link { ino, .. }) => *self.dropped.entry(ino).or_default() += 1,
            Some(Target::Inode(record)) => {
                self.dropped_plain.insert(record.ino);
                if record.listing().1 {
                    for (_, below) in self.trees.entries(record.listing().0)? {
                        self.lose(Some(below))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The number in the result of an inode with a single name.
    fn number(&mut self, ino: Ino, onto: Option<&Target>) -> Ino {
        let is_at_this_path = matches!(onto, Some(Target::Inode(old)) if old.ino == ino);
        if is_at_this_path || ino >= self.onto.next_ino { ino } else { self.fresh() }
    }

    fn fresh(&mut self) -> Ino {
        self.next += 1;
        self.next - 1
    }

    /// Whether equal entries may refer to linked inodes that differ.
    fn links_differ_below(&self, entry: Option<&Target>) -> bool {
        self.onto.links != self.from.links
            && match entry {
                Some(Target::Link { .. }) => true,
                Some(Target::Inode(record)) => record.listing().1,
                None => false,
            }
    }

    fn child(&self, tree: Option<&ObjectId>, name: &[u8]) -> Result<Option<Target>> {
        tree.map_or(Ok(None), |tree| self.trees.lookup(tree, name))
    }
}

/// All paths of these linked inodes. Directories without linked names are not opened.
pub fn names_of(trees: &Trees, root: &Root, inos: &HashSet<Ino>) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let mut todo = vec![(Vec::new(), Target::Inode(root.inode.clone()))];
    while let Some((path, target)) = todo.pop() {
        match target {
            Target::Link { ino, .. } if inos.contains(&ino) => found.push(path),
            Target::Inode(record) if record.listing().1 => {
                if let Some(tree) = record.listing().0 {
                    trees.for_each(&tree, &mut |entry| {
                        if entry.is_link() || entry.has_links() {
                            todo.push(([&path, &b"/"[..], entry.name()].concat(), entry.to_target()?));
                        }
                        Ok(())
                    })?;
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn directory(target: Option<&Target>) -> Option<&InodeRecord> {
    match target {
        Some(Target::Inode(record)) if record.kind() == FileKind::Directory => Some(record),
        _ => None,
    }
}
