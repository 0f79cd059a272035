//! Data in mapped pages that the kernel has not written back yet.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{INodeNo, ReplyAttr};
use karapace_store::inode::Ino;

use super::nodes::LIVE;
use super::notify::is_unknown;
use super::reply::{NEVER, file_attr};
use super::{Shared, guard};
use crate::attr::SetAttr;
use crate::error::{Error, Result};
use crate::view::View;

impl Shared {
    /// Runs `work`, which waits for other requests to be answered: on this thread if that leaves a request
    /// thread free, which is faster; otherwise on a `seekers` thread.
    pub(super) fn with_request_threads_free(self: &Arc<Self>, work: impl FnOnce(&Shared) + Send + 'static) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) + 1 < self.options.threads {
            work(self);
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let shared = self.clone();
        self.seekers.run(move || work(&shared));
    }

    /// Makes the kernel write back and drop its pages in this byte range of a file (all of it if the range is
    /// empty); see [`Shared::with_request_threads_free`].
    pub(super) fn write_back(&self, node: INodeNo, range: &Range<u64>) -> Result<()> {
        let kernel = self.link.kernel.get().ok_or(Error::Stale)?;
        match kernel.write_back(node.0, range) {
            Err(errno) if !is_unknown(errno) => Err(std::io::Error::from(errno).into()),
            _ => Ok(()),
        }
    }

    /// Makes the kernel drop its pages of a file, in which something is that was written elsewhere. `number`:
    /// of that among the [rewrites](super::rewrites::Rewrites), which ends.
    pub(super) fn drop_pages_later(self: &Arc<Self>, node: INodeNo, ino: Ino, number: u64) {
        let shared = self.clone();
        self.seekers.run(move || {
            if let Err(error) = shared.write_back(node, &(0..0)) {
                tracing::error!(%error, "a kernel may go on showing what it has cached");
            }
            shared.link.rewrites.end(ino, number);
        });
    }

    /// The kernel writes back a page, so it may be taking a notification about the file.
    pub(super) fn note_writes_back(&self, node: INodeNo) {
        if let Some(kernel) = self.link.kernel.get() {
            kernel.note_writes_back(node.0);
        }
    }

    /// Whether pages changed through a mapping must be written back before this request: written later, they
    /// would overwrite the modification time being set. Not if the size is set: the kernel writes nothing
    /// back until that is answered.
    pub(super) fn wants_pages_first(&self, node: INodeNo, set: &SetAttr) -> Option<(Arc<View>, Ino)> {
        if set.mtime.is_none() || set.size.is_some() || set.kill_priv {
            return None;
        }
        let (index, view, ino) = self.view(node).ok()?;
        let found = index == LIVE && !view.is_read_only() && view.take_mapped(ino).is_ok_and(|mapped| mapped);
        found.then_some((view, ino))
    }

    /// Answers a request for the attributes of a file that another connection has changed, once this kernel
    /// has dropped its pages of it. `change`: its number.
    pub(super) fn getattr_after_drop(
        self: &Arc<Self>,
        node: INodeNo,
        (view, ino, change): (Arc<View>, Ino, u64),
        reply: ReplyAttr,
    ) {
        self.with_request_threads_free(move |shared| {
            let dropped = guard("getattr", || shared.write_back(node, &(0..0)));
            let lifetime = shared.lifetime(LIVE);
            let result = dropped.and_then(|()| {
                shared.link.outdated.dropped(ino, change);
                guard("getattr", || view.getattr(ino))
            });
            match result {
                Ok(attr) => {
                    let shown = file_attr(&attr, LIVE, Some(&shared.ids));
                    reply.attr(&shared.attr_time(&lifetime, shown.ino), &shown);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    pub(super) fn setattr_after_pages(
        self: &Arc<Self>,
        node: INodeNo,
        (view, ino): (Arc<View>, Ino),
        set: SetAttr,
        reply: ReplyAttr,
    ) {
        self.with_request_threads_free(move |shared| {
            let written = guard("setattr", || shared.write_back(node, &(0..0)));
            let lifetime = shared.lifetime(LIVE);
            let result = written.and_then(|()| {
                shared.change_data("setattr", (LIVE, &view), Some((ino, 0..0)), || {
                    Ok((view.setattr(ino, &set)?, 0..0))
                })
            });
            match result {
                Ok(attr) => {
                    // See Shared::setattr.
                    let time = if shared.links.several() { NEVER } else { lifetime.time };
                    reply.attr(&time, &file_attr(&attr, LIVE, Some(&shared.ids)));
                }
                Err(errno) => reply.error(errno),
            }
        });
    }
}
