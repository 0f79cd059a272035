//! The kernel connections of one view: what each kernel may keep, and how one learns what came through
//! another.
//!
//! At most one connection *caches*: its kernel keeps names, attributes, listings and data until it is told
//! otherwise. The others get answers that expire at once, and no absent names. So only a change that comes
//! through a connection that does not cache has to be told, and only to the one that does: the waits for
//! notifications form no circle. A change of data is told before it is made, which brings in what the other
//! kernel holds in mapped pages, and again before it is answered, as every change is.
//!
//! A name that changed is dropped, with what is mounted on it, and not only expired: an answer on its way, given
//! before the change, would make it valid again.
//!
//! A kernel that does not cache asks for a file's attributes before it reads from its pages. If another connection
//! has changed the file since, it is made to drop them before it gets the answer. This waits for its own requests
//! only, never for another kernel's: whoever changed the file does not wait for it.
//!
//! When another connection is to cache, changes are still told to the one that did until its kernel has
//! forgotten everything; then they are told to the new one; and that one caches only when all changes that
//! began before are done, as those may not be told to it. So no two changes wait for each other's kernels.
//!
//! Lock order: `Links::joining`, `Link::caches`, `References::agrees`, `Links::told`, `Links::all`, the view's
//! locks, `References::counts`, `Link::names`, `Link::sending`. No notification is sent with a lock held but `joining`, and
//! `caches` of a connection that does not cache.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use karapace_store::fail;
use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::notify::Kernel;
use super::placeholders::Placeholders;
use super::reply::{FOREVER, NEVER};
use crate::attr::{Attr, Invalidation};
use crate::error::Result;
use crate::locks::Locks;
use crate::view::View;

/// How long a kernel may say that it does not know an inode of which it holds a reference. The answer to a
/// look-up, or a FORGET, is on its way then.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to pause before such a notification is sent again.
const PAUSE: Duration = Duration::from_micros(50);

/// How long the caller may take to get the answer to a look-up. Until then, the name that it gives becomes valid
/// again even if it was expired after the answer.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

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
    caches: RwLock<bool>,
    /// Whether it serves sessions, and so caches rather than one that does not.
    for_sessions: bool,
    /// The references to inodes that this kernel holds. `None` for the first connection, which holds those
    /// that no other does.
    references: Option<References>,
    /// Names that this kernel may keep and that no inode in the table tells: absent ones, and those of inodes
    /// with several names.
    names: Mutex<Names>,
    /// The mount points that only this kernel knows.
    pub placeholders: Placeholders,
    /// When this kernel was last given a name that it may keep, in milliseconds since `start`.
    given: AtomicU64,
    start: Instant,
    /// Inodes whose pages this kernel may have from before a change that it was not told of.
    outdated: Mutex<Outdated>,
    has_outdated: AtomicBool,
    /// Roots of the snapshots that are looked at through this connection.
    snapshots: Mutex<Vec<ObjectId>>,
    /// Aborts the connection.
    pub abort: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The notifications that the kernel has not taken yet, by the thread that sends one; and whether they were
    /// there at the last look for those that are stuck.
    sending: Mutex<HashMap<ThreadId, bool>>,
}

#[derive(Default)]
struct References {
    counts: Mutex<HashMap<Ino, u64>>,
    /// Held shared from before the view counts a reference, or drops one, until it is counted here.
    agrees: RwLock<()>,
}

/// Inodes, each with the number of the change that outdated it last.
#[derive(Default)]
struct Outdated {
    changes: u64,
    inodes: HashMap<Ino, u64>,
}

