//! Directory listings.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request};
use karapace_store::inode::{FileKind, Ino, ROOT_INO};

use super::link::Lifetime;
use super::nodes::{CONTROL, LIVE, PLACEHOLDER, node_id, split};
use super::reply::{NEVER, file_attr, file_type, listed_only};
use super::requests::Outcome;
use super::{CtlDir, GENERATION, Node, Shared, guard};
use crate::control::{DIR_NAME, TOP};
use crate::view::View;

/// Cookie of the control directory, which is listed in the root after everything that is in the view. Cookies
/// of views are smaller. Placeholders follow; theirs are this plus their number.
const AFTER_CONTROL: u64 = 1 << 62;

impl Shared {
    /// How the kernel may treat the listing of a directory that is opened; `None`: all as it does by itself,
    /// for ever. One that does not cache must not keep a listing, for two callers that list at once could
    /// make it keep an old one as new.
    pub(super) fn opendir(&self, node: INodeNo) -> Option<FopenFlags> {
        self.options.shares.then(|| match self.lifetime(split(node.0).0).time {
            NEVER => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        })
    }

    pub(super) fn readdir(&self, req: &Request, node: INodeNo, cookie: u64, mut reply: ReplyDirectory) {
        let result = self.node(node).and_then(|place| match place {
            Node::Control(ino) => {
                let control = self.control_for(req)?;
                guard("readdir", || {
                    control.readdir(ino, cookie, &mut |e| {
                        let name = OsStr::from_bytes(e.name);
                        !reply.add(INodeNo(node_id(CONTROL, e.ino)), e.cookie, file_type(e.kind), name)
                    })
                })
            }
            Node::View { index, view, ino } => {
                let mut full = false;
                guard("readdir", || match cookie {
                    AFTER_CONTROL.. => Ok(()),
                    _ => view.readdir(ino, cookie, false, &mut |e| {
                        if self.is_covered(node, e.name) {
                            return true;
                        }
                        let name = OsStr::from_bytes(e.name);
                        full |= reply.add(INodeNo(node_id(index, e.ino)), e.cookie, file_type(e.kind), name);
                        !full
                    }),
                })?;
                if !full && cookie < AFTER_CONTROL && self.lists_control(index, ino) {
                    let (node, name) = (INodeNo(node_id(CONTROL, TOP)), OsStr::from_bytes(DIR_NAME));
                    // If the buffer is full, the kernel continues from the last cookie.
                    full = reply.add(node, AFTER_CONTROL, file_type(FileKind::Directory), name);
                }
                if !full {
                    self.list_placeholders(node, cookie, &mut add_to(&mut reply));
                }
                Ok(())
            }
            Node::Placeholder(number) => self.list_placeholder(node, number, cookie, &mut add_to(&mut reply)),
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
        // Held until the reply is sent.
        let lifetime = self.lifetime(split(node.0).0);
        let mut begun = None;
        let result = self.node(node).and_then(|place| match place {
            Node::Control(ino) => {
                let control = self.control_for(req)?;
                guard("readdirplus", || {
                    control.readdir(ino, cookie, &mut |e| {
                        let node = node_id(CONTROL, e.ino);
                        !add_listed(&mut reply, node, e.kind, e.name, e.cookie)
                    })
                })
            }
            Node::View { index, view, ino } => {
                let full = match cookie {
                    AFTER_CONTROL.. => false,
                    _ => {
                        self.readdirplus_of_view(node, (index, &view, ino), cookie, &lifetime, &mut reply)?
                    }
                };
                if !full {
                    self.list_placeholders(node, cookie, &mut |node, cookie, kind, name| {
                        add_listed(&mut reply, node, kind, name, cookie)
                    });
                }
                begun = (cookie == 0).then_some((view, ino));
                Ok(())
            }
            Node::Placeholder(number) => {
                self.list_placeholder(node, number, cookie, &mut |node, cookie, kind, name| {
                    add_listed(&mut reply, node, kind, name, cookie)
                })
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

    /// Lists what is in the view, and the control directory. Returns whether the reply is full.
    fn readdirplus_of_view(
        self: &Arc<Self>,
        node: INodeNo,
        (index, view, ino): (u16, &View, Ino),
        cookie: u64,
        lifetime: &Lifetime<'_>,
        reply: &mut ReplyDirectoryPlus,
    ) -> Outcome<bool> {
        let (mut full, mut covered) = (false, Vec::new());
        let _counting = self.link.counting();
        let listed = guard("readdirplus", || {
            view.readdir(ino, cookie, true, &mut |e| {
                let entry = node_id(index, e.ino);
                full |= match &e.attr {
                    // `.` and `..` have no attributes.
                    None => add_listed(reply, entry, e.kind, e.name, e.cookie),
                    Some(attr) if self.is_covered(node, e.name) => {
                        covered.push(attr.ino);
                        false
                    }
                    Some(attr) => {
                        let shown = file_attr(attr, index, Some(&self.ids));
                        let name = OsStr::from_bytes(e.name);
                        let time = self.attr_time(lifetime, shown.ino);
                        let full = reply.add(INodeNo(entry), e.cookie, name, &time, &shown, GENERATION);
                        if index == LIVE && !full {
                            self.link.count(attr.ino);
                            self.note_name(lifetime, ino, e.name, Some(attr));
                        }
                        full
                    }
                };
                !full
            })
        });
        covered.into_iter().for_each(|ino| view.forget(ino, 1));
        listed?;
        if !full && self.lists_control(index, ino) {
            let control = node_id(CONTROL, TOP);
            full = add_listed(reply, control, FileKind::Directory, DIR_NAME, AFTER_CONTROL);
        }
        Ok(full)
    }

    fn lists_control(&self, index: u16, ino: u64) -> bool {
        self.options.ctl_dir == CtlDir::Visible && self.control.is_some() && (index, ino) == (LIVE, ROOT_INO)
    }

    /// Whether a placeholder has the name in this directory of a view.
    fn is_covered(&self, directory: INodeNo, name: &[u8]) -> bool {
        self.link.placeholders.find(directory.0, name).is_some()
    }

    /// Lists the placeholders in a directory. `add` returns true if an entry did not fit.
    fn list_placeholders(&self, directory: INodeNo, cookie: u64, add: Add<'_>) {
        for entry in self.link.placeholders.list(directory.0, cookie.saturating_sub(AFTER_CONTROL)) {
            let node = node_id(PLACEHOLDER, entry.number);
            if add(node, AFTER_CONTROL + entry.number, entry.kind, &entry.name) {
                break;
            }
        }
    }

    /// Lists a directory that is a placeholder itself.
    fn list_placeholder(&self, node: INodeNo, number: Ino, cookie: u64, add: Add<'_>) -> Outcome<()> {
        let dots = [(1, &b"."[..], node.0), (2, b"..", self.link.placeholders.parent(number)?)];
        for (own, name, node) in dots.into_iter().filter(|(own, ..)| cookie < *own) {
            if add(node, own, FileKind::Directory, name) {
                return Ok(());
            }
        }
        self.list_placeholders(node, cookie, add);
        Ok(())
    }
}

/// Adds an entry to a listing: its node, cookie, type and name.
type Add<'a> = &'a mut dyn FnMut(u64, u64, FileKind, &[u8]) -> bool;

fn add_to(reply: &mut ReplyDirectory) -> impl FnMut(u64, u64, FileKind, &[u8]) -> bool {
    |node, cookie, kind, name| reply.add(INodeNo(node), cookie, file_type(kind), OsStr::from_bytes(name))
}

/// Adds an entry that the kernel lists but looks up again when it is used. Returns true if it did not fit.
fn add_listed(reply: &mut ReplyDirectoryPlus, node: u64, kind: FileKind, name: &[u8], cookie: u64) -> bool {
    let attr = listed_only(node, kind);
    reply.add(INodeNo(node), cookie, OsStr::from_bytes(name), &NEVER, &attr, GENERATION)
}
