//! Opens, on a mount where the kernel reads large files directly from their objects.
//!
//! On other mounts the kernel opens files without asking. Here it asks, and gets the object of a file that is
//! one whole object, once every block of it has been verified. Later disk errors go unnoticed, as with any
//! object that was verified and is kept open. The mount is read-only, so the decision made at a file's first
//! open holds as long as it is open: the kernel refuses to read the same file both ways at once.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, ReplyOpen};
use parking_lot::Mutex;

use super::nodes::split;
use super::{Node, Shared, guard};
use crate::view::View;

/// Handles of an open file that the kernel reads directly, and of any other.
const PASSED: FileHandle = FileHandle(1);
const SERVED: FileHandle = FileHandle(0);

/// How each large file is read, by node.
#[derive(Default)]
pub(crate) struct Passthrough(Mutex<HashMap<u64, How>>);

enum How {
    /// Directly by the kernel; with the number of open handles.
    Passed(BackingId, u64),
    /// Through requests, from the first open to the end of the mount.
    Served,
}

impl Passthrough {
    /// Answers if a decision is known for the node; otherwise returns the reply.
    fn answer(known: &mut HashMap<u64, How>, node: INodeNo, reply: ReplyOpen) -> Option<ReplyOpen> {
        match known.get_mut(&node.0) {
            Some(How::Passed(id, handles)) => {
                *handles += 1;
                reply.opened_passthrough(PASSED, FopenFlags::empty(), id);
            }
            Some(How::Served) => served(reply),
            None => return Some(reply),
        }
        None
    }

    /// Decides how to read a node that is not open.
    fn decide(&self, node: INodeNo, view: &View, reply: ReplyOpen) {
        // If the file is damaged, requests can still read its intact parts.
        let whole = guard("open", || view.whole_object(split(node.0).1)).ok().flatten();
        let mut known = self.0.lock();
        let Some(reply) = Passthrough::answer(&mut known, node, reply) else { return };
        match whole.map(|object| reply.open_backing(object)) {
            Some(Ok(id)) => {
                reply.opened_passthrough(PASSED, FopenFlags::empty(), &id);
                known.insert(node.0, How::Passed(id, 1));
                return;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the kernel refused an object for passthrough");
            }
            None => {}
        }
        known.insert(node.0, How::Served);
        served(reply);
    }

    fn release(&self, node: INodeNo) {
        let mut known = self.0.lock();
        if let Some(How::Passed(_, handles)) = known.get_mut(&node.0) {
            *handles -= 1;
            if *handles == 0 {
                known.remove(&node.0);
            }
        }
    }
}

/// Replies as if the kernel had not asked.
fn served(reply: ReplyOpen) {
    reply.opened(SERVED, FopenFlags::FOPEN_KEEP_CACHE);
}

impl Shared {
    pub(super) fn open(self: &Arc<Self>, node: INodeNo, reply: ReplyOpen) {
        if self.passthrough.is_none() {
            return reply.error(Errno::ENOSYS);
        }
        match self.node(node) {
            Ok(Node::View { view, ino, .. }) if view.is_large(ino) => self.open_large(node, view, reply),
            Ok(_) => served(reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn open_large(self: &Arc<Self>, node: INodeNo, view: Arc<View>, reply: ReplyOpen) {
        let Some(passthrough) = &self.passthrough else { return served(reply) };
        let Some(reply) = Passthrough::answer(&mut passthrough.0.lock(), node, reply) else { return };
        // Reading the whole file may take long.
        let shared = self.clone();
        self.workers.run(move || {
            if let Some(passthrough) = &shared.passthrough {
                passthrough.decide(node, &view, reply);
            }
        });
    }

    pub(super) fn release(&self, node: INodeNo, handle: FileHandle) {
        if let (PASSED, Some(passthrough)) = (handle, &self.passthrough) {
            passthrough.release(node);
        }
    }
}
