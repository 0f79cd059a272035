//! Removes names: unlink and rmdir. An inode without a name lives until the kernel forgets it.

use karapace_store::inode::{FileKind, Ino, Timestamp};
use karapace_store::tree::Trees;

use crate::error::{Error, Result};
use crate::upper::journal::Room;
use crate::upper::record::{Item, NameState};
use crate::view::node::Meta;
use crate::view::ops::create::dir_changed;
use crate::view::table::{Forgotten, State, attr_item, lower_tree};
use crate::view::{View, check_name};

impl View {
    /// Removes a name of a non-directory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::IsDirectory`] for a directory.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotDirectory`]; [`Error::NotEmpty`].
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true)
    }

    fn remove(&self, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        check_name(name)?;
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let ino = state.load(&self.trees, parent, name)?.ok_or(Error::NotFound)?;
        match (state.node(ino)?.kind() == FileKind::Directory, directory) {
            (true, false) => return Err(Error::IsDirectory),
            (false, true) => return Err(Error::NotDirectory),
            (true, true) if !self.is_empty_dir(&state, ino)? => return Err(Error::NotEmpty),
            _ => {}
        }
        let now = Timestamp::now();
        let mut items = Vec::with_capacity(6);
        state.dirty_chain(ino, &mut items)?;
        state.dirty_chain(parent, &mut items)?;
        drop_name(&state, ino, now, &mut items)?;
        items.push(name_gone(&self.trees, &state, parent, name)?);
        items.push(dir_changed(&state, parent, now, -i32::from(directory))?);
        // Must work on a full disk too: removing files is how space is freed.
        self.change_in(&mut state, items, Room::Reserved)?;
        let mut forgotten = Forgotten::default();
        state.release(ino, &mut forgotten);
        self.bury(forgotten);
        Ok(())
    }
}

/// The items for an inode that loses one name. A directory, or an inode that loses its last name, becomes an
/// orphan.
pub(super) fn drop_name(state: &State, ino: Ino, now: Timestamp, items: &mut Vec<Item>) -> Result<()> {
    let node = state.node(ino)?;
    let nlink = if node.kind() == FileKind::Directory { 0 } else { node.meta.nlink.saturating_sub(1) };
    items.push(attr_item(ino, &Meta { nlink, ctime: now, ..node.meta }));
    if nlink == 0 {
        items.push(Item::Place { ino, place: None, linked: node.linked });
    }
    Ok(())
}

/// The item for a removed name: hidden if the lower listing has it, otherwise no longer mentioned.
pub(super) fn name_gone(trees: &Trees, state: &State, dir: Ino, name: &[u8]) -> Result<Item> {
    let below = match lower_tree(state.node(dir)?) {
        Some(tree) => trees.lookup(&tree, name)?.is_some(),
        None => false,
    };
    let gone = if below { NameState::Hidden } else { NameState::AsBelow };
    Ok(Item::Name { dir, name: name.into(), state: gone })
}
