//! One kernel connection of the live view.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use karapace_store::id::ObjectId;
use karapace_store::inode::Ino;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::notify::Kernel;
use super::outdated::{ON_ITS_WAY, Outdated};
use super::placeholders::Placeholders;
use super::reply::{FOREVER, NEVER};
use super::rewrites::Rewrites;
use crate::attr::{Attr, Invalidation};

/// How many names are remembered before all of them are expired.
const MOST_NAMES: usize = 1 << 17;

/// One kernel connection of the live view.
pub(crate) struct Link {
    /// Its number among those of the view, for locks.
    pub number: u64,
    /// Whether the kernel tells processes by their numbers here.
    pub our_processes: bool,
    /// Sends notifications; set before the first request is served.
    pub kernel: OnceLock<Kernel>,
    /// Whether this kernel may cache. Held shared while an answer is sent that it may keep.
    pub(super) caches: RwLock<bool>,
    /// Whether it serves sessions, and so caches rather than one that does not.
    pub(super) for_sessions: bool,
    /// The references to inodes that this kernel holds. `None` for the first connection, which holds those
    /// that no other does.
    pub(super) references: Option<References>,
    /// Names that this kernel may keep and that no inode in the table tells: absent ones, and those of linked
    /// inodes.
    names: Mutex<Names>,
    /// Such names that are being expired because there were too many.
    expiring: Mutex<Names>,
    /// The mount points that only this kernel knows.
    pub placeholders: Placeholders,
    /// When this kernel was last given a name that it may keep, in milliseconds since `start`.
    given: AtomicU64,
    start: Instant,
    /// What others have changed.
    pub(super) outdated: Outdated,
    /// What others have just written to files of which this kernel may have pages.
    pub(super) rewrites: Rewrites,
    /// Roots of the snapshots that are looked at through this connection.
    pub(super) snapshots: Mutex<Vec<ObjectId>>,
    /// Aborts the connection.
    pub abort: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
pub(super) struct References {
    pub counts: Mutex<HashMap<Ino, u64>>,
    /// Held shared from before the view counts a reference, or drops one, until it is counted here.
    pub agrees: RwLock<()>,
}

type Names = HashSet<(Ino, Box<[u8]>)>;

/// How long a kernel may keep an answer. That remains so while this lives.
pub(crate) struct Lifetime<'a> {
    pub time: Duration,
    _caches: Option<RwLockReadGuard<'a, bool>>,
}

impl Lifetime<'_> {
    /// For what never changes.
    pub fn forever() -> Lifetime<'static> {
        Lifetime { time: FOREVER, _caches: None }
    }
}

impl Link {
    /// A connection that does not cache yet. `is_first`: no other is there that counts references.
    pub(super) fn new(number: u64, our_processes: bool, for_sessions: bool, is_first: bool) -> Link {
        Link {
            number,
            our_processes,
            kernel: OnceLock::new(),
            caches: RwLock::new(false),
            for_sessions,
            references: (!is_first).then(References::default),
            names: Mutex::default(),
            expiring: Mutex::default(),
            placeholders: Placeholders::default(),
            given: AtomicU64::new(0),
            start: Instant::now(),
            outdated: Outdated::default(),
            rewrites: Rewrites::default(),
            snapshots: Mutex::default(),
            abort: OnceLock::new(),
        }
    }

    /// How long this kernel may keep what it is told of the live view.
    pub fn lifetime(&self) -> Lifetime<'_> {
        let caches = self.caches.read();
        Lifetime { time: if *caches { FOREVER } else { NEVER }, _caches: Some(caches) }
    }

    /// To be held while references are taken or dropped, in the view and here. A change is not told
    /// meanwhile.
    pub fn counting(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.references.as_ref().map(|references| references.agrees.read())
    }

    /// Counts a reference to an inode, before the answer that gives it.
    pub fn count(&self, ino: Ino) {
        if let Some(references) = &self.references {
            *references.counts.lock().entry(ino).or_default() += 1;
        }
    }

    /// Counts `n` references less.
    pub fn uncount(&self, ino: Ino, n: u64) {
        let Some(references) = &self.references else { return };
        let mut counts = references.counts.lock();
        if let Some(count) = counts.get_mut(&ino) {
            *count = count.saturating_sub(n);
            if *count == 0 {
                counts.remove(&ino);
            }
        }
    }

    /// The references to an inode, if they are counted here.
    pub(super) fn counted(&self, ino: Ino) -> u64 {
        self.references.as_ref().and_then(|held| held.counts.lock().get(&ino).copied()).unwrap_or(0)
    }

    /// Remembers a name that this kernel may keep, if nothing else tells of it: an absent one, or one of a
    /// linked inode. Returns whether there are too many to remember, and [`Link::expire_names`] must be
    /// called.
    #[must_use]
    pub fn note_name(&self, parent: Ino, name: &[u8], found: Option<&Attr>) -> bool {
        if found.is_some_and(|attr| !attr.linked) {
            return false;
        }
        let mut names = self.names.lock();
        names.insert((parent, name.into()));
        let mut expiring = self.expiring.lock();
        let are_many = names.len() > MOST_NAMES && expiring.is_empty();
        if are_many {
            *expiring = mem::take(&mut *names);
        }
        are_many
    }

    /// Makes this kernel look up again the names that were too many to remember. Not on a request thread: it
    /// waits for what is going on in the directories.
    pub fn expire_names(&self) {
        thread::sleep(ON_ITS_WAY);
        let names = self.expiring.lock().clone();
        self.send(&entries(names).collect::<Vec<_>>());
        self.expiring.lock().clear();
    }

    /// The names that are remembered, which are not any more.
    pub(super) fn take_names(&self) -> impl Iterator<Item = Invalidation> {
        let names = mem::take(&mut *self.names.lock());
        let expiring = self.expiring.lock().clone();
        entries(names).chain(entries(expiring))
    }

    /// Notes that an answer gives a name that this kernel may keep.
    pub fn note_given(&self) {
        self.given.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until no answer that gives a name is on its way any more. Returns whether one may have been.
    pub(super) fn wait_for_names(&self) -> bool {
        let given = Duration::from_millis(self.given.load(Ordering::Relaxed));
        let wait = (given + ON_ITS_WAY).saturating_sub(self.start.elapsed());
        thread::sleep(wait);
        !wait.is_zero()
    }

    /// Whether the connection has ended, and nothing need be told to its kernel.
    pub(super) fn is_gone(&self) -> bool {
        self.kernel.get().is_some_and(Kernel::is_gone)
    }

    pub(super) fn send(&self, invalidations: &[Invalidation]) {
        if let Some(Err(error)) = self.kernel.get().map(|kernel| kernel.send(invalidations)) {
            tracing::error!(%error, "a kernel may go on showing what it has cached");
        }
    }
}

fn entries(names: Names) -> impl Iterator<Item = Invalidation> {
    names.into_iter().map(|(parent, name)| Invalidation::Entry { parent, name })
}
