//! Telling those who watch files (inotify, fanotify) what a restore changed.
//!
//! The kernel raises an event for a call that goes through the mount, and for nothing else. So after a
//! restore a process of its own makes such calls over what changed: it makes the files that came, removes
//! those that went, sets times. Everything it asks is answered from the state that there is already, and
//! changes nothing: as if it were late. It is known by its number, for as long as it lives.
//!
//! To make a file the kernel looks its name up first, and must hear that it is not there; to remove one, that
//! it is. Both answers are given to that process alone and may not be kept, and the kernel holds the
//! directory's lock from there to the call itself: what others look up meanwhile waits, or is asked anew and
//! answered truly. A name whose inode the kernel holds already is never denied: it would take that for a
//! removal, and undo mounts.

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

/// The process that makes calls for watchers, as the server knows it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Watchers(Arc<Known>);

/// What became of a name, by its directory and itself.
type Names = HashMap<(Ino, Box<[u8]>), Became>;

#[derive(Default)]
struct Task {
    names: Names,
    /// A name in the root that answers EALREADY to the process: so it knows that it is known.
    probe: String,
}

#[derive(Default)]
struct Known {
    /// Its number; 0 when there is none.
    process: AtomicU32,
    /// What it is to find.
    task: RwLock<Task>,
    /// How many names were shown to it that there are not.
    ghosts: AtomicU64,
}

impl Watchers {
    /// From now on the requests of `process`, of one thread, are answered as calls that do what is `told`; a
    /// look-up of `probe` in the root answers EALREADY to it. That must be a name that nobody can have asked
    /// for, since the kernel keeps what is not there. The process must not be waited for before
    /// [`Watchers::end`], for its number to stay its own. False, and nothing is done, while there is another.
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

    /// The process has ended.
    pub fn end(&self) {
        self.0.process.store(0, Ordering::Release);
        *self.0.task.write() = Task::default();
    }

    /// Whether a request is the process's. The kernel tells 0 of processes that it cannot number.
    pub(super) fn sent(&self, req: &Request) -> bool {
        req.pid() != 0 && req.pid() == self.0.process.load(Ordering::Acquire)
    }

    fn became(&self, parent: Ino, name: &[u8]) -> Option<Became> {
        self.0.task.read().names.get(&(parent, Box::from(name))).copied()
    }

    fn is_probe(&self, name: &[u8]) -> bool {
        self.0.task.read().probe.as_bytes() == name
    }

    /// Attributes of something that is not there, under a number that nothing has.
    fn ghost(&self, kind: FileKind) -> Attr {
        let ino = MAX_INO - self.0.ghosts.fetch_add(1, Ordering::Relaxed) % (1 << 40);
        let directory = u32::from(kind == FileKind::Directory);
        Attr {
            ino,
            mode: kind.to_mode() | 0o700,
            nlink: 1 + directory,
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
    /// A look-up by the process. Gives the reply back where it is to be answered as anybody's.
    pub(super) fn lookup_for_watchers(
        &self,
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
        let found = guard("lookup", || view.lookup(dir, name));
        match (became, found) {
            (Became::Come(_), Ok(attr)) if view.references(attr.ino) <= 1 => {
                view.forget(attr.ino, 1);
                reply.error(Errno::ENOENT);
            }
            (Became::Gone(kind), Err(errno)) if errno.code() == libc::ENOENT => {
                let ghost = file_attr(&self.watchers.ghost(kind), CONTROL, None);
                reply.entry_with_ttls(&NEVER, &NEVER, &ghost, GENERATION);
            }
            (_, found) => self.entry(reply, LIVE, found),
        }
        None
    }

    /// The process makes what has come: it gets what is there.
    pub(super) fn create_for_watchers(
        &self,
        parent: INodeNo,
        name: &[u8],
        kind: FileKind,
        reply: ReplyEntry,
    ) {
        let (index, dir) = split(parent.0);
        let view = self.views.live();
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
        self.entry(reply, LIVE, made);
    }

    /// The process removes what has gone: that is right where it has.
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
