//! Changes attributes: permissions, owner, size, times.

use karapace_store::inode::{FileKind, Ino, Timestamp};

use crate::attr::{Attr, SetAttr, SetTime};
use crate::error::{Error, Result};
use crate::upper::journal::Room;
use crate::upper::record::Item;
use crate::view::View;
use crate::view::ops::acl;
use crate::view::table::{State, attr_item};

/// The xattr with file capabilities. Like set-user-id, it is dropped when content or owner change.
const CAPABILITY: &[u8] = b"security.capability";

impl View {
    /// Changes attributes: all of them, or none if the size cannot be set.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for the mode of a symbolic link; [`Error::FileTooBig`].
    pub fn setattr(&self, ino: Ino, set: &SetAttr) -> Result<Attr> {
        let upper = self.writable()?;
        let _gate = self.gate.read();
        // Keeps a truncation from running between two steps of a write to the same file.
        let data = self.state.read().node(ino)?.file().and_then(|f| f.data().cloned());
        let _lock = data.as_ref().filter(|_| set.size.is_some()).map(|d| d.lock.lock());
        let mut state = self.state.write();
        // Kernels since 6.6 refuse this themselves.
        if set.mode.is_some() && state.node(ino)?.kind() == FileKind::Symlink {
            return Err(Error::NotSupported);
        }
        let mut room = Room::Ordinary;
        if let Some(size) = set.size {
            if size > state.node(ino)?.meta.size {
                upper.make_room()?;
            }
            // From here on the operation frees space or has reserved it.
            room = Room::Reserved;
            self.truncate(&mut state, ino, size)?;
            self.kill_privileges(&mut state, ino, set.kill_priv, room)?;
        }
        self.settle_times(&mut state, ino)?;
        let now = Timestamp::now();
        let mut items = Vec::new();
        state.dirty_chain(ino, &mut items)?;
        let node = state.node(ino)?;
        let mut meta = node.meta;
        let owner = set.uid.is_some() || set.gid.is_some() || (set.kill_priv && set.size.is_none());
        let mut xattrs = None;
        if let Some(mode) = set.mode {
            meta.set_permissions(mode);
            xattrs = acl::chmod(&node.xattrs, mode)?;
        }
        if meta.mode & 0o7777 & set.without != 0 {
            meta.set_permissions(meta.mode & 0o7777 & !set.without);
        }
        meta.uid = set.uid.unwrap_or(meta.uid);
        meta.gid = set.gid.unwrap_or(meta.gid);
        if owner && node.kind() != FileKind::Directory {
            // chown(2) drops set-id bits and capabilities, whoever the caller is.
            let mode = set.mode.unwrap_or(meta.mode);
            meta.set_permissions(without_set_id(mode));
            if node.xattrs.get(CAPABILITY).is_some() {
                xattrs.get_or_insert_with(|| node.xattrs.clone()).remove(CAPABILITY);
            }
        }
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(t) => t,
        };
        meta.atime = set.atime.map_or(meta.atime, at);
        let mtime = set.mtime.map(at).or(set.size.map(|_| now));
        meta.mtime = mtime.unwrap_or(meta.mtime);
        meta.ctime = set.ctime.unwrap_or(now);
        if let Some(xattrs) = xattrs {
            items.retain(|i| !matches!(i, Item::Put(p) if p.record.ino == ino));
            let mut put = state.put_item(ino)?;
            put.record.xattrs = xattrs;
            items.push(Item::Put(Box::new(put)));
        }
        items.push(attr_item(ino, &meta));
        self.change_in(&mut state, items, room)?;
        if let Some(mtime) = mtime {
            self.set_data_times(&state, ino, mtime)?;
        }
        self.settle_times(&mut state, ino)?;
        Ok(state.node(ino)?.attr(ino))
    }

    /// Drops capabilities, as every content change must, and with `set_id` the set-id bits, as a change by an
    /// unprivileged user must.
    pub(super) fn kill_privileges(
        &self,
        state: &mut State,
        ino: Ino,
        set_id: bool,
        room: Room,
    ) -> Result<()> {
        let node = state.node(ino)?;
        let bits = if set_id { without_set_id(node.meta.mode) } else { node.meta.mode & 0o7777 };
        let capability = node.xattrs.get(CAPABILITY).is_some();
        if node.meta.mode & 0o7777 == bits && !capability {
            return Ok(());
        }
        let mut items = Vec::new();
        if let Some(place) = &node.place {
            state.dirty_chain(place.parent, &mut items)?;
        }
        let mut put = state.put_item(ino)?;
        put.record.mode = (put.record.mode & libc::S_IFMT) | bits;
        put.record.ctime = Timestamp::now();
        put.record.xattrs.remove(CAPABILITY);
        items.push(Item::Put(Box::new(put)));
        self.change_in(state, items, room)
    }
}

/// Permission bits without set-user-id, and without set-group-id if the group may execute.
fn without_set_id(mode: u32) -> u32 {
    let mut bits = mode & 0o7777 & !libc::S_ISUID;
    if bits & libc::S_IXGRP != 0 {
        bits &= !libc::S_ISGID;
    }
    bits
}
