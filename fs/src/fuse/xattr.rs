//! Extended attributes: translates ids in ACLs, and hides names from callers that may not see them.

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use karapace_store::import::upper::SESSION_FILE;
use karapace_store::inode::{FileKind, Ino};

use super::idmap::IdMap;
use super::nodes::LIVE;
use super::requests::{Outcome, done};
use super::{Node, Shared, guard};

impl Shared {
    pub(super) fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &[u8],
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let result = self.view(node).and_then(|(index, view, ino)| {
            if !IdMap::has_ids(name) {
                return self.change("setxattr", (index, &view), || view.setxattr(ino, name, value, flags));
            }
            let stored = self.ids.stored_acl(value);
            self.change("setxattr", (index, &view), || {
                if self.kernel_permissions() && IdMap::is_access_acl(name) {
                    // The kernel's flag that asks for this is in a field that fuser 0.18 does not expose
                    // (FUSE_SETXATTR_EXT).
                    self.drop_any_foreign_set_gid(req, &view, ino)?;
                }
                view.setxattr(ino, name, &stored, flags)?;
                if !self.kernel_permissions() && IdMap::is_access_acl(name) {
                    // On such a mount the kernel does not know that this attribute is an ACL, and would keep
                    // showing the cached mode.
                    if let Some(Err(error)) =
                        self.link.kernel.get().map(|kernel| kernel.forget_attributes(node.0))
                    {
                        tracing::warn!(%error, "the kernel may show an old mode of inode {ino} for a while");
                    }
                }
                Ok(())
            })
        });
        done(reply, result);
    }

    pub(super) fn getxattr(&self, node: INodeNo, name: &[u8], size: u32, reply: ReplyXattr) {
        let result = self.node(node).and_then(|node| match node {
            Node::View { view, ino, .. } => {
                let value = guard("getxattr", || view.getxattr(ino, name))?;
                Ok(if IdMap::has_ids(name) { self.ids.shown_acl(&value) } else { value })
            }
            Node::Placeholder(number) if name == SESSION_FILE && self.marks(number)? => Ok(Vec::new()),
            Node::Control(_) | Node::Placeholder(_) => Err(Errno::ENODATA),
        });
        sized(reply, size, result);
    }

    pub(super) fn listxattr(&self, req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self.node(node).and_then(|node| match node {
            Node::View { view, ino, .. } => {
                let trusted = self.ids.shows_trusted(Shared::caller_uid(req));
                guard("listxattr", || view.listxattr(ino, trusted))
            }
            Node::Placeholder(number) if self.marks(number)? => Ok([SESSION_FILE, b"\0"].concat()),
            Node::Control(_) | Node::Placeholder(_) => Ok(Vec::new()),
        });
        sized(reply, size, result);
    }

    /// Whether the placeholder shows that it is a file of the session's own: below an overlay, where what
    /// overlayfs makes of it must be told from files of the environment.
    fn marks(&self, number: Ino) -> Outcome<bool> {
        let attr = self.link.placeholders.attr(number)?;
        let is_file = FileKind::from_mode(attr.mode) == Some(FileKind::Regular);
        Ok(is_file && self.views.get(LIVE).is_ok_and(|view| view.is_read_only()))
    }

    pub(super) fn removexattr(&self, node: INodeNo, name: &[u8], reply: ReplyEmpty) {
        let result = self.view(node).and_then(|(index, view, ino)| {
            self.change("removexattr", (index, &view), || view.removexattr(ino, name))
        });
        done(reply, result);
    }
}

/// Replies with a value for a buffer of `size` bytes, or with its length if `size` is 0.
fn sized(reply: ReplyXattr, size: u32, result: Outcome<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}
