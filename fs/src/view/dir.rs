//! Listing a directory.
//!
//! A listing is ordered by a hash of the names, and the cookie of an entry is that hash: it stays what it is while other
//! entries come and go, over commits and restores, and from one mount to the next.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;

use karapace_store::inode::{FileKind, Ino};

use crate::attr::DirItem;
use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::NodeBody;
use crate::view::table::State;

/// Cookies of `.` and `..`; every other is larger.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Cookies are below this: some programs keep them in signed or short fields.
const COOKIE_BITS: u32 = 62;

/// A directory's entries in cookie order.
pub(crate) type Listing = Vec<ListedEntry>;

pub(crate) struct ListedEntry {
    cookie: u64,
    ino: Ino,
    kind: FileKind,
    name: Box<[u8]>,
}

/// The cookie of a name.
fn cookie(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    (hasher.finish() >> (64 - COOKIE_BITS)).max(DOT_DOT + 1)
}

impl View {
    /// Feeds the entries after `from` (0: all) to `sink` until it declines one. With `plus`, each entry but `.` and `..`
    /// has its attributes, and one taken by the sink counts as a reference.
    pub fn readdir(
        &self,
        ino: Ino,
        from: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<()> {
        let mut state = self.state.write();
        let listing = self.listing(&mut state, ino)?;
        let dots = [(DOT, &b"."[..], ino), (DOT_DOT, b"..", state.parent_of(ino))];
        for (cookie, name, ino) in dots {
            let item = DirItem { name, ino, kind: FileKind::Directory, cookie, attr: None };
            if from < cookie && !sink(&item) {
                return Ok(());
            }
        }
        let start = listing.partition_point(|e| e.cookie <= from);
        for entry in &listing[start..] {
            let mut item = DirItem {
                name: &entry.name,
                ino: entry.ino,
                kind: entry.kind,
                cookie: entry.cookie,
                attr: None,
            };
            if plus {
                let Some(child) = state.load(&self.trees, ino, &entry.name)? else { continue };
                self.settle_times(&mut state, child)?;
                let node = state.node_mut(child)?;
                item.attr = Some(node.attr(child));
                node.lookups += 1;
            }
            if !sink(&item) {
                if plus {
                    let forgotten = state.forget(entry.ino, 1);
                    self.remove_data(&forgotten);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// The directory's entries, from the cache when it has not changed since.
    fn listing(&self, state: &mut State, ino: Ino) -> Result<Arc<Listing>> {
        let node = state.node(ino)?;
        let version = node.version;
        if !matches!(node.body, NodeBody::Dir(_)) {
            return Err(Error::NotDirectory);
        }
        if node.is_orphan() {
            return Ok(Arc::default());
        }
        if let Some((at, listing)) = state.listings.get(&ino)
            && *at == version
        {
            return Ok(listing.clone());
        }
        let mut listing = Listing::new();
        self.for_each_entry(state, ino, &mut |name, ino, kind| {
            listing.push(ListedEntry { cookie: cookie(name), ino, kind, name: name.into() });
        })?;
        listing.sort_unstable_by(|a, b| (a.cookie, &a.name).cmp(&(b.cookie, &b.name)));
        let listing = Arc::new(listing);
        state.listings.put(ino, (version, listing.clone()));
        Ok(listing)
    }

    /// Every entry of a directory, in no promised order.
    pub(super) fn for_each_entry(
        &self,
        state: &State,
        ino: Ino,
        visit: &mut dyn FnMut(&[u8], Ino, FileKind),
    ) -> Result<()> {
        let body = state.node(ino)?.dir().ok_or(Error::NotDirectory)?;
        if let Some(tree) = &body.tree {
            self.trees.for_each(tree, &mut |entry| {
                if !body.changes.contains_key(entry.name()) {
                    visit(entry.name(), entry.ino(), entry.kind());
                }
                Ok(())
            })?;
        }
        for (name, change) in &body.changes {
            if let Some(ino) = change {
                visit(name, *ino, state.node(*ino)?.kind());
            }
        }
        Ok(())
    }

    /// Whether the directory has no entries.
    pub(super) fn is_empty_dir(&self, state: &State, ino: Ino) -> Result<bool> {
        let body = state.node(ino)?.dir().ok_or(Error::NotDirectory)?;
        if body.changes.values().any(Option::is_some) {
            return Ok(false);
        }
        let Some(tree) = &body.tree else { return Ok(true) };
        if self.trees.len(tree)? > body.changes.len() as u64 {
            return Ok(false);
        }
        let mut empty = true;
        self.trees.for_each(tree, &mut |entry| {
            empty &= body.changes.contains_key(entry.name());
            Ok(())
        })?;
        Ok(empty)
    }
}
