//! What is still dirty when a commit ends: changed since the seal, or left out of it.

use std::collections::{BTreeMap, HashSet};

use karapace_store::inode::{Body, Ino};

use super::{Built, Seal, SealedBody, SealedNode};
use crate::error::Result;
use crate::upper::boot::Boot;
use crate::upper::record::{AttrItem, Item, NameState};
use crate::view::node::DirBody;
use crate::view::table::State;

/// The inodes unchanged since the seal. A directory above a changed inode stays dirty.
pub(super) fn clean_since(state: &State, seal: &Seal) -> HashSet<Ino> {
    let same = |ino: &Ino, sealed: &SealedNode| {
        state.nodes.get(ino).is_some_and(|n| n.version == sealed.version && !n.is_orphan())
    };
    if state.generation == seal.generation && !seal.is_partial {
        return seal.nodes.keys().copied().collect();
    }
    let mut clean: HashSet<Ino> = seal.nodes.iter().filter(|(i, n)| same(i, n)).map(|(i, _)| *i).collect();
    for (ino, node) in state.dirty_nodes() {
        if node.is_orphan() || clean.contains(&ino) {
            continue;
        }
        let mut at = node.place.as_ref().map(|p| p.parent);
        // A parent that is not (or no longer) in the set is visited itself, and so are its ancestors.
        while let Some(parent) = at.filter(|parent| clean.remove(parent)) {
            at = state.nodes.get(&parent).and_then(|n| n.place.as_ref()).map(|p| p.parent);
        }
    }
    clean
}

/// The sealed directories on their new lower listings, with the changes made since the seal.
pub(super) fn rebased_dirs(
    state: &State,
    seal: &Seal,
    built: &Built,
    clean: &HashSet<Ino>,
) -> BTreeMap<Ino, DirBody> {
    let mut dirs = BTreeMap::new();
    for (ino, sealed) in &seal.nodes {
        let (SealedBody::Dir(old), Some(Body::Directory { tree, links })) =
            (&sealed.body, built.bodies.get(ino))
        else {
            continue;
        };
        let Some(now) = state.nodes.get(ino).filter(|n| !n.is_orphan()).and_then(|n| n.dir()) else {
            continue;
        };
        let mut changes = BTreeMap::new();
        if !clean.contains(ino) {
            for (name, change) in &now.changes {
                if old.changes.get(name) != Some(change) {
                    changes.insert(name.clone(), *change);
                }
            }
            // Names that were new at the seal and are gone now: the new listing has them, so hide them.
            let gone = old.changes.iter().filter(|(n, c)| c.is_some() && !now.changes.contains_key(*n));
            changes.extend(gone.map(|(name, _)| (name.clone(), None)));
        }
        dirs.insert(*ino, DirBody { tree: *tree, links: *links, changes });
    }
    dirs
}

/// The checkpoint items for what is still dirty.
pub(super) fn remaining_items(
    state: &State,
    boot: Option<Boot>,
    seal: &Seal,
    clean: &HashSet<Ino>,
    new_dirs: &BTreeMap<Ino, DirBody>,
) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for mut item in state.checkpoint_items(boot)? {
        if let Item::Put(put) = &mut item
            && let Some(dir) = new_dirs.get(&put.record.ino)
        {
            put.record.body = Body::Directory { tree: dir.tree, links: dir.links };
        }
        let stays = match &item {
            Item::Gone { ino, .. } => !seal.gone_links.contains(ino),
            Item::Put(put) => !clean.contains(&put.record.ino),
            Item::Blocks { ino, .. } | Item::Fresh { ino, .. } => !clean.contains(ino),
            // Names of sealed directories are added below.
            Item::Name { dir, .. } => !seal.nodes.contains_key(dir),
            Item::Next { .. } => true,
            // A checkpoint has none of these. What they would say about a clean inode is already in the tree.
            Item::Attr(AttrItem { ino, .. })
            | Item::Xattr { ino, .. }
            | Item::Place { ino, .. }
            | Item::Cut { ino, .. }
            | Item::Touched { ino } => !clean.contains(ino),
        };
        if stays {
            items.push(item);
        }
    }
    for (ino, dir) in new_dirs.iter().filter(|(ino, _)| !clean.contains(*ino)) {
        for (name, change) in &dir.changes {
            let state = change.map_or(NameState::Hidden, NameState::Names);
            items.push(Item::Name { dir: *ino, name: name.clone(), state });
        }
    }
    Ok(items)
}
