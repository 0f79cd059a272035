//! Handles requests, each routed to its view, to the control directory or to a placeholder.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{
    AccessFlags, Errno, FileAttr, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyStatfs,
    ReplyWrite, Request, WriteFlags,
};
use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino};

use super::link::Lifetime;
use super::nodes::{CONTROL, LIVE, PLACEHOLDER, split};
use super::reply::{FOREVER, NEVER, absent, file_attr};
use super::workers::spawn;
use super::{GENERATION, Node, Shared, guard};
use crate::attr::SetAttr;
use crate::error::Error;
use crate::view::View;

thread_local! {
    /// Each request thread reads into its own buffer, which grows to the size of the largest read.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) type Outcome<T> = Result<T, Errno>;

impl Shared {
    pub(super) fn lookup(self: &Arc<Self>, req: &Request, parent: INodeNo, name: &[u8], reply: ReplyEntry) {
        if self.is_reserved(parent, name) {
            return self.lookup_control_dir(reply);
        }
        if let Some(found) = self.link.placeholders.find(parent.0, name) {
            return self.placeholder_entry(reply, &found);
        }
        let reply = if self.watchers.sent(req) {
            let Some(reply) = self.lookup_for_watchers(parent, name, reply) else { return };
            reply
        } else {
            reply
        };
        match self.node(parent) {
            Ok(Node::View { index, view, ino }) => {
                let lifetime = self.lifetime(index);
                match guard("lookup", || self.counted(index, || view.lookup(ino, name))) {
                    Err(errno) if errno.code() == libc::ENOENT => {
                        self.no_entry(reply, &lifetime, (index, ino, name))
                    }
                    found => self.entry(reply, &lifetime, (index, ino, name), found),
                }
            }
            Ok(Node::Control(ino)) => match self.control_for(req) {
                Ok(control) if control.is_slow(ino, name) => {
                    let (shared, name) = (self.clone(), Box::<[u8]>::from(name));
                    start("lookup", move || {
                        let found = shared.control().and_then(|c| guard("lookup", || c.lookup(ino, &name)));
                        shared.control_entry(reply, found);
                    });
                }
                Ok(control) => self.control_entry(reply, guard("lookup", || control.lookup(ino, name))),
                Err(errno) => reply.error(errno),
            },
            Ok(Node::Placeholder(_)) => reply.error(Errno::ENOENT),
            Err(errno) => reply.error(errno),
        }
    }

    /// The kernel may cache the entry of `.karapace`, so that mounts on it stay, but not its attributes.
    fn lookup_control_dir(&self, reply: ReplyEntry) {
        match self.control.as_ref().map(|control| guard("lookup", || control.top())) {
            Some(Ok(attr)) => {
                reply.entry_with_ttls(&NEVER, &FOREVER, &file_attr(&attr, CONTROL, None), GENERATION)
            }
            Some(Err(errno)) => reply.error(errno),
            None => reply.entry(&FOREVER, &absent(), GENERATION),
        }
    }

    pub(super) fn forget(self: &Arc<Self>, index: u16, ino: Ino, count: u64) {
        // FORGET has no reply; errors are in the log.
        let _logged: Outcome<()> = guard("forget", || {
            if index == CONTROL {
                if let Some(control) = &self.control {
                    control.forget(ino, count);
                }
                return Ok(());
            }
            if index == PLACEHOLDER {
                // They live until they are dropped.
                return Ok(());
            }
            let counting = self.link.counting();
            if index == LIVE {
                self.link.uncount(ino, count);
            }
            let is_last = self.views.forget(index, ino, count);
            if index == LIVE {
                self.links.forgotten(self.views.live(), &self.link, ino);
            }
            drop(counting);
            if is_last {
                let shared = self.clone();
                self.workers.run(move || shared.keep_no_more());
            } else if index == LIVE {
                let view = self.views.live().clone();
                if view.wants_trim() {
                    self.workers.run(move || view.trim());
                } else if view.wants_relief() {
                    self.workers.run(move || view.relieve());
                }
            }
            Ok(())
        });
    }

    /// Releases snapshots that are no longer looked at.
    fn keep_no_more(&self) {
        if let Err(error) = self.views.keep_no_more(&|roots: &[ObjectId]| self.keep_snapshots(roots)) {
            tracing::warn!("{error}; gc keeps a snapshot for now that nobody reads any more");
        }
    }

    pub(super) fn getattr(self: &Arc<Self>, node: INodeNo, reply: ReplyAttr) {
        let (index, ino) = split(node.0);
        if index == LIVE
            && let Some(change) = self.link.outdated.pages_before(ino)
        {
            return self.getattr_after_drop(node, (self.views.live().clone(), ino, change), reply);
        }
        let result = self.node(node).and_then(|node| match node {
            Node::View { index, view, ino } => {
                let lifetime = self.lifetime(index);
                let attr = guard("getattr", || view.getattr(ino))?;
                Ok((Some(lifetime), file_attr(&attr, index, Some(&self.ids))))
            }
            Node::Control(ino) => {
                let control = self.control()?;
                let attr = guard("getattr", || control.getattr(ino))?;
                Ok((None, file_attr(&attr, CONTROL, None)))
            }
            Node::Placeholder(number) => {
                let attr = self.link.placeholders.attr(number)?;
                Ok((None, file_attr(&attr, PLACEHOLDER, Some(&self.ids))))
            }
        });
        self.attr(reply, result);
    }

    /// Replies with attributes, which the kernel may keep if a lifetime is given.
    fn attr(&self, reply: ReplyAttr, result: Outcome<(Option<Lifetime<'_>>, FileAttr)>) {
        match result {
            Ok((Some(lifetime), attr)) => reply.attr(&self.attr_time(&lifetime, attr.ino), &attr),
            Ok((None, attr)) => reply.attr(&NEVER, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn setattr(self: &Arc<Self>, req: &Request, node: INodeNo, set: &SetAttr, reply: ReplyAttr) {
        if self.watchers.sent(req) {
            // What it sets has that value already.
            return self.getattr(node, reply);
        }
        if let Some((view, ino)) = self.wants_pages_first(node, set) {
            return self.setattr_after_pages(node, (view, ino), *set, reply);
        }
        let result = self.node(node).and_then(|node| match node {
            Node::View { index, view, ino } => {
                let lifetime = self.lifetime(index);
                // What is stored through mappings is written back before a time is set, which that would
                // change.
                let whole = set.mtime.map(|_| (ino, 0..0));
                let data = set.size.map(|size| (ino, size..u64::MAX)).or(whole);
                let (keeps, attr) = self.change_data("setattr", (index, &view), data, || {
                    let only_privileges = *set == SetAttr::default();
                    if only_privileges && !self.may_drop_privileges(req, &view, ino)? {
                        // The write that follows may drop them, so the kernel must not cache these
                        // attributes.
                        return Ok(((false, view.getattr(ino)?), 0..0));
                    }
                    if set.kill_priv || only_privileges {
                        self.drop_foreign_set_gid(req, &view, ino)?;
                    }
                    if !only_privileges {
                        let before = if set.size.is_some() { view.getattr(ino)?.size } else { 0 };
                        let attr = view.setattr(ino, set)?;
                        return Ok(((true, attr), attr.size.min(before)..before));
                    }
                    // The request only drops set-user-id: it comes before a write, or from a chown that names
                    // no ids. (It also comes when root writes to a file that had capabilities, and root would
                    // keep set-user-id; the two cases cannot be told apart.)
                    Ok(((true, Shared::drop_set_id(&view, ino)?), 0..0))
                })?;
                // The kernel takes this answer even if another connection has changed the file since.
                let keeps = keeps && !self.links.several();
                Ok((keeps.then_some(lifetime), file_attr(&attr, index, Some(&self.ids))))
            }
            Node::Control(ino) => {
                let control = self.control_for(req)?;
                let owner_or_mode = set.uid.is_some() || set.gid.is_some() || set.mode.is_some();
                let attr = guard("setattr", || {
                    control.may_setattr(ino, set.size, owner_or_mode)?;
                    control.getattr(ino)
                })?;
                Ok((None, file_attr(&attr, CONTROL, None)))
            }
            Node::Placeholder(number) => {
                let attr = self.link.placeholders.set(number, set)?;
                Ok((None, file_attr(&attr, PLACEHOLDER, Some(&self.ids))))
            }
        });
        self.attr(reply, result);
    }

    /// Sent only on mounts that leave permission checks to us, whose user acts as root: the user may read and
    /// write everything, and execute what anyone may execute (path_resolution(7)). So `test -x` distinguishes
    /// programs from other files.
    pub(super) fn access(&self, node: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let result = self.node(node).and_then(|node| match node {
            Node::View { view, ino, .. } => guard("access", || {
                let mode = view.getattr(ino)?.mode;
                let kind = FileKind::from_mode(mode).unwrap_or(FileKind::Regular);
                if mask.contains(AccessFlags::X_OK) && kind == FileKind::Regular && mode & 0o111 == 0 {
                    return Err(Error::Access);
                }
                let inside = matches!(kind, FileKind::Regular | FileKind::Directory | FileKind::Symlink);
                if mask.contains(AccessFlags::W_OK) && inside && view.is_read_only() {
                    return Err(Error::ReadOnly);
                }
                Ok(())
            }),
            Node::Placeholder(number) if mask.contains(AccessFlags::W_OK) => {
                self.link.placeholders.set(number, &SetAttr::default()).map(drop)
            }
            Node::Control(_) | Node::Placeholder(_) => Ok(()),
        });
        done(reply, result);
    }

    pub(super) fn readlink(&self, node: INodeNo, reply: ReplyData) {
        match self.view(node).and_then(|(_, view, ino)| guard("readlink", || view.readlink(ino))) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn read(&self, node: INodeNo, offset: u64, size: usize, reply: ReplyData) {
        let mut begun = None;
        READ_BUFFER.with_borrow_mut(|buffer| {
            let result = self.node(node).and_then(|node| match node {
                Node::View { view, ino, .. } => {
                    let read = guard("read", || view.read(ino, offset, size, buffer));
                    begun = (offset == 0).then_some((view, ino));
                    read
                }
                Node::Control(ino) => {
                    let control = self.control()?;
                    guard("read", || control.read(ino, offset, size, buffer))
                }
                Node::Placeholder(number) => {
                    self.link.placeholders.read(number, offset, size, buffer);
                    Ok(())
                }
            });
            match result {
                Ok(()) => reply.data(buffer),
                Err(errno) => reply.error(errno),
            }
        });
        if let Some((view, ino)) = begun {
            self.read_ahead(|| view.ahead_of_read(ino));
        }
    }

    /// Writes to a file; returns at what offset, and the number of bytes.
    fn write_to_view(
        &self,
        req: &Request,
        (index, view, ino): (u16, Arc<View>, Ino),
        (offset, data): (u64, &[u8]),
        (flags, appends): (WriteFlags, bool),
    ) -> Outcome<(u64, usize)> {
        let several = index == LIVE && self.links.several();
        let from_pages = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // A kernel does not ask for the size before it appends, and may not know what another one wrote.
        let finds_end = appends && !from_pages && several;
        let part = match finds_end.then(|| view.getattr(ino)) {
            Some(Ok(attr)) => attr.size..u64::MAX,
            _ => offset..offset.saturating_add(data.len() as u64),
        };
        let kill_priv = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.change_data("write", (index, &view), Some((ino, part)), || {
            if from_pages {
                view.note_mapped(ino)?;
            }
            if kill_priv {
                self.drop_foreign_set_gid(req, &view, ino)?;
            }
            let write = |at, bytes: &[u8]| view.write(ino, at, bytes, kill_priv);
            let (at, count) = if finds_end {
                self.links.append(&view, ino, data, kill_priv)?
            } else if from_pages && several {
                let size = || Ok(view.getattr(ino)?.size);
                (offset, self.link.rewrites.write_page(ino, (offset, data), size, write)?)
            } else {
                (offset, write(offset, data)?)
            };
            // A page may reach beyond the end, where nothing was written.
            let end = if from_pages { view.getattr(ino)?.size } else { u64::MAX };
            Ok(((at, count), at..end.clamp(at, at + count as u64)))
        })
    }

    /// `appends`: the file was opened with O_APPEND.
    pub(super) fn write(
        self: &Arc<Self>,
        req: &Request,
        node: INodeNo,
        (offset, data): (u64, &[u8]),
        (flags, appends): (WriteFlags, bool),
        reply: ReplyWrite,
    ) {
        let ino = match self.node(node) {
            Ok(Node::View { index, view, ino }) => {
                let from_pages = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
                if from_pages {
                    self.note_writes_back(node);
                }
                let written = self.write_to_view(req, (index, view, ino), (offset, data), (flags, appends));
                if from_pages {
                    self.note_writes_back(node);
                }
                return match written {
                    Ok((at, count)) if at == offset => reply.written(count as u32),
                    Ok((_, count)) => {
                        // The kernel has put it into its pages where it thought that the end was.
                        self.link.outdated.add(ino, true);
                        let misplaced = offset..offset + count as u64;
                        let number = self.link.rewrites.add(ino, misplaced);
                        reply.written(count as u32);
                        self.drop_pages_later(node, ino, number);
                    }
                    Err(errno) => reply.error(errno),
                };
            }
            Ok(Node::Control(ino)) => ino,
            Ok(Node::Placeholder(number)) => {
                let makes = self.makes_points(req);
                return match self.link.placeholders.write(number, offset, data, makes) {
                    Ok(()) => reply.written(data.len() as u32),
                    Err(errno) => reply.error(errno),
                };
            }
            Err(errno) => return reply.error(errno),
        };
        // Writeback from a shared mapping can come at any time and has no caller, so it is not a command.
        if flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            return reply.error(Errno::EACCES);
        }
        match self.control_for(req) {
            Ok(control) if control.is_writable(ino) => {}
            Ok(_) => return reply.error(Errno::EACCES),
            Err(errno) => return reply.error(errno),
        }
        let (shared, data) = (self.clone(), Box::<[u8]>::from(data));
        start("ctl", move || {
            let result = shared.control().and_then(|control| {
                guard("ctl", || Ok(control.write(ino, offset, &data).map_err(Errno::from_i32)))
                    .and_then(|r| r)
            });
            match result {
                Ok(count) => reply.written(count as u32),
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn fsync(&self, node: INodeNo, reply: ReplyEmpty) {
        match self.node(node) {
            // Not on a request thread: the disk may be slow.
            Ok(Node::View { view, ino, .. }) => {
                self.workers.run(move || done(reply, guard("fsync", || view.fsync(ino))));
            }
            Ok(Node::Control(_) | Node::Placeholder(_)) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn statfs(&self, node: INodeNo, reply: ReplyStatfs) {
        let view = match self.node(node) {
            Ok(Node::View { view, .. }) => view,
            Ok(Node::Control(_) | Node::Placeholder(_)) | Err(_) => self.views.live().clone(),
        };
        // Not on a request thread: this first frees removed files, which syncs the journal.
        self.workers.run(move || match guard("statfs", || view.statfs()) {
            Ok(s) => {
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize)
            }
            Err(errno) => reply.error(errno),
        });
    }

    /// `range`: offset and length in bytes.
    pub(super) fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        range: (u64, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = self.node(node).and_then(|node| match node {
            Node::View { index, view, ino } => {
                let part = range.0..range.0.saturating_add(range.1);
                let writes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
                let (start, end) = (part.start, part.end);
                self.change_data("fallocate", (index, &view), Some((ino, part)), || {
                    self.drop_set_id_for(req, &view, ino)?;
                    view.fallocate(ino, mode, range.0, range.1)?;
                    let end = if writes { end.min(view.getattr(ino)?.size) } else { start };
                    Ok(((), start..end.max(start)))
                })
            }
            // Not ENOSYS, which the kernel would apply to the whole mount.
            Node::Control(_) | Node::Placeholder(_) => Err(Errno::from_i32(libc::EOPNOTSUPP)),
        });
        done(reply, result);
    }
}

pub(super) fn done(reply: ReplyEmpty, result: Outcome<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Runs `work`, which owns the reply, on a new thread. If none can be started, the reply is dropped with
/// `work`, and the request fails with EIO.
pub(super) fn start(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = spawn(name, work) {
        tracing::error!(%error, name, "cannot start a thread for a request");
    }
}
