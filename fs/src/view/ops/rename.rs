//! Renames. Moving a directory is one record, however much is below it.

use karapace_store::inode::{Body, FileKind, Ino, ROOT_INO, Timestamp};

use crate::attr::{Caller, RenameMode};
use crate::error::{Error, Result};
use crate::upper::record::{DataState, Item, NameState, Place, PutItem};
use crate::view::node::Meta;
use crate::view::ops::acl;
use crate::view::ops::remove::{drop_name, name_gone};
use crate::view::ops::sync::ToSync;
use crate::view::table::{Forgotten, NewInode, State, attr_item};
use crate::view::{View, check_name};

/// One side of a rename: a name and its inode.
struct Side<'a> {
    dir: Ino,
    name: &'a [u8],
    ino: Ino,
    is_dir: bool,
}

impl View {
    /// Moves a name. `caller` owns the whiteout that `RenameMode::Whiteout` leaves behind.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Exists`] with `RenameMode::NoReplace`; [`Error::Invalid`] if a directory
    /// would move into itself; [`Error::NotDirectory`], [`Error::IsDirectory`] or [`Error::NotEmpty`] if the
    /// target cannot be replaced.
    pub fn rename(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        self.writable()?;
        self.flush_before_replacing(parent, name, new_parent, new_name)?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let ino = state.load(&self.trees, parent, name)?.ok_or(Error::NotFound)?;
        let source = Side { dir: parent, name, ino, is_dir: is_dir(&state, ino)? };
        let target = match state.load(&self.trees, new_parent, new_name)? {
            Some(ino) => Some(Side { dir: new_parent, name: new_name, ino, is_dir: is_dir(&state, ino)? }),
            None => None,
        };
        self.check_rename(&state, &source, new_parent, target.as_ref(), mode)?;
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            // Both are names of the same inode: POSIX says to do nothing.
            return Ok(());
        }
        if let (RenameMode::Exchange, Some(target)) = (mode, &target) {
            return self.exchange(&mut state, &source, target);
        }
        let now = Timestamp::now();
        let mut items = Vec::with_capacity(10);
        for ino in [source.ino, parent, new_parent].into_iter().chain(target.as_ref().map(|t| t.ino)) {
            state.dirty_chain(ino, &mut items)?;
        }
        items.extend(moved(&state, &source, new_parent, new_name, now)?);
        if let Some(target) = &target {
            drop_name(&state, target.ino, now, &mut items)?;
        }
        if mode == RenameMode::Whiteout {
            items.extend(whiteout(&mut state, caller, parent, name, now)?);
        } else {
            items.push(name_gone(&self.trees, &state, parent, name)?);
        }
        items.push(Item::Name {
            dir: new_parent,
            name: new_name.into(),
            state: NameState::Names(source.ino),
        });
        let replaced_dir = target.as_ref().is_some_and(|t| t.is_dir);
        let leaving = i32::from(source.is_dir && parent != new_parent);
        let mut subdirs = vec![(parent, -leaving), (new_parent, leaving - i32::from(replaced_dir))];
        dirs_changed(&state, &mut subdirs, now, &mut items)?;
        self.change(&mut state, items)?;
        let mut forgotten = Forgotten::default();
        if let Some(target) = target {
            state.release(target.ino, &mut forgotten);
        }
        self.bury(forgotten);
        Ok(())
    }

    fn check_rename(
        &self,
        state: &State,
        source: &Side<'_>,
        new_parent: Ino,
        target: Option<&Side<'_>>,
        mode: RenameMode,
    ) -> Result<()> {
        state.live_dir(new_parent)?;
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Error::Exists),
            (RenameMode::Exchange, None) => return Err(Error::NotFound),
            _ => {}
        }
        if source.is_dir && is_below(state, new_parent, source.ino) {
            return Err(Error::Invalid("a directory cannot be moved into itself"));
        }
        let Some(target) = target else { return Ok(()) };
        if mode == RenameMode::Exchange {
            if target.is_dir && is_below(state, source.dir, target.ino) {
                return Err(Error::Invalid("a directory cannot be moved into itself"));
            }
            return Ok(());
        }
        match (source.is_dir, target.is_dir) {
            (true, false) => Err(Error::NotDirectory),
            (false, true) => Err(Error::IsDirectory),
            (true, true) if target.ino != source.ino && !self.is_empty_dir(state, target.ino)? => {
                Err(Error::NotEmpty)
            }
            _ => Ok(()),
        }
    }

    /// Swaps the inodes of two names.
    fn exchange(&self, state: &mut State, a: &Side<'_>, b: &Side<'_>) -> Result<()> {
        let now = Timestamp::now();
        let mut items = Vec::with_capacity(10);
        for ino in [a.ino, b.ino, a.dir, b.dir] {
            state.dirty_chain(ino, &mut items)?;
        }
        for (from, to) in [(a, b), (b, a)] {
            items.extend(moved(state, from, to.dir, to.name, now)?);
            items.push(Item::Name { dir: to.dir, name: to.name.into(), state: NameState::Names(from.ino) });
        }
        let gained = i32::from(b.is_dir) - i32::from(a.is_dir);
        let mut subdirs = vec![(a.dir, gained), (b.dir, -gained)];
        dirs_changed(state, &mut subdirs, now, &mut items)?;
        self.change(state, items)
    }

    /// After a power loss, a rename over an existing file must never leave an empty one: if the new name
    /// exists, the replacement is made durable first.
    fn flush_before_replacing(&self, dir: Ino, name: &[u8], new_dir: Ino, new_name: &[u8]) -> Result<()> {
        let Some(upper) = &self.upper else { return Ok(()) };
        let unsynced = |state: &State| -> Result<Option<ToSync>> {
            if state.entry(&self.trees, new_dir, new_name)?.is_none() {
                return Ok(None);
            }
            let Some(named) = state.entry(&self.trees, dir, name)? else { return Ok(None) };
            let Some(node) = state.nodes.get(&named.ino).filter(|n| n.unsynced) else { return Ok(None) };
            ToSync::of(upper, node)
        };
        if unsynced(&self.state.read())?.is_none() {
            return Ok(());
        }
        let mut state = self.state.write();
        let Some(found) = unsynced(&state)? else { return Ok(()) };
        // Cleared before the sync, which may not cover later writes.
        state.node_mut(found.data.ino)?.unsynced = false;
        drop(state);
        self.sync_data(upper, &found)
    }
}

