//! Opens, on a mount where the kernel reads large files directly from their objects.
//!
//! On other mounts the kernel opens files without asking, unless locks are shared. Here it asks, and gets the
//! object of a file that is one whole object, once every block of it has been verified. Later disk errors go
//! unnoticed, as with any object that was verified and is kept open. The mount is read-only, so the decision
//! made at a file's first open holds as long as it is open: the kernel refuses to read the same file both
//! ways at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, ReplyOpen};
use parking_lot::Mutex;

use super::nodes::split;
use super::{Node, Shared, guard};
use crate::view::View;

/// The bit in the handle of an open file that the kernel reads directly.
const PASSED: u64 = 1;

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
    fn answer(
        known: &mut HashMap<u64, How>,
        node: INodeNo,
        handle: u64,
        reply: ReplyOpen,
    ) -> Option<ReplyOpen> {
        match known.get_mut(&node.0) {
            Some(How::Passed(id, handles)) => {
                *handles += 1;
                reply.opened_passthrough(FileHandle(handle | PASSED), FopenFlags::empty(), id);
            }
            Some(How::Served) => served(handle, reply),
            None => return Some(reply),
        }
        None
    }

    /// Decides how to read a node that is not open.
    fn decide(&self, node: INodeNo, view: &View, handle: u64, reply: ReplyOpen) {
        // If the file is damaged, requests can still read its intact parts.
        let whole = guard("open", || view.whole_object(split(node.0).1)).ok().flatten();
        let mut known = self.0.lock();
        let Some(reply) = Passthrough::answer(&mut known, node, handle, reply) else { return };
        match whole.map(|object| reply.open_backing(object)) {
            Some(Ok(id)) => {
                reply.opened_passthrough(FileHandle(handle | PASSED), FopenFlags::empty(), &id);
                known.insert(node.0, How::Passed(id, 1));
                return;
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "the kernel refused an object for passthrough");
            }
            None => {}
        }
        known.insert(node.0, How::Served);
        served(handle, reply);
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
fn served(handle: u64, reply: ReplyOpen) {
    reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
}

impl Shared {
    pub(super) fn open(self: &Arc<Self>, node: INodeNo, reply: ReplyOpen) {
        if self.passthrough.is_none() && !self.shares_locks() {
            return reply.error(Errno::ENOSYS);
        }
        let handle = self.next_handle();
        match self.node(node) {
            Ok(Node::View { view, ino, .. }) if self.passthrough.is_some() && view.is_large(ino) => {
                self.open_large(node, view, handle, reply);
            }
            Ok(_) => served(handle, reply),
            Err(errno) => reply.error(errno),
        }
    }

    /// A handle for an open file, of which the lowest bit is free. It distinguishes open files if their locks
    /// are kept here.
    fn next_handle(&self) -> u64 {
        if self.shares_locks() { self.handles.fetch_add(2, Ordering::Relaxed) } else { 0 }
    }

    fn open_large(self: &Arc<Self>, node: INodeNo, view: Arc<View>, handle: u64, reply: ReplyOpen) {
        let Some(passthrough) = &self.passthrough else { return served(handle, reply) };
        let Some(reply) = Passthrough::answer(&mut passthrough.0.lock(), node, handle, reply) else { return };
        // Reading the whole file may take long.
        let shared = self.clone();
        self.workers.run(move || {
            if let Some(passthrough) = &shared.passthrough {
                passthrough.decide(node, &view, handle, reply);
            }
        });
    }

    pub(super) fn release(&self, node: INodeNo, handle: FileHandle) {
        if let (PASSED, Some(passthrough)) = (handle.0 & PASSED, &self.passthrough) {
            passthrough.release(node);
        }
        self.release_locks(node, handle);
    }
}
