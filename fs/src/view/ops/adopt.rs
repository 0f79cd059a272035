//! Takes in inodes as they are, with all their attributes and without a copy of their data.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use karapace_store::inode::{FileKind, Ino, InodeRecord};

use crate::error::{Error, Result};
use crate::upper::data::DataFile;
use crate::upper::record::{DataState, Item, NameState, Place, PutItem};
use crate::view::ops::create::dir_changed;
use crate::view::{View, check_name};

/// A file whose data is taken in.
pub(crate) struct Source<'a> {
    /// Its directory, on the upper's file system.
    pub directory: &'a OwnedFd,
    pub name: &'a CStr,
    /// Its size in bytes, not 0.
    pub size: u64,
}

impl View {
    /// Creates an inode with this record, but for the number and the link count. A regular file that is not
    /// empty gets the file of `source`, which must be this process's own, with mode 0600, as its data file.
    /// The directory's times change. Counts no reference.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub(crate) fn adopt(
        &self,
        parent: Ino,
        name: &[u8],
        record: &InodeRecord,
        source: Option<Source<'_>>,
    ) -> Result<Ino> {
        check_name(name)?;
        let upper = self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        if state.entry(&self.trees, parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        state.live_dir(parent)?;
        let ino = state.allocate()?;
        let is_directory = record.kind() == FileKind::Directory;
        let record = InodeRecord { ino, nlink: if is_directory { 2 } else { 1 }, ..record.clone() };
        let now = record.ctime;
        let has_data = source.is_some();
        let mut data = DataState::None;
        if let Some(Source { directory, name, size }) = source {
            let file = DataFile::new(ino, 0);
            upper.data.take_in(&file, directory, name)?;
            data = DataState::Whole { generation: file.generation, size };
        }
        let place = Some(Place { parent, name: name.into() });
        let mut items = Vec::with_capacity(4);
        state.dirty_chain(parent, &mut items)?;
        items.push(Item::Put(Box::new(PutItem { record, place, linked: false, data })));
        items.push(Item::Name { dir: parent, name: name.into(), state: NameState::Names(ino) });
        items.push(dir_changed(&state, parent, now, i32::from(is_directory))?);
        self.change(&mut state, items)?;
        // Where a sync of the whole file system is not enough.
        state.node_mut(ino)?.unsynced = has_data;
        Ok(ino)
    }

    /// Gives an inode all attributes of this record but the number, the link count and the device.
    pub(crate) fn describe(&self, ino: Ino, record: &InodeRecord) -> Result<()> {
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let mut items = Vec::new();
        state.dirty_chain(ino, &mut items)?;
        items.retain(|item| !matches!(item, Item::Put(put) if put.record.ino == ino));
        let mut put = state.put_item(ino)?;
        let InodeRecord { mode, uid, gid, atime, mtime, ctime, .. } = *record;
        let xattrs = record.xattrs.clone();
        put.record = InodeRecord { mode, uid, gid, atime, mtime, ctime, xattrs, ..put.record };
        items.push(Item::Put(Box::new(put)));
        self.change(&mut state, items)
    }
}