fn is_dir(state: &State, ino: Ino) -> Result<bool> {
    Ok(state.node(ino)?.kind() == FileKind::Directory)
}

/// Whether `ino` is `ancestor` or lies below it.
fn is_below(state: &State, mut ino: Ino, ancestor: Ino) -> bool {
    loop {
        if ino == ancestor {
            return true;
        }
        if ino == ROOT_INO {
            return false;
        }
        ino = state.parent_of(ino);
    }
}

/// The items for the inode of `side`, which gets a new name.
fn moved(state: &State, side: &Side<'_>, dir: Ino, name: &[u8], now: Timestamp) -> Result<Vec<Item>> {
    let node = state.node(side.ino)?;
    let mut items = vec![attr_item(side.ino, &Meta { ctime: now, ..node.meta })];
    if !node.linked {
        let place = Some(Place { parent: dir, name: name.into() });
        items.push(Item::Place { ino: side.ino, place, linked: false });
    }
    Ok(items)
}

/// Creates a character device 0:0, which overlayfs uses as a whiteout in its upper. It inherits from the
/// directory like any new inode.
fn whiteout(state: &mut State, caller: &Caller, dir: Ino, name: &[u8], now: Timestamp) -> Result<Vec<Item>> {
    let parent = state.live_dir(dir)?;
    let inherited = acl::inherit(&parent.xattrs, FileKind::CharDevice, 0, caller.umask)?;
    let gid = if parent.meta.mode & libc::S_ISGID != 0 { parent.meta.gid } else { caller.gid };
    let ino = state.allocate()?;
    let new = NewInode {
        ino,
        mode: FileKind::CharDevice.to_mode() | inherited.permissions,
        uid: caller.uid,
        gid,
        rdev: 0,
        xattrs: inherited.xattrs,
        body: Body::Special,
    };
    let put = PutItem {
        record: new.record(now),
        place: Some(Place { parent: dir, name: name.into() }),
        linked: false,
        data: DataState::None,
    };
    Ok(vec![Item::Put(Box::new(put)), Item::Name { dir, name: name.into(), state: NameState::Names(ino) }])
}

/// The items for directories whose entries change, one per directory.
fn dirs_changed(
    state: &State,
    dirs: &mut Vec<(Ino, i32)>,
    now: Timestamp,
    items: &mut Vec<Item>,
) -> Result<()> {
    if dirs.len() == 2 && dirs[0].0 == dirs[1].0 {
        dirs[0].1 += dirs[1].1;
        dirs.truncate(1);
    }
    for (dir, subdirs) in dirs {
        items.push(super::create::dir_changed(state, *dir, now, *subdirs)?);
    }
    Ok(())
}
