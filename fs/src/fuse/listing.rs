//! Directory listings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};
use karapace_store::inode::{FileKind, ROOT_INO};

use super::nodes::{CONTROL, LIVE, node_id};
use super::reply::{NEVER, file_attr, file_type, listed_only};
use super::{CtlDir, GENERATION, Node, Shared, guard};
use crate::control::{DIR_NAME, TOP};

/// Cookie of the control directory, which is listed last in the root. Cookies of views are smaller.
const AFTER_CONTROL: u64 = 1 << 62;

impl Shared {
    pub(super) fn readdir(&self, req: &Request, node: INodeNo, cookie: u64, mut reply: ReplyDirectory) {
        let result = self.node(node).and_then(|node| match node {
            Node::Control(ino) => {
                let control = self.control_for(req)?;
                guard("readdir", || {
                    control.readdir(ino, cookie, &mut |e| {
                        let name = OsStr::from_bytes(e.name);
                        !reply.add(INodeNo(node_id(CONTROL, e.ino)), e.cookie, file_type(e.kind), name)
                    })
                })
            }
            Node::View { index: LIVE, ino: ROOT_INO, .. } if cookie == AFTER_CONTROL => Ok(()),
            Node::View { index, view, ino } => {
                let mut full = false;
                guard("readdir", || {
                    view.readdir(ino, cookie, false, &mut |e| {
                        let name = OsStr::from_bytes(e.name);
                        full |= reply.add(INodeNo(node_id(index, e.ino)), e.cookie, file_type(e.kind), name);
                        !full
                    })
                })?;
                if !full && self.lists_control(index, ino) {
                    let (node, name) = (INodeNo(node_id(CONTROL, TOP)), OsStr::from_bytes(DIR_NAME));
                    // If the buffer is full, the kernel continues from the last cookie.
                    let _full = reply.add(node, AFTER_CONTROL, file_type(FileKind::Directory), name);
                }
                Ok(())
            }
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn readdirplus(
        self: &Arc<Self>,
        req: &Request,
        node: INodeNo,
        cookie: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut begun = None;
        let result = self.node(node).and_then(|node| match node {
            Node::Control(ino) => {
                let control = self.control_for(req)?;
                guard("readdirplus", || {
                    control.readdir(ino, cookie, &mut |e| {
                        let node = node_id(CONTROL, e.ino);
                        !add_listed(&mut reply, node, e.kind, e.name, e.cookie)
                    })
                })
            }
            Node::View { index: LIVE, ino: ROOT_INO, .. } if cookie == AFTER_CONTROL => Ok(()),
            Node::View { index, view, ino } => {
                let mut full = false;
                let _counting = self.link.counting();
                let lifetime = self.lifetime(index);
                guard("readdirplus", || {
                    view.readdir(ino, cookie, true, &mut |e| {
                        let node = node_id(index, e.ino);
                        full |= match &e.attr {
                            // `.` and `..` have no attributes.
                            None => add_listed(&mut reply, node, e.kind, e.name, e.cookie),
                            Some(attr) => {
                                let shown = file_attr(attr, index, Some(&self.ids));
                                let name = OsStr::from_bytes(e.name);
                                let time = &lifetime.time;
                                let full = reply.add(INodeNo(node), e.cookie, name, time, &shown, GENERATION);
                                if index == LIVE && !full {
                                    self.link.count(attr.ino);
                                    self.note_name(&lifetime, ino, e.name, Some(attr));
                                }
                                full
                            }
                        };
                        !full
                    })
                })?;
                if !full && self.lists_control(index, ino) {
                    let node = node_id(CONTROL, TOP);
                    add_listed(&mut reply, node, FileKind::Directory, DIR_NAME, AFTER_CONTROL);
                }
                begun = (cookie == 0).then_some((view, ino));
                Ok(())
            }
        });
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
        if let Some((view, ino)) = begun {
            self.read_ahead(|| view.ahead_of_listing(ino));
        }
    }

    fn lists_control(&self, index: u16, ino: u64) -> bool {
        self.options.ctl_dir == CtlDir::Visible && self.control.is_some() && (index, ino) == (LIVE, ROOT_INO)
    }
}

/// Adds an entry that the kernel lists but looks up again when it is used. Returns true if it did not fit.
fn add_listed(reply: &mut ReplyDirectoryPlus, node: u64, kind: FileKind, name: &[u8], cookie: u64) -> bool {
    let attr = listed_only(node, kind);
    reply.add(INodeNo(node), cookie, OsStr::from_bytes(name), &NEVER, &attr, GENERATION)
}
