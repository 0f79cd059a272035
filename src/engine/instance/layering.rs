//! Decides which part of a stored view becomes a layer, and which part of a snapshot is restored: the rules
//! of docs/MANIFEST.md, "Chosen paths", applied to trees.

use std::collections::HashSet;

use karapace_fs::control::Times;
use karapace_fs::view::Stored;
use karapace_store::batch::Batch;
use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino, InodeRecord, Timestamp};
use karapace_store::paths::{self, Ignore, is_at_or_below};
use karapace_store::root::Root;
use karapace_store::tar::{TarHash, identity_hash};
use karapace_store::tree::{
    Change, Numbers, Picks, Retimed, StoredTree, Trees, diff, graft, names_of, retime,
};

use crate::engine::{Error, Result};

/// Why a path cannot be restored.
const NOT_RESTORABLE: &str = "neither in the snapshot nor in the environment";

/// A layer to be recorded.
pub struct Layer {
    /// The root object of its tree; durable.
    pub id: ObjectId,
    /// Hash of its identity tar.
    pub tar_hash: TarHash,
    /// How many paths it changes.
    pub counts: Counts,
    /// Greater than every inode number in its tree.
    pub next_ino: Ino,
}

/// Numbers of paths that differ.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Paths that are new.
    pub added: u64,
    /// Paths with other content or metadata.
    pub modified: u64,
    /// Paths that are gone.
    pub deleted: u64,
}

/// A tree to restore.
pub struct Restored {
    /// Its root object; durable.
    pub id: ObjectId,
    /// How many inodes, directories not counted, get the current time.
    pub touched: u64,
}

/// Normalises paths from a command line. A relative path starts at the environment's root.
///
/// # Errors
/// [`Error::Invalid`] for an empty path, a path with `..`, and a path that the manifest ignores.
pub fn normalised(paths: &[Vec<u8>], ignore: &Ignore) -> Result<Vec<Vec<u8>>> {
    let one = |path: &Vec<u8>| -> Result<Vec<u8>> {
        let shown = String::from_utf8_lossy(path);
        let normal =
            paths::normalise(&[b"/", &path[..]].concat()).filter(|_| !path.is_empty()).ok_or_else(|| {
                Error::Invalid(format!("{shown:?} is not a path inside: it is empty or has '..'"))
            })?;
        if ignore.covers(&normal) {
            let why = "is ignored by snapshot.ignore of the manifest, so no snapshot has it";
            return Err(Error::Invalid(format!("{shown} {why}; nothing was changed")));
        }
        Ok(normal)
    };
    paths.iter().map(one).collect()
}

/// The layer that leads from one tree, `old`, to another, `new`, without what `ignore` covers. `None` if it
/// would be empty. `next_ino` is greater than every inode number in both.
pub fn between(
    trees: &Trees,
    (old, new): (&ObjectId, ObjectId),
    ignore: &Ignore,
    next_ino: Ino,
) -> Result<Option<Layer>> {
    let (head, root) = (trees.root(old)?, trees.root(&new)?);
    let stored = Stored { old: head.clone(), root: (*root).clone(), id: new };
    let layering = Layering { trees, ignore, head: &head, head_id: *old };
    layering.layer(&stored, None, next_ino)
}

/// Combines trees of one environment into new ones.
pub struct Layering<'a> {
    /// The store's trees.
    pub trees: &'a Trees,
    /// The paths that never enter a layer.
    pub ignore: &'a Ignore,
    /// The tree of the environment's head layer.
    pub head: &'a Root,
    /// Its root object.
    pub head_id: ObjectId,
}

