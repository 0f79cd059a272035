//! Inodes of which a kernel may still show what was before a change that came through another connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use karapace_store::inode::Ino;
use parking_lot::Mutex;

use super::reply::NEVER;

/// How long a caller may take to get the answer to its request. Until then, a name that it gives becomes
/// valid again even if it was expired after the answer.
pub(super) const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// The inodes that others have changed, for one connection.
#[derive(Default)]
pub(super) struct Outdated {
    /// Whether there are any, so that most requests need no lock.
    any: AtomicBool,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Changes {
    count: u64,
    inodes: HashMap<Ino, Change>,
}

/// The last change of an inode.
struct Change {
    number: u64,
    /// The kernel may have pages from before.
    pages: bool,
    /// When attributes from after the change were first given.
    answered: Option<Instant>,
}

impl Outdated {
    /// Notes a change. `pages`: the kernel has not been told to drop its pages.
    pub fn add(&self, ino: Ino, pages: bool) {
        let mut changes = self.changes.lock();
        changes.count += 1;
        let number = changes.count;
        let pages = pages || changes.inodes.get(&ino).is_some_and(|before| before.pages);
        changes.inodes.insert(ino, Change { number, pages, answered: None });
        self.any.store(true, Ordering::SeqCst);
    }

    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// The change that the kernel's pages of an inode are older than, if there is one.
    pub fn pages_before(&self, ino: Ino) -> Option<u64> {
        if !self.any() {
            return None;
        }
        self.changes.lock().inodes.get(&ino).filter(|change| change.pages).map(|change| change.number)
    }

    /// The kernel has dropped its pages of an inode since that change.
    pub fn dropped(&self, ino: Ino, number: u64) {
        if let Some(change) = self.changes.lock().inodes.get_mut(&ino).filter(|c| c.number == number) {
            change.pages = false;
        }
    }

    /// How long the kernel may keep an inode's attributes that are given now, if otherwise as long as `time`.
    ///
    /// Not at all the first time after a change: the kernel takes attributes for valid before it has stored
    /// all of them, so another caller would get the old ones. When they are given again, the old ones are
    /// gone.
    pub fn time(&self, ino: Ino, time: Duration) -> Duration {
        if !self.any() {
            return time;
        }
        let mut changes = self.changes.lock();
        let Some(change) = changes.inodes.get_mut(&ino) else { return time };
        if change.pages {
            return NEVER;
        }
        let is_stored = change.answered.get_or_insert_with(Instant::now).elapsed() > ON_ITS_WAY;
        if is_stored || time == NEVER {
            changes.inodes.remove(&ino);
            self.any.store(!changes.inodes.is_empty(), Ordering::SeqCst);
        }
        if is_stored { time } else { NEVER }
    }

    /// The kernel no longer holds an inode.
    pub fn forget(&self, ino: Ino) {
        let mut changes = self.changes.lock();
        changes.inodes.remove(&ino);
        self.any.store(!changes.inodes.is_empty(), Ordering::SeqCst);
    }
}
