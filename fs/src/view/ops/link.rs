//! Hard links.
//!
//! An inode with several names is *linked*: its record is in a snapshot's link table, and directories refer
//! to it by number. It stays linked even when only one name is left.

use karapace_store::inode::{FileKind, Ino, Timestamp};

use crate::attr::Attr;
use crate::error::{Error, Result};
use crate::upper::record::{Item, NameState};
use crate::view::node::Meta;
use crate::view::ops::create::dir_changed;
use crate::view::table::attr_item;
use crate::view::{View, check_name};

/// Most names of one inode. ext4 allows 65,000, and programs expect some limit.
const LINK_MAX: u32 = 65_000;

/// The directory and name of an inode that never had another name.
type OnlyName = Option<(Ino, Box<[u8]>)>;

impl View {
    /// Adds a name to an inode; counts one reference.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for a directory; [`Error::NotFound`] for an inode without a name;
    /// [`Error::TooManyLinks`] beyond 65,000 names; [`Error::Exists`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.link_again(ino, parent, name).map(|(attr, _)| attr)
    }

    /// Like [`View::link`], and returns the name that the inode had so far, if it was the only one.
    pub(crate) fn link_again(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<(Attr, OnlyName)> {
        check_name(name)?;
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let node = state.node(ino)?;
        if node.kind() == FileKind::Directory {
            return Err(Error::NotPermitted);
        }
        if node.is_orphan() {
            return Err(Error::NotFound);
        }
        if node.meta.nlink >= LINK_MAX {
            return Err(Error::TooManyLinks);
        }
        if state.entry(&self.trees, parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let now = Timestamp::now();
        let mut items = Vec::with_capacity(6);
        state.dirty_chain(ino, &mut items)?;
        state.dirty_chain(parent, &mut items)?;
        let node = state.node(ino)?;
        let only_name = node.place.as_ref().map(|place| (place.parent, place.name.clone()));
        if let Some(place) = &node.place {
            // The existing name becomes a reference to the link table too.
            let state = NameState::Names(ino);
            items.push(Item::Name { dir: place.parent, name: place.name.clone(), state });
        }
        items.push(Item::Place { ino, place: None, linked: true });
        items.push(attr_item(ino, &Meta { nlink: node.meta.nlink + 1, ctime: now, ..node.meta }));
        items.push(Item::Name { dir: parent, name: name.into(), state: NameState::Names(ino) });
        items.push(dir_changed(&state, parent, now, 0)?);
        self.change(&mut state, items)?;
        Ok((self.referenced(&mut state, ino)?, only_name))
    }
}
