//! Requests that make, remove or rename something.

use std::sync::Arc;

use fuser::{Errno, INodeNo, RenameFlags, ReplyEmpty, ReplyEntry, Request};
use karapace_store::inode::{FileKind, Ino};

use super::link::Lifetime;
use super::nodes::LIVE;
use super::reply::{decode_dev, rename_mode};
use super::requests::{Outcome, done, start};
use super::{Node, Shared, guard};
use crate::attr::{Attr, RenameMode};

/// A new name: how long it may be kept, the view's index and the directory, and the inode.
type Made<'a> = (Lifetime<'a>, (u16, Ino), Attr);

impl Shared {
    /// `how`: mode before applying the umask, umask, device.
    pub(super) fn mknod(
        self: &Arc<Self>,
        req: &Request,
        parent: INodeNo,
        name: &[u8],
        how: (u32, u32, u32),
        reply: ReplyEntry,
    ) {
        let (mode, umask, rdev) = how;
        if self.watchers.sent(req) {
            let kind = FileKind::from_mode(mode).unwrap_or(FileKind::Regular);
            return self.create_for_watchers(parent, name, kind, reply);
        }
        let kind = FileKind::from_mode(mode).unwrap_or(FileKind::Regular);
        let made = self.make_placeholder(req, (parent, name), kind, reply);
        let Some(reply) = made else { return };
        let made = self.creation(parent, name).and_then(|(index, view, ino)| {
            let caller = self.caller(req, umask);
            let lifetime = self.lifetime(index);
            let attr = self.change("mknod", (index, &view), || {
                self.counted(index, || view.mknod(&caller, ino, name, mode, decode_dev(rdev)))
            })?;
            Ok((view, lifetime, (index, ino, name), attr))
        });
        match made {
            Ok((view, lifetime, place, attr)) => {
                self.entry(reply, &lifetime, place, Ok(attr));
                drop(lifetime);
                // Runs while the caller is on its way to the first write.
                let _logged: Outcome<()> = guard("mknod", || {
                    view.make_ahead(attr.ino);
                    Ok(())
                });
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// `how`: mode before applying the umask, umask.
    pub(super) fn mkdir(
        self: &Arc<Self>,
        req: &Request,
        parent: INodeNo,
        name: &[u8],
        how: (u32, u32),
        reply: ReplyEntry,
    ) {
        if self.watchers.sent(req) {
            return self.create_for_watchers(parent, name, FileKind::Directory, reply);
        }
        let made = self.make_placeholder(req, (parent, name), FileKind::Directory, reply);
        let Some(reply) = made else { return };
        if let Ok(Node::Control(ino)) = self.node(parent) {
            if let Err(errno) = self.control_for(req) {
                return reply.error(errno);
            }
            let (shared, name) = (self.clone(), Box::<[u8]>::from(name));
            return start("mkdir", move || {
                let made = shared.control().and_then(|control| {
                    guard("mkdir", || Ok(control.mkdir(ino, &name).map_err(Errno::from_i32)))
                        .and_then(|made| made)
                });
                shared.control_entry(reply, made);
            });
        }
        let (mode, umask) = how;
        let made = self.creation(parent, name).and_then(|(index, view, ino)| {
            let caller = self.caller(req, umask);
            let lifetime = self.lifetime(index);
            let made = self.change("mkdir", (index, &view), || {
                self.counted(index, || view.mkdir(&caller, ino, name, mode))
            })?;
            Ok((lifetime, (index, ino), made))
        });
        self.created(reply, name, made);
    }

    pub(super) fn symlink(
        self: &Arc<Self>,
        req: &Request,
        parent: INodeNo,
        name: &[u8],
        target: &[u8],
        reply: ReplyEntry,
    ) {
        if self.watchers.sent(req) {
            return self.create_for_watchers(parent, name, FileKind::Symlink, reply);
        }
        let made = self.creation(parent, name).and_then(|(index, view, ino)| {
            let caller = self.caller(req, 0);
            let lifetime = self.lifetime(index);
            let made = self.change("symlink", (index, &view), || {
                self.counted(index, || view.symlink(&caller, ino, name, target))
            })?;
            Ok((lifetime, (index, ino), made))
        });
        self.created(reply, name, made);
    }

    pub(super) fn link(
        self: &Arc<Self>,
        node: INodeNo,
        newparent: INodeNo,
        newname: &[u8],
        reply: ReplyEntry,
    ) {
        let made = self.creation(newparent, newname).and_then(|(index, view, parent)| {
            let (from, _, ino) = self.view(node)?;
            if from != index {
                return Err(Errno::EXDEV);
            }
            let lifetime = self.lifetime(index);
            let mut only_name = None;
            let made = self.change("link", (index, &view), || {
                self.counted(index, || {
                    let (attr, other) = view.link_again(ino, parent, newname)?;
                    only_name = other;
                    Ok(attr)
                })
            })?;
            if let Some((parent, name)) = only_name.filter(|_| index == LIVE) {
                self.note_name(&lifetime, parent, &name, Some(&made));
            }
            if self.links.several() {
                // The kernel takes this answer even if another connection has changed the file since.
                self.link.outdated.add(ino, false);
            }
            Ok((lifetime, (index, parent), made))
        });
        self.created(reply, newname, made);
    }

    /// The view and the directory in which to create a name.
    fn creation(&self, parent: INodeNo, name: &[u8]) -> Outcome<(u16, Arc<crate::view::View>, Ino)> {
        if self.is_reserved(parent, name) {
            return Err(Errno::EEXIST);
        }
        if self.link.placeholders.find(parent.0, name).is_some() {
            return Err(Errno::EEXIST);
        }
        self.view(parent)
    }

    /// Replies to the creation of `name`: with the view's index, the directory and the new inode.
    fn created(self: &Arc<Self>, reply: ReplyEntry, name: &[u8], made: Outcome<Made<'_>>) {
        match made {
            Ok((lifetime, (index, parent), attr)) => {
                self.entry(reply, &lifetime, (index, parent, name), Ok(attr));
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn unlink(&self, req: &Request, parent: INodeNo, name: &[u8], reply: ReplyEmpty) {
        let own = match self.leave_point(parent, name) {
            Ok(own) => own,
            Err(errno) => return reply.error(errno),
        };
        let result = if own {
            self.remove_own(req, parent, name)
        } else if self.watchers.sent(req) {
            self.remove_for_watchers(parent, name)
        } else if self.is_reserved(parent, name) {
            Err(Errno::EPERM)
        } else {
            self.view(parent).and_then(|(index, view, ino)| {
                self.change("unlink", (index, &view), || view.unlink(ino, name))
            })
        };
        done(reply, result);
    }

    pub(super) fn rmdir(self: &Arc<Self>, req: &Request, parent: INodeNo, name: &[u8], reply: ReplyEmpty) {
        if self.is_reserved(parent, name) {
            return reply.error(Errno::EBUSY);
        }
        if let Err(errno) = self.leave_point(parent, name) {
            return reply.error(errno);
        }
        if self.watchers.sent(req) {
            return done(reply, self.remove_for_watchers(parent, name));
        }
        match self.node(parent) {
            Ok(Node::View { index, view, ino }) => {
                let removed = self
                    .leave_holder((index, &view, ino), name)
                    .and_then(|()| self.change("rmdir", (index, &view), || view.rmdir(ino, name)));
                done(reply, removed);
            }
            Ok(Node::Control(ino)) => {
                if let Err(errno) = self.control_for(req) {
                    return reply.error(errno);
                }
                let (shared, name) = (self.clone(), Box::<[u8]>::from(name));
                start("rmdir", move || {
                    let result = shared.control().and_then(|control| {
                        guard("rmdir", || Ok(control.rmdir(ino, &name).map_err(Errno::from_i32)))
                            .and_then(|r| r)
                    });
                    done(reply, result);
                });
            }
            Ok(Node::Placeholder(_)) => reply.error(Errno::EROFS),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn rename(
        &self,
        req: &Request,
        (parent, name): (INodeNo, &[u8]),
        (newparent, newname): (INodeNo, &[u8]),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = rename_mode(flags).map_err(|e| Errno::from_i32(e.errno())).and_then(|mode| {
            if self.is_reserved(parent, name) {
                return Err(Errno::EBUSY);
            }
            if self.is_reserved(newparent, newname) {
                return Err(if mode == RenameMode::Exchange { Errno::EBUSY } else { Errno::EEXIST });
            }
            if let Some(renamed) = self.rename_own(req, (parent, name), (newparent, newname)) {
                return renamed;
            }
            let hides = self.leave_point(newparent, newname)?;
            if self.leave_point(parent, name)? || (hides && mode == RenameMode::Exchange) {
                // Callers then copy it, and remove it.
                return Err(Errno::EXDEV);
            }
            let (index, view, from) = self.view(parent)?;
            let (new_index, _, to) = self.view(newparent)?;
            if index != new_index {
                return Err(Errno::EXDEV);
            }
            if mode != RenameMode::Exchange {
                self.leave_holder((index, &view, to), newname)?;
            }
            let caller = self.caller(req, 0);
            self.change("rename", (index, &view), || view.rename(&caller, from, name, to, newname, mode))?;
            if hides {
                self.link.placeholders.remove(newparent.0, newname);
            }
            Ok(())
        });
        done(reply, result);
    }
}