impl Outdated {
    fn add(&mut self, ino: Ino) {
        self.changes += 1;
        self.inodes.insert(ino, self.changes);
    }
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
    /// How long this kernel may keep what it is told of the live view.
    pub fn lifetime(&self) -> Lifetime<'_> {
        let caches = self.caches.read();
        Lifetime { time: if *caches { FOREVER } else { NEVER }, _caches: Some(caches) }
    }

    /// To be held while references are taken or dropped, in the view and here. A change is not told meanwhile.
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

    /// The change that this kernel's pages of an inode are older than, if there is one.
    pub fn outdated_by(&self, ino: Ino) -> Option<u64> {
        if !self.has_outdated.load(Ordering::SeqCst) {
            return None;
        }
        self.outdated.lock().inodes.get(&ino).copied()
    }

    /// This kernel has dropped its pages of an inode since that change.
    pub fn has_dropped(&self, ino: Ino, change: u64) {
        let mut outdated = self.outdated.lock();
        if outdated.inodes.get(&ino) == Some(&change) {
            outdated.inodes.remove(&ino);
        }
        self.has_outdated.store(!outdated.inodes.is_empty(), Ordering::SeqCst);
    }

    /// Whether this kernel may hold a reference to an inode.
    fn may_hold(&self, view: &View, ino: Ino) -> bool {
        match &self.references {
            Some(references) => references.counts.lock().contains_key(&ino),
            None => view.references(ino) > 0,
        }
    }

    /// Remembers a name that this kernel may keep, if nothing else tells of it: an absent one, or one of
    /// several. Returns names that have to be expired, because there are too many to remember.
    #[must_use]
    pub fn note_name(&self, parent: Ino, name: &[u8], found: Option<&Attr>) -> Option<Names> {
        let is_one_of_several =
            |attr: &Attr| attr.nlink > 1 && FileKind::from_mode(attr.mode) != Some(FileKind::Directory);
        if !found.is_none_or(is_one_of_several) {
            return None;
        }
        let mut names = self.names.lock();
        names.insert((parent, name.into()));
        (names.len() > MOST_NAMES).then(|| mem::take(&mut *names))
    }

    /// Notes that an answer gives a name that this kernel may keep.
    pub fn note_given(&self) {
        self.given.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Waits until no answer that gives a name is on its way any more. Returns whether one may have been.
    fn wait_for_names(&self) -> bool {
        let given = Duration::from_millis(self.given.load(Ordering::Relaxed));
        let wait = (given + ON_ITS_WAY).saturating_sub(self.start.elapsed());
        thread::sleep(wait);
        !wait.is_zero()
    }

    /// Makes this kernel look these names up again.
    pub fn expire(&self, names: Names) {
        let all = names.into_iter().map(|(parent, name)| Invalidation::Entry { parent, name });
        self.send(&all.collect::<Vec<_>>());
    }

    pub(super) fn send(&self, invalidations: &[Invalidation]) {
        if let Some(Err(error)) = self.kernel.get().map(|kernel| kernel.send(invalidations)) {
            tracing::error!(%error, "a kernel may go on showing what it has cached");
        }
    }
}

/// The connections of one view.
pub(crate) struct Links {
    /// Connections are added and removed one at a time. It hears when the changes that began since the last
    /// such step are done.
    joining: Mutex<Receiver<Infallible>>,
    /// Held while the store is told what to keep.
    keeping: Mutex<()>,
    /// The locks on files, if the kernels do not keep them.
    pub locks: Arc<Locks>,
    /// The number of the connection that was added last.
    last: AtomicU64,
    all: RwLock<Vec<Arc<Link>>>,
    told: RwLock<Told>,
}

/// Whom a change that begins now is told to.
struct Told {
    /// The connection that caches, or is about to.
    link: Option<Arc<Link>>,
    /// Each change holds a clone.
    change: Sender<Infallible>,
}

impl Default for Links {
    fn default() -> Links {
        let (change, done) = channel();
        Links {
            joining: Mutex::new(done),
            keeping: Mutex::default(),
            locks: Arc::default(),
            last: AtomicU64::new(0),
            all: RwLock::default(),
            told: RwLock::new(Told { link: None, change }),
        }
    }
}

impl Links {
    /// Adds a connection, which is the one that caches from now on, unless it is not for sessions and another
    /// one is. Whatever the one that did may have kept has expired when this returns. Call it before the new
    /// connection's first request is served, and not from a change. `our_processes`: see [`Link::our_processes`].
    pub fn add(&self, view: &View, for_sessions: bool, our_processes: bool) -> Arc<Link> {
        let mut joining = self.joining.lock();
        let others = self.all.read().clone();
        let before = others.iter().find(|link| *link.caches.read());
        let caches = for_sessions || before.is_none_or(|link| !link.for_sessions);
        if let Some(before) = before.filter(|_| caches) {
            *before.caches.write() = false;
            self.forget_all(view, before, &others);
        }
        let link = Arc::new(Link {
            number: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            our_processes,
            kernel: OnceLock::new(),
            caches: RwLock::new(false),
            for_sessions,
            references: (!others.is_empty()).then(References::default),
            names: Mutex::default(),
            placeholders: Placeholders::default(),
            given: AtomicU64::new(0),
            start: Instant::now(),
            outdated: Mutex::default(),
            has_outdated: AtomicBool::new(false),
            snapshots: Mutex::default(),
            abort: OnceLock::new(),
            sending: Mutex::default(),
        });
        self.all.write().push(link.clone());
        if caches {
            self.let_cache(&mut joining, &link);
        }
        link
    }

