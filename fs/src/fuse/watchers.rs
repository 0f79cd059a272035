//! Notifies programs that watch files (inotify, fanotify) of what a restore changed.
//!
//! The kernel raises events only for calls that go through the mount. So after a restore a helper process
//! makes such calls for everything that changed: it creates the files that came, removes those that went, and
//! sets times. Its requests are answered from the restored state and change nothing, as if the changes
//! happened only now. The server knows the process by its number for as long as it lives.
//!
//! To create a file the kernel first looks up its name and must hear that it does not exist; to remove one,
//! that it does. Both answers go to that process alone and may not be cached, and the kernel holds the
//! directory's lock from the look-up to the call itself: look-ups by other processes wait meanwhile, or are
//! sent again and answered truthfully. A name whose inode the kernel holds is never denied: the kernel would
//! take that for a removal, and undo mounts on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use fuser::{Errno, INodeNo, ReplyEntry, Request};
use karapace_store::inode::{FileKind, Ino, MAX_INO, ROOT_INO, Timestamp};
use parking_lot::RwLock;

use super::nodes::{CONTROL, LIVE, split};
use super::reply::{NEVER, file_attr};
use super::{GENERATION, Shared, guard};
use crate::attr::{Attr, Became, Told};
use crate::error::Error;

/// The helper process that makes calls for watchers, as the server knows it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Watchers(Arc<Known>);

/// What became of each name, by directory and name.
type Names = HashMap<(Ino, Box<[u8]>), Became>;

#[derive(Default)]
struct Task {
    names: Names,
    /// A name in the root for which the process gets EALREADY, so that it knows that the server knows it.
    probe: String,
}

#[derive(Default)]
struct Known {
    /// Number of the process; 0 if there is none.
    process: AtomicU32,
    /// What it is expected to do.
    task: RwLock<Task>,
    /// Number of removed names that were shown to it as existing.
    ghosts: AtomicU64,
}

impl Watchers {
    /// Starts answering the requests of `process`, which has one thread, as calls that carry out what is in
    /// `told`; a look-up of `probe` in the root returns EALREADY to it. `probe` must be a name that nobody
    /// can have looked up before, because the kernel caches absent names. The process must not be waited for
    /// before [`Watchers::end`], so that its number is not reused. Returns false, and does nothing, if
    /// another process is active.
    pub fn begin(&self, process: u32, probe: &str, told: &[Told]) -> bool {
        let mut task = self.0.task.write();
        if self.0.process.load(Ordering::Acquire) != 0 {
            return false;
        }
        let names = told.iter().map(|told| ((told.parent, told.name().into()), told.became)).collect();
        *task = Task { names, probe: probe.to_owned() };
        self.0.process.store(process, Ordering::Release);
        true
    }

    /// Call after the process has ended.
    pub fn end(&self) {
        self.0.process.store(0, Ordering::Release);
        *self.0.task.write() = Task::default();
    }

    /// Whether a request came from the process. The kernel sends 0 for processes that it cannot number.
    pub(super) fn sent(&self, req: &Request) -> bool {
        req.pid() != 0 && req.pid() == self.0.process.load(Ordering::Acquire)
    }

    fn became(&self, parent: Ino, name: &[u8]) -> Option<Became> {
        self.0.task.read().names.get(&(parent, Box::from(name))).copied()
    }

    fn is_probe(&self, name: &[u8]) -> bool {
        self.0.task.read().probe.as_bytes() == name
    }

    /// Attributes of a file that does not exist, under a number that no inode has.
    fn ghost(&self, kind: FileKind) -> Attr {
        let ino = MAX_INO - self.0.ghosts.fetch_add(1, Ordering::Relaxed) % (1 << 40);
        let directory = u32::from(kind == FileKind::Directory);
        Attr {
            ino,
            mode: kind.to_mode() | 0o700,
            nlink: 1 + directory,
            linked: false,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
        }
    }
}

impl Shared {
    /// Handles a look-up by the process. Returns the reply if the look-up is to be answered as for any other
    /// process.
    pub(super) fn lookup_for_watchers(
        self: &Arc<Self>,
        parent: INodeNo,
        name: &[u8],
        reply: ReplyEntry,
    ) -> Option<ReplyEntry> {
        let (LIVE, dir) = split(parent.0) else { return Some(reply) };
        if dir == ROOT_INO && self.watchers.is_probe(name) {
            reply.error(Errno::from_i32(libc::EALREADY));
            return None;
        }
        let Some(became) = self.watchers.became(dir, name) else { return Some(reply) };
        let view = self.views.live();
        let lifetime = self.lifetime(LIVE);
        let _counting = self.link.counting();
        let found = guard("lookup", || view.lookup(dir, name));
        match (became, found) {
            (Became::Come(_), Ok(attr)) if !self.links.held_before(view, &self.link, attr.ino) => {
                view.forget(attr.ino, 1);
                reply.error(Errno::ENOENT);
            }
            (Became::Gone(kind), Err(errno)) if errno.code() == libc::ENOENT => {
                let ghost = file_attr(&self.watchers.ghost(kind), CONTROL, None);
                reply.entry_with_ttls(&NEVER, &NEVER, &ghost, GENERATION);
            }
            (_, found) => {
                let found = found.inspect(|attr| self.link.count(attr.ino));
                self.entry(reply, &lifetime, (LIVE, dir, name), found);
            }
        }
        None
    }

    /// The process creates a name that came: replies with the existing inode.
    pub(super) fn create_for_watchers(
        self: &Arc<Self>,
        parent: INodeNo,
        name: &[u8],
        kind: FileKind,
        reply: ReplyEntry,
    ) {
        let (index, dir) = split(parent.0);
        let view = self.views.live();
        let lifetime = self.lifetime(LIVE);
        let _counting = self.link.counting();
        let made = guard("create", || {
            let attr = view.lookup(dir, name)?;
            let fits = index == LIVE
                && matches!(self.watchers.became(dir, name), Some(Became::Come(_)))
                && FileKind::from_mode(attr.mode) == Some(kind);
            if !fits {
                view.forget(attr.ino, 1);
                return Err(Error::Exists);
            }
            Ok(attr)
        });
        let made = made.inspect(|attr| self.link.count(attr.ino));
        self.entry(reply, &lifetime, (LIVE, dir, name), made);
    }

    /// The process removes a name that went: succeeds if the name is gone.
    pub(super) fn remove_for_watchers(&self, parent: INodeNo, name: &[u8]) -> Result<(), Errno> {
        let (index, dir) = split(parent.0);
        let view = self.views.live();
        match guard("remove", || view.lookup(dir, name)) {
            Ok(attr) => {
                view.forget(attr.ino, 1);
                Err(Errno::EBUSY)
            }
            Err(errno) if errno.code() == libc::ENOENT && index == LIVE => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
