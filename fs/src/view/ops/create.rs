//! Creates inodes: files, directories, symbolic links, device nodes, FIFOs, sockets.

use karapace_store::content::FileContent;
use karapace_store::inode::{Body, FileKind, Ino, Timestamp, Xattrs};

use crate::attr::{Attr, Caller};
use crate::error::{Error, Result};
use crate::upper::record::{DataState, Item, NameState, Place, PutItem};
use crate::view::node::{FileBody, Meta, Node};
use crate::view::ops::acl;
use crate::view::table::{NewInode, State, attr_item};
use crate::view::{View, check_name};

/// Longest target of a symbolic link, in bytes (PATH_MAX without the NUL).
const TARGET_MAX: usize = 4095;

impl View {
    /// Creates a regular file, FIFO, socket or device node; counts one reference.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotPermitted`] if `mode` says directory or symbolic link;
    /// [`Error::Invalid`] if it has an unknown type.
    pub fn mknod(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u64) -> Result<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 => FileKind::Regular,
            _ => FileKind::from_mode(mode).ok_or(Error::Invalid("unknown file type"))?,
        };
        let (body, rdev) = match kind {
            FileKind::Regular => (Body::Regular(FileContent::empty()), 0),
            FileKind::CharDevice | FileKind::BlockDevice => (Body::Special, rdev),
            FileKind::Fifo | FileKind::Socket => (Body::Special, 0),
            FileKind::Directory | FileKind::Symlink => return Err(Error::NotPermitted),
        };
        self.create(caller, parent, name, kind, mode & 0o7777, rdev, body)
    }

    /// Creates a new regular file's data file in advance of its first write. Call it after replying to the
    /// create request, so that no request waits for the host. It is optional and may do nothing.
    pub fn make_ahead(&self, ino: Ino) {
        let (Ok(upper), Some(_gate)) = (self.writable(), self.gate.try_read()) else { return };
        let is_empty = match self.state.read().node(ino).map(Node::file) {
            Ok(Some(FileBody::Lower(content))) => content.size == 0,
            _ => false,
        };
        if is_empty {
            upper.data.make_ahead(ino);
        }
    }

    /// Creates a directory; counts one reference.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let body = Body::Directory { tree: None, links: false };
        self.create(caller, parent, name, FileKind::Directory, mode & 0o7777, 0, body)
    }

    /// Creates a symbolic link; counts one reference.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotFound`] for an empty target; [`Error::NameTooLong`] for one above 4095
    /// bytes.
    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        if target.is_empty() {
            return Err(Error::NotFound);
        }
        if target.len() > TARGET_MAX {
            return Err(Error::NameTooLong);
        }
        let caller = Caller { umask: 0, ..*caller };
        self.create(&caller, parent, name, FileKind::Symlink, 0o777, 0, Body::Symlink(target.into()))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of an inode, each of another type")]
    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        kind: FileKind,
        permissions: u32,
        rdev: u64,
        body: Body,
    ) -> Result<Attr> {
        check_name(name)?;
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        if state.entry(&self.trees, parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let dir = state.live_dir(parent)?;
        let inherited = acl::inherit(&dir.xattrs, kind, permissions, caller.umask)?;
        let mut mode = kind.to_mode() | inherited.permissions;
        let mut gid = caller.gid;
        if dir.meta.mode & libc::S_ISGID != 0 {
            gid = dir.meta.gid;
            if kind == FileKind::Directory {
                mode |= libc::S_ISGID;
            }
        }
        let ino = state.allocate()?;
        let xattrs: Xattrs = inherited.xattrs;
        let now = Timestamp::now();
        let new = NewInode { ino, mode, uid: caller.uid, gid, rdev, xattrs, body };
        let put = PutItem {
            record: new.record(now),
            place: Some(Place { parent, name: name.into() }),
            linked: false,
            data: DataState::None,
        };
        let mut items = Vec::with_capacity(4);
        state.dirty_chain(parent, &mut items)?;
        items.push(Item::Put(Box::new(put)));
        items.push(Item::Name { dir: parent, name: name.into(), state: NameState::Names(ino) });
        items.push(dir_changed(&state, parent, now, i32::from(kind == FileKind::Directory))?);
        self.change(&mut state, items)?;
        let node = state.node_mut(ino)?;
        node.lookups += 1;
        Ok(node.attr(ino))
    }
}

/// The item for a directory whose entries change: new times, and `subdirs` more (or fewer) subdirectories.
pub(super) fn dir_changed(state: &State, dir: Ino, now: Timestamp, subdirs: i32) -> Result<Item> {
    let node = state.node(dir)?;
    let nlink = node.meta.nlink.saturating_add_signed(subdirs);
    Ok(attr_item(dir, &Meta { nlink, mtime: now, ctime: now, ..node.meta }))
}