    /// Removes a connection that has ended, and gives back the locks and references that its kernel held. If it
    /// cached, one of those that remain does from now on. Not to be called from a change.
    pub fn remove(&self, view: &View, link: &Arc<Link>) {
        self.locks.ended(link.number);
        let mut joining = self.joining.lock();
        let mut others = self.all.read().clone();
        others.retain(|other| !Arc::ptr_eq(other, link));
        match &link.references {
            _ if others.is_empty() => {}
            Some(references) => {
                let counts = mem::take(&mut *references.counts.lock());
                counts.into_iter().for_each(|(ino, count)| view.forget(ino, count));
            }
            None => {
                let counted: Vec<_> = others.iter().filter_map(|other| other.references.as_ref()).collect();
                let _agree: Vec<_> = counted.iter().map(|references| references.agrees.write()).collect();
                view.forget_all_but(&|ino| others.iter().map(|other| other.counted(ino)).sum());
            }
        }
        // Not before: a change that is told waits as long as there are references that no connection counts.
        self.all.write().clone_from(&others);
        let next = others.iter().find(|link| link.for_sessions).or(others.first());
        match next {
            None => self.told.write().link = None,
            Some(next) if *link.caches.read() => self.let_cache(&mut joining, next),
            Some(_) => {}
        }
    }

    /// Makes the kernel of a connection forget all that it keeps of the live view.
    fn forget_all(&self, view: &View, link: &Arc<Link>, all: &[Arc<Link>]) {
        let mut known = view.known(&|ino, held| held > counted_without(all, link, ino));
        let names = mem::take(&mut *link.names.lock());
        known.extend(names.into_iter().map(|(parent, name)| Invalidation::Entry { parent, name }));
        known.iter().for_each(|invalidation| self.tell_change(view, link, invalidation));
        if link.wait_for_names() {
            known.retain(|what| matches!(what, Invalidation::Entry { .. }));
            link.send(&known);
        }
    }

    /// Lets `link` cache. None may at the moment.
    fn let_cache(&self, joining: &mut Receiver<Infallible>, link: &Arc<Link>) {
        let (change, done) = channel();
        *self.told.write() = Told { link: Some(link.clone()), change };
        // Fails once none is left that could send.
        let _done = mem::replace(joining, done).recv();
        *link.caches.write() = true;
    }

