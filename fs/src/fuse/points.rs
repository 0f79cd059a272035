//! Mount points that the environment lacks, and the processes that make them.
//!
//! Process 1 of an inside makes the directories and files that it mounts on, if they are missing. What it
//! makes is a placeholder and not in the view: it exists for the kernel connection through which it was made,
//! and neither for the others nor for `diff`, a commit or the disk. So a session leaves nothing behind,
//! however it ends, and needs no view that can be written to.
//!
//! If process 1 writes to such a file and renames it, the file becomes one of the session's own: it hides
//! what the view has under that name, its content is in memory, and those inside may change it. Who removes
//! it, or renames another over it, does that to the name in the view.
//!
//! A mount point cannot be changed, and its name not be replaced: a different answer to a look-up makes the
//! kernel unmount what is mounted on it. A placeholder also hides what comes into the view under its name
//! through another connection. All of them are dropped when no process that made some lives any more.
//!
//! Lock order: `Makers::sweeping`, `Makers::known`, `Links::all`, `Placeholders::table`. The kernel is told
//! with only `Makers::sweeping` held.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Errno, INodeNo, ReplyEntry, Request};
use karapace_store::inode::{FileKind, Ino};
use karapace_store::wait;
use nix::poll::PollFlags;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::links::Links;
use super::nodes::{LIVE, PLACEHOLDER, node_id};
use super::reply::{FOREVER, NEVER, file_attr};
use super::requests::Outcome;
use super::{GENERATION, Node, Shared, guard};
use crate::attr::Attr;
use crate::view::View;

/// The processes whose mount points are placeholders, and how they begin and end. Cheap to clone.
#[derive(Clone)]
pub struct MountPoints {
    makers: Arc<Makers>,
    links: Arc<Links>,
}

#[derive(Default)]
struct Makers {
    /// One process begins, or placeholders are dropped, at a time.
    sweeping: Mutex<()>,
    known: RwLock<Vec<Maker>>,
}

/// A process that makes mount points, with one thread.
struct Maker {
    /// Its number, as the kernel tells it to this process.
    number: u32,
    /// Tells that the process has ended, even if its number is in use again.
    process: OwnedFd,
}

impl MountPoints {
    pub(crate) fn new(links: Arc<Links>) -> MountPoints {
        MountPoints { makers: Arc::default(), links }
    }

    /// From now on, what the process of the pidfd `process` makes with mkdir(2) and creat(2) is a
    /// placeholder. They are dropped when the process has ended, and with it all others that made some.
    ///
    /// # Errors
    /// If the process has ended or cannot be seen from here, or no thread can be started to wait for it.
    pub fn begin(&self, process: OwnedFd) -> io::Result<()> {
        self.sweep();
        let _one_at_a_time = self.makers.sweeping.lock();
        let number = number(&process)?;
        let (points, waited_for) = (self.clone(), process.try_clone()?);
        thread::Builder::new().name("karapace-points".to_owned()).spawn(move || {
            has_ended(&waited_for, Duration::MAX);
            points.sweep();
        })?;
        self.makers.known.write().push(Maker { number, process });
        Ok(())
    }

    /// Drops all placeholders, unless a process that made some still lives. The kernels look their names up
    /// again afterwards. Waits for operations in progress in their directories, so call it without a lock.
    pub fn sweep(&self) {
        let _one_at_a_time = self.makers.sweeping.lock();
        let mut known = self.makers.known.write();
        known.retain(|maker| !has_ended(&maker.process, Duration::ZERO));
        if !known.is_empty() {
            return;
        }
        let dropped: Vec<_> =
            self.links.all().into_iter().map(|link| (link.placeholders.take(), link)).collect();
        drop(known);
        for (stale, link) in dropped {
            link.send(&stale);
        }
    }

    /// While the result lives, a request is one of a process that makes mount points. `None` if it is not.
    fn made_by(&self, req: &Request) -> Option<RwLockReadGuard<'_, Vec<Maker>>> {
        let known = self.makers.known.read();
        // The kernel sends 0 for processes that it cannot number.
        let is_one = req.pid() != 0
            && known
                .iter()
                .any(|maker| maker.number == req.pid() && !has_ended(&maker.process, Duration::ZERO));
        is_one.then_some(known)
    }
}

/// The number of the process of a pidfd, as seen from this process's namespace.
fn number(process: &OwnedFd) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:")).map(|number| number.trim().parse());
    match number {
        Some(Ok(number @ 1..)) => Ok(number),
        _ => Err(io::Error::other("the process has ended, or this process cannot see it")),
    }
}

fn has_ended(process: &OwnedFd, patience: Duration) -> bool {
    wait::for_event(process.as_fd(), PollFlags::POLLIN, patience).unwrap_or(false)
}

