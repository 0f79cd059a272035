//! Lists directories.

use std::sync::Arc;

use karapace_store::inode::{FileKind, Ino};

use crate::attr::DirItem;
use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::NodeBody;
use crate::view::table::State;
use crate::view::table::listing::{DOT, DOT_DOT, ListedEntry, Listing, cookie};

impl View {
    /// Passes the entries after the cookie `from` (0: all) to `sink` until it declines one. With `plus`,
    /// entries other than `.` and `..` carry attributes, and each one that the sink accepts counts as a
    /// reference.
    ///
    /// # Errors
    /// Only if no entry was accepted. An error after the first entry ends the listing early, and the call
    /// that continues it fails. So no reference is lost: a caller that gets an error gets no entries.
    pub fn readdir(
        &self,
        ino: Ino,
        from: u64,
        plus: bool,
        sink: &mut dyn FnMut(&DirItem<'_>) -> bool,
    ) -> Result<()> {
        let mut state = self.state.write();
        let listing = self.listing(&mut state, ino, from > 0)?;
        let mut taken = false;
        let dots = [(DOT, &b"."[..], ino), (DOT_DOT, b"..", state.parent_of(ino))];
        for (cookie, name, ino) in dots.into_iter().filter(|(cookie, ..)| from < *cookie) {
            if !sink(&DirItem { name, ino, kind: FileKind::Directory, cookie, attr: None }) {
                return Ok(());
            }
            taken = true;
        }
        let start = listing.entries.partition_point(|e| e.cookie <= from);
        for entry in &listing.entries[start..] {
            let mut item = DirItem {
                name: &entry.name,
                ino: entry.ino,
                kind: entry.kind,
                cookie: entry.cookie,
                attr: None,
            };
            match self.bring_up_to_date(&mut state, ino, listing.version, plus, &mut item) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) if taken => {
                    tracing::error!("a listing of inode {ino} ends early: {error}");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            let number = item.ino;
            if !sink(&item) {
                if plus {
                    let forgotten = state.forget(number, 1);
                    self.bury(forgotten);
                }
                return Ok(());
            }
            taken = true;
        }
        Ok(())
    }

    /// Updates a listed entry to its current state; returns false if it is gone. With `plus`, adds the
    /// attributes and counts a reference.
    fn bring_up_to_date(
        &self,
        state: &mut State,
        dir: Ino,
        version: u32,
        plus: bool,
        item: &mut DirItem<'_>,
    ) -> Result<bool> {
        if plus {
            let Some(child) = state.load(&self.trees, dir, item.name)? else { return Ok(false) };
            self.settle_times(state, child)?;
            let node = state.node_mut(child)?;
            item.ino = child;
            item.kind = node.kind();
            item.attr = Some(node.attr(child));
            node.lookups += 1;
        } else if state.node(dir)?.version != version {
            let Some(named) = state.entry(&self.trees, dir, item.name)? else { return Ok(false) };
            item.ino = named.ino;
            item.kind = named.kind;
        }
        Ok(true)
    }

    /// The directory's entries, from the cache if the directory has not changed. A reader that continues a
    /// listing (`continued`) gets the one it began with, even if some entries are gone: a program that
    /// removes what it reads does not cause a new sort each time. Entries added since may be missing
    /// (readdir(3) allows that).
    fn listing(&self, state: &mut State, ino: Ino, continued: bool) -> Result<Arc<Listing>> {
        let node = state.node(ino)?;
        let version = node.version;
        if !matches!(node.body, NodeBody::Dir(_)) {
            return Err(Error::NotDirectory);
        }
        if node.is_orphan() {
            return Ok(Arc::default());
        }
        if let Some(listing) = state.listings.get(&ino)
            && (continued || listing.version == version)
        {
            return Ok(listing.clone());
        }
        let mut entries = Vec::new();
        self.for_each_entry(state, ino, &mut |name, ino, kind| {
            entries.push(ListedEntry { cookie: cookie(name), ino, kind, name: name.into() });
        })?;
        let listing = Arc::new(Listing::new(version, entries));
        state.listings.put(ino, listing.clone());
        Ok(listing)
    }

    /// Visits every entry of a directory, in unspecified order.
    pub(in crate::view) fn for_each_entry(
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
    pub(in crate::view) fn is_empty_dir(&self, state: &State, ino: Ino) -> Result<bool> {
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