    /// Runs a change that came through `link`. What it changes is forgotten by the kernel that caches before
    /// this returns. `data`: the part of a file whose content changes, in bytes.
    pub fn change<T>(
        &self,
        view: &View,
        link: &Arc<Link>,
        data: Option<(Ino, Range<u64>)>,
        work: impl FnOnce() -> T,
    ) -> T {
        if self.all.read().len() < 2 {
            return work();
        }
        let (other, _until_done) = {
            let told = self.told.read();
            (told.link.clone().filter(|other| !Arc::ptr_eq(other, link)), told.change.clone())
        };
        let Some(other) = other else {
            let (result, changed) = crate::view::observed(work);
            self.note_outdated(view, link, None, &changed);
            return result;
        };
        if let Some((ino, range)) = data
            && !fail::planted("told-only-after")
        {
            self.tell(view, &other, &|kernel| kernel.write_back(ino, &range), Some(ino));
        }
        let (result, mut changed) = crate::view::observed(work);
        if fail::planted("listing-left") {
            changed.retain(|what| matches!(what, Invalidation::Entry { .. }));
        }
        if fail::planted("answer-first") {
            let (other, changed) = (other.clone(), mem::take(&mut changed));
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                other.send(&changed);
            });
        }
        self.note_outdated(view, link, Some(&other), &changed);
        // What the other kernel has a placeholder for stays so, with what is mounted on it.
        changed.retain(|what| match what {
            Invalidation::Entry { parent, name } => other.placeholders.find(*parent, name).is_none(),
            Invalidation::Inode { .. } => true,
        });
        for invalidation in &changed {
            match invalidation {
                Invalidation::Entry { parent, name } => {
                    self.tell(view, &other, &|kernel| kernel.drop_name(*parent, name), None);
                }
                Invalidation::Inode { .. } => self.tell_change(view, &other, invalidation),
            }
        }
        result
    }

    /// Notes, for the connections that are not told, what a change through `link` changed: their pages of it are
    /// outdated. Before the change is answered, so that a call which begins after that finds the note.
    fn note_outdated(
        &self,
        view: &View,
        link: &Arc<Link>,
        told: Option<&Arc<Link>>,
        changed: &[Invalidation],
    ) {
        if fail::planted("time-untold") {
            return;
        }
        let all = self.all.read().clone();
        let is =
            |one: &Arc<Link>, other: Option<&Arc<Link>>| other.is_some_and(|other| Arc::ptr_eq(one, other));
        for other in all.iter().filter(|other| !is(other, Some(link)) && !is(other, told)) {
            for what in changed {
                if let Invalidation::Inode { ino } = what
                    && other.may_hold(view, *ino)
                {
                    other.outdated.lock().add(*ino);
                    other.has_outdated.store(true, Ordering::SeqCst);
                }
            }
        }
    }

    /// Passes the roots of the snapshots that are looked at through any connection to `keep`; through `link`
    /// they are `roots` from now on.
    ///
    /// # Errors
    /// The error of `keep`.
    pub fn keep_snapshots(
        &self,
        link: &Link,
        roots: &[ObjectId],
        keep: &dyn Fn(&[ObjectId]) -> Result<()>,
    ) -> Result<()> {
        let _one_at_a_time = self.keeping.lock();
        let before = mem::replace(&mut *link.snapshots.lock(), roots.to_vec());
        let all = self.all.read().clone();
        let mut union: Vec<ObjectId> = all.iter().flat_map(|link| link.snapshots.lock().clone()).collect();
        union.sort_unstable();
        union.dedup();
        keep(&union).inspect_err(|_| *link.snapshots.lock() = before)
    }

    /// Makes all kernels forget what changed without their knowledge. Call it without holding a lock.
    ///
    /// # Errors
    /// The first error of a kernel; the others are still told.
    pub fn send(&self, invalidations: &[Invalidation]) -> io::Result<()> {
        let all = self.all.read().clone();
        let kernels = all.iter().filter_map(|link| link.kernel.get());
        kernels.map(|kernel| kernel.send(invalidations)).fold(Ok(()), io::Result::and)
    }

    /// Aborts connections whose kernel has not taken a notification since the last call: a process that uses one
    /// holds a lock and waits for something that waits for this server. Looks are counted, not time, for the server may
    /// have been stopped.
    pub fn abort_stuck(&self) {
        let all = self.all.read().clone();
        for link in &all {
            let mut sending = link.sending.lock();
            let is_stuck = sending.values().any(|seen| *seen);
            sending.values_mut().for_each(|seen| *seen = true);
            drop(sending);
            if let Some(abort) = link.abort.get().filter(|_| is_stuck) {
                abort();
            }
        }
    }

    /// All connections.
    pub(super) fn all(&self) -> Vec<Arc<Link>> {
        self.all.read().clone()
    }

    fn tell_change(&self, view: &View, link: &Arc<Link>, changed: &Invalidation) {
        let ino = match changed {
            Invalidation::Inode { ino } => Some(*ino),
            Invalidation::Entry { .. } => None,
        };
        self.tell(view, link, &|kernel| kernel.invalidate(changed), ino);
    }

    /// Sends a notification again as long as the kernel does not know the inode but holds a reference to it.
    fn tell(
        &self,
        view: &View,
        link: &Arc<Link>,
        send: &dyn Fn(&Kernel) -> std::result::Result<(), Errno>,
        ino: Option<Ino>,
    ) {
        let Some(kernel) = link.kernel.get() else { return };
        let start = Instant::now();
        loop {
            let thread = thread::current().id();
            link.sending.lock().insert(thread, false);
            let sent = send(kernel);
            link.sending.lock().remove(&thread);
            match sent {
                Err(Errno::ENOENT)
                    if !fail::planted("no-second-try")
                        && ino.is_some_and(|ino| self.holds(view, link, ino)) =>
                {
                    if start.elapsed() > PATIENCE {
                        tracing::error!(ino, "a kernel holds an inode that it does not know");
                        return;
                    }
                    thread::sleep(PAUSE);
                }
                // The kernel does not know it, or the connection is gone.
                Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ENOTCONN) => return,
                Err(errno) => {
                    tracing::error!(%errno, "a kernel may go on showing what it has cached");
                    return;
                }
            }
        }
    }

    /// Whether the kernel of `link` held a reference to an inode before the one that was just taken in the view, which
    /// is not counted yet. Call it while that is [`counting`](Link::counting).
    pub fn held_before(&self, view: &View, link: &Arc<Link>, ino: Ino) -> bool {
        match &link.references {
            Some(references) => references.counts.lock().contains_key(&ino),
            None => view.references(ino) > counted_without(&self.all.read(), link, ino) + 1,
        }
    }

    /// Whether the kernel of `link` holds a reference to an inode, or is about to be given one.
    fn holds(&self, view: &View, link: &Arc<Link>, ino: Ino) -> bool {
        match &link.references {
            Some(references) => {
                let _agree = references.agrees.write();
                references.counts.lock().contains_key(&ino)
            }
            None => view.references(ino) > counted_without(&self.all.read(), link, ino),
        }
    }
}

/// The references that all but one connection have counted.
fn counted_without(all: &[Arc<Link>], link: &Arc<Link>, ino: Ino) -> u64 {
    all.iter().filter(|other| !Arc::ptr_eq(other, link)).map(|other| other.counted(ino)).sum()
}

impl Link {
    fn counted(&self, ino: Ino) -> u64 {
        self.references.as_ref().and_then(|held| held.counts.lock().get(&ino).copied()).unwrap_or(0)
    }
}