impl Layering<'_> {
    /// The layer of a stored view, or of its chosen paths; `None` if it would change nothing.
    pub fn layer(&self, stored: &Stored, chosen: Option<&[Vec<u8>]>, next_ino: Ino) -> Result<Option<Layer>> {
        let new = &stored.root;
        let numbers = Numbers { next_ino, onto_is_newer: chosen.is_none() };
        let (root, id) = match chosen {
            None if self.ignore.is_empty() => (new.clone(), stored.id),
            None => {
                let mut picks = Picks::default();
                self.ignore.paths().for_each(|path| picks.whole(path, false));
                self.write(new, &stored.id, self.head, &picks, numbers)?
            }
            Some(chosen) => {
                let picks = self.picks(new, chosen)?;
                self.write(self.head, &self.head_id, new, &picks, numbers)?
            }
        };
        let mut counts = Counts::default();
        diff(self.trees, Some(self.head), &root, &mut |_, change| {
            match change {
                Change::Added(_) => counts.added += 1,
                Change::Removed(_) => counts.deleted += 1,
                Change::Modified { .. } => counts.modified += 1,
            }
            Ok(())
        })?;
        if counts.added + counts.modified + counts.deleted == 0 {
            return Ok(None);
        }
        let tar_hash = identity_hash(self.trees, Some(self.head), &root)?;
        Ok(Some(Layer { id, tar_hash, counts, next_ino: root.next_ino.max(new.next_ino) }))
    }

    /// Picks the chosen paths from what `new` changes: those that exist, with what resolving them adds, and
    /// deletions at or below them. All names of a linked inode are picked together.
    fn picks(&self, new: &Root, chosen: &[Vec<u8>]) -> Result<Picks> {
        let (tree, old) = (StoredTree::new(self.trees, new), StoredTree::new(self.trees, self.head));
        let tops = tops(&tree, &old, chosen, "neither in the environment nor in its last snapshot")?;
        let taken: HashSet<Vec<u8>> = paths::choose(&tree, chosen, self.ignore)?.into_iter().collect();
        let (mut picks, mut linked) = (Picks::default(), HashSet::new());
        diff(self.trees, Some(self.head), new, &mut |path, change| {
            let gone =
                matches!(change, Change::Removed(_)) && tops.iter().any(|top| is_at_or_below(path, top));
            if self.ignore.covers(path) || !(gone || taken.contains(path)) {
                return Ok(());
            }
            picks.itself(path);
            match change {
                Change::Added(inode) | Change::Modified { new: inode, .. }
                    if inode.kind() != FileKind::Directory && inode.nlink > 1 =>
                {
                    linked.insert(inode.ino);
                }
                _ => {}
            }
            Ok(())
        })?;
        let names = if linked.is_empty() { Vec::new() } else { names_of(self.trees, new, &linked)? };
        for path in names.iter().filter(|path| !self.ignore.covers(path)) {
            picks.itself(path);
        }
        Ok(picks)
    }

    /// The tree to restore for a snapshot's tree, when the view's tree is `now`. Ignored paths stay as they
    /// are in `now`.
    pub fn restored(&self, target: &ObjectId, now: &Root, times: Times, next_ino: Ino) -> Result<Restored> {
        let root = self.trees.root(target)?;
        let id = self.keep_ignored(&root, target, now, next_ino)?;
        self.timed(id, now, times)
    }

    /// The chosen paths that may have uncommitted changes: those that exist in `now` or in the head.
    ///
    /// # Errors
    /// A path that is neither in `now` nor in `snapshot`.
    pub fn present(&self, now: &Root, snapshot: &Root, chosen: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let (here, there) = (StoredTree::new(self.trees, now), StoredTree::new(self.trees, snapshot));
        tops(&there, &here, chosen, NOT_RESTORABLE)?;
        let head = StoredTree::new(self.trees, self.head);
        let mut present = Vec::new();
        for path in chosen {
            if paths::locate(&here, path)?.is_some() || paths::locate(&head, path)?.is_some() {
                present.push(path.clone());
            }
        }
        Ok(present)
    }

    /// The tree to restore when the chosen paths come from `snapshot` and the view's tree is `now`, and the
    /// number of paths at which it differs from `now`.
    ///
    /// Missing parent directories are restored as well; existing ones are not changed.
    pub fn restored_paths(
        &self,
        snapshot: &Root,
        now: &Root,
        now_id: &ObjectId,
        (chosen, times): (&[Vec<u8>], Times),
        next_ino: Ino,
    ) -> Result<(Restored, u64)> {
        let (tree, here) = (StoredTree::new(self.trees, snapshot), StoredTree::new(self.trees, now));
        let tops = tops(&tree, &here, chosen, NOT_RESTORABLE)?;
        let mut picks = Picks::default();
        for path in paths::choose(&tree, chosen, self.ignore)? {
            if tops.iter().any(|top| is_at_or_below(&path, top)) {
                continue;
            }
            let is_directory =
                |found: Option<InodeRecord>| found.is_some_and(|inode| inode.kind() == FileKind::Directory);
            if !(is_directory(tree.find(&path)?) && is_directory(here.find(&path)?)) {
                picks.itself(&path);
            }
        }
        tops.iter().for_each(|top| picks.whole(top, true));
        let numbers = Numbers { next_ino, onto_is_newer: false };
        let (root, id) = self.write(now, now_id, snapshot, &picks, numbers)?;
        let id = self.keep_ignored(&root, &id, now, root.next_ino.max(next_ino))?;
        let restored = self.timed(id, now, times)?;
        let mut changed = 0;
        diff(self.trees, Some(now), &*self.trees.root(&restored.id)?, &mut |_, _| {
            changed += 1;
            Ok(())
        })?;
        Ok((restored, changed))
    }

    /// The tree `id`, which will replace `now`, with the requested modification times.
    fn timed(&self, id: ObjectId, now: &Root, times: Times) -> Result<Restored> {
        if times == Times::Kept {
            return Ok(Restored { id, touched: 0 });
        }
        let root = self.trees.root(&id)?;
        let mut batch = Batch::new(self.trees.store())?;
        let Retimed { root: timed, touched } = retime(self.trees, &mut batch, now, &root, Timestamp::now())?;
        let id = if timed == *root { id } else { timed.write(&mut batch)? };
        batch.commit()?;
        Ok(Restored { id, touched })
    }

    /// `root` with the ignored paths as they are in `now`. Parent directories that `root` lacks are added
    /// only if something uncommitted is below them.
    fn keep_ignored(&self, root: &Root, id: &ObjectId, now: &Root, next_ino: Ino) -> Result<ObjectId> {
        if self.ignore.is_empty() {
            return Ok(*id);
        }
        let (here, head) = (StoredTree::new(self.trees, now), StoredTree::new(self.trees, self.head));
        let mut picks = Picks::default();
        for path in self.ignore.paths() {
            picks.whole(path, here.find(path)? != head.find(path)?);
        }
        let numbers = Numbers { next_ino, onto_is_newer: false };
        Ok(self.write(root, id, now, &picks, numbers)?.1)
    }

    /// Grafts and makes the result durable. Returns `onto_id` if the graft changed nothing.
    fn write(
        &self,
        onto: &Root,
        onto_id: &ObjectId,
        from: &Root,
        picks: &Picks,
        numbers: Numbers,
    ) -> Result<(Root, ObjectId)> {
        let mut batch = Batch::new(self.trees.store())?;
        let root = graft(self.trees, &mut batch, onto, from, picks, numbers)?;
        if (&root.inode, root.links) == (&onto.inode, onto.links) {
            return Ok((onto.clone(), *onto_id));
        }
        let id = root.write(&mut batch)?;
        batch.commit()?;
        Ok((root, id))
    }
}

/// Locates the chosen paths in `tree`, or else in `other`.
fn tops(
    tree: &StoredTree<'_>,
    other: &StoredTree<'_>,
    chosen: &[Vec<u8>],
    absent: &str,
) -> Result<Vec<Vec<u8>>> {
    let mut tops = Vec::new();
    for path in chosen {
        let found = match paths::locate(tree, path)? {
            Some(found) => Some(found),
            None => paths::locate(other, path)?,
        };
        let shown = String::from_utf8_lossy(path);
        tops.push(
            found.ok_or_else(|| Error::NoPath { path: shown.into_owned(), absent: absent.to_owned() })?,
        );
    }
    Ok(tops)
}