impl Shared {
    /// Replies to a look-up, or the creation, of a placeholder. The kernel may keep the name, which it is
    /// told of when the placeholder is dropped. It asks for the attributes each time: if it took the name for
    /// the answer to an earlier look-up after that, it finds out.
    pub(super) fn placeholder_entry(&self, reply: ReplyEntry, attr: &Attr) {
        let attr = file_attr(attr, PLACEHOLDER, Some(&self.ids));
        reply.entry_with_ttls(&NEVER, &FOREVER, &attr, GENERATION);
    }

    /// Handles a creation by a process that makes mount points. Returns the reply if the creation is to be
    /// answered as for any other process.
    pub(super) fn make_placeholder(
        &self,
        req: &Request,
        (parent, name): (INodeNo, &[u8]),
        kind: FileKind,
        reply: ReplyEntry,
    ) -> Option<ReplyEntry> {
        let is_plain = matches!(kind, FileKind::Directory | FileKind::Regular);
        let Some(_lives) = self.mount_points.made_by(req).filter(|_| is_plain) else { return Some(reply) };
        match self.placed(parent, name, kind) {
            Ok(attr) => self.placeholder_entry(reply, &attr),
            Err(errno) => reply.error(errno),
        }
        None
    }

    fn placed(&self, parent: INodeNo, name: &[u8], kind: FileKind) -> Outcome<Attr> {
        if self.is_reserved(parent, name) {
            return Err(Errno::EEXIST);
        }
        match self.node(parent)? {
            Node::View { index: LIVE, view, ino } => {
                let _counting = self.link.counting();
                match guard("lookup", || view.lookup(ino, name)) {
                    Ok(attr) => {
                        view.forget(attr.ino, 1);
                        return Err(Errno::EEXIST);
                    }
                    Err(errno) if errno.code() == libc::ENOENT => {}
                    Err(errno) => return Err(errno),
                }
            }
            Node::Placeholder(_) => {}
            Node::View { .. } | Node::Control(_) => return Err(Errno::EROFS),
        }
        self.link.placeholders.add(parent.0, name, kind)
    }

    /// Refuses to remove or to replace a mount point. Returns whether the name is that of a file of the
    /// session's own, which loses the name if the same succeeds in the view.
    pub(super) fn leave_point(&self, parent: INodeNo, name: &[u8]) -> Outcome<bool> {
        match self.link.placeholders.is_own(parent.0, name) {
            Some(false) => Err(Errno::EBUSY),
            own => Ok(own.is_some()),
        }
    }

    /// Handles the removal of a file of the session's own.
    pub(super) fn remove_own(&self, req: &Request, parent: INodeNo, name: &[u8]) -> Outcome<()> {
        // A process that makes some tidies up.
        if self.mount_points.made_by(req).is_none() {
            let (index, view, ino) = self.view(parent)?;
            match self.change("unlink", (index, &view), || view.unlink(ino, name)) {
                Err(errno) if errno.code() == libc::ENOENT => {}
                removed => removed?,
            }
        }
        self.link.placeholders.remove(parent.0, name);
        Ok(())
    }

    /// Handles a renaming by a process that makes mount points. `None` if it is to be answered as for any
    /// other.
    pub(super) fn rename_own(
        &self,
        req: &Request,
        (parent, name): (INodeNo, &[u8]),
        (newparent, newname): (INodeNo, &[u8]),
    ) -> Option<Outcome<()>> {
        self.link.placeholders.is_own(parent.0, name)?;
        let _lives = self.mount_points.made_by(req)?;
        Some(self.node(newparent).and_then(|place| match place {
            Node::View { index: LIVE, .. } => {
                self.link.placeholders.rename((parent.0, name), (newparent.0, newname))
            }
            _ => Err(Errno::EROFS),
        }))
    }

    /// Whether the caller makes mount points: what it writes to becomes a file of the session's own.
    pub(super) fn makes_points(&self, req: &Request) -> bool {
        self.mount_points.made_by(req).is_some()
    }

    /// Refuses to remove or to replace a directory of the live view that holds a placeholder.
    pub(super) fn leave_holder(&self, (index, view, parent): (u16, &View, Ino), name: &[u8]) -> Outcome<()> {
        if index != LIVE || self.link.placeholders.is_empty() {
            return Ok(());
        }
        let _counting = self.link.counting();
        // Whatever else is wrong with the name, the operation itself reports.
        let Ok(attr) = guard("lookup", || view.lookup(parent, name)) else { return Ok(()) };
        view.forget(attr.ino, 1);
        if self.link.placeholders.are_in(node_id(LIVE, attr.ino)) { Err(Errno::ENOTEMPTY) } else { Ok(()) }
    }
}
