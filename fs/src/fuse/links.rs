//! The kernel connections of one view: what each kernel may keep, and how one learns what came through
//! another.
//!
//! At most one connection *caches*: its kernel keeps names, attributes, listings and data until it is told
//! otherwise. The others get answers that expire at once, and no absent names. So only a change that comes
//! through a connection that does not cache has to be told, and only to the one that does: the waits for
//! notifications form no circle. A change of data is told before it is made, which brings in what the other
//! kernel holds in mapped pages, and again before it is answered, as every change is.
//!
//! A name that changed is dropped, with what is mounted on it, and not only expired: an answer on its way,
//! given before the change, would make it valid again.
//!
//! A kernel that does not cache asks for a file's attributes before it reads from its pages. If another
//! connection has changed the file since, it is made to drop them before it gets the answer. This waits for
//! its own requests only, never for another kernel's: whoever changed the file does not wait for it.
//!
//! When another connection is to cache, changes are still told to the one that did until its kernel has
//! forgotten everything; then they are told to the new one; and that one caches only when all changes that
//! began before are done, as those may not be told to it. So no two changes wait for each other's kernels.
//!
//! Lock order: `Links::joining`, `Link::caches`, `References::agrees`, `Links::told`, `Links::all`,
//! `Link::rewrites`, `Links::appending`, the view's locks, `References::counts`, `Link::names`,
//! `Link::expiring`. No notification is sent with a lock held but `joining`, and `caches` of a connection
//! that does not cache.

use std::convert::Infallible;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use karapace_store::fail;
use karapace_store::id::ObjectId;
use karapace_store::inode::Ino;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};

use super::link::Link;
use super::notify::Kernel;
use crate::attr::Invalidation;
use crate::error::Result;
use crate::locks::Locks;
use crate::view::{View, observed};

/// How long a kernel may say that it does not know an inode of which it holds a reference. The answer to a
/// look-up, or a FORGET, is on its way then.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to pause before such a notification is sent again.
const PAUSE: Duration = Duration::from_micros(50);

/// The connections of one view.
pub(crate) struct Links {
    /// Connections are added and removed one at a time. It hears when the changes that began since the last
    /// such step are done.
    joining: Mutex<Receiver<Infallible>>,
    /// Held while the store is told what to keep.
    keeping: Mutex<()>,
    /// Held while the end of a file is found and written to, by inode. Taken within a change.
    appending: [Mutex<()>; 16],
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
            appending: Default::default(),
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
    /// connection's first request is served, and not from a change. `our_processes`: see
    /// [`Link::our_processes`].
    pub fn add(&self, view: &View, for_sessions: bool, our_processes: bool) -> Arc<Link> {
        let mut joining = self.joining.lock();
        let others = self.all.read().clone();
        let before = others.iter().find(|link| *link.caches.read());
        let caches = for_sessions || before.is_none_or(|link| !link.for_sessions);
        if let Some(before) = before.filter(|_| caches) {
            *before.caches.write() = false;
            self.forget_all(view, before, &others);
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let link = Arc::new(Link::new(number, our_processes, for_sessions, others.is_empty()));
        self.all.write().push(link.clone());
        if caches {
            self.let_cache(&mut joining, &link);
        }
        link
    }

    /// Removes a connection that has ended, and gives back the locks and references that its kernel held. If
    /// it cached, one of those that remain does from now on. Not to be called from a change.
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

    /// Notes that the kernel of `link` has given back references to an inode.
    pub fn forgotten(&self, view: &View, link: &Arc<Link>, ino: Ino) {
        if link.outdated.any() && !may_hold(view, &self.all.read(), link, ino) {
            link.outdated.forget(ino);
        }
    }

    /// Makes the kernel of a connection forget all that it keeps of the live view.
    fn forget_all(&self, view: &View, link: &Arc<Link>, all: &[Arc<Link>]) {
        let mut known = view.known(&|ino, held| held > counted_without(all, link, ino));
        known.extend(link.take_names());
        for invalidation in &known {
            if link.is_gone() {
                return;
            }
            self.tell_change(view, link, invalidation);
        }
        if link.wait_for_names() {
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

    /// Whether there are several connections.
    pub fn several(&self) -> bool {
        self.all.read().len() > 1
    }

    /// Runs a change that came through `link`. What it changes is forgotten by the kernel that caches before
    /// this returns. `data`: the part of a file whose content may change, in bytes; all of it is told if that
    /// is empty. `work` also returns what part it wrote.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn change<T, E>(
        &self,
        view: &View,
        link: &Arc<Link>,
        data: Option<(Ino, Range<u64>)>,
        work: impl FnOnce() -> std::result::Result<(T, Range<u64>), E>,
    ) -> std::result::Result<T, E> {
        let (other, _until_done) = {
            let told = self.told.read();
            (told.link.as_ref().filter(|other| !Arc::ptr_eq(other, link)).cloned(), told.change.clone())
        };
        if !self.several() {
            return work().map(|(result, _)| result);
        }
        let Some(other) = other else {
            let (result, changed) = observed(work);
            self.note_outdated(view, link, None, &changed);
            return result.map(|(result, _)| result);
        };
        if let Some((ino, range)) = &data
            && !fail::planted("told-only-after")
        {
            self.tell(view, &other, &|kernel| kernel.write_back(*ino, range), Some(*ino));
        }
        if data.is_some() && fail::planted("late-changes") {
            thread::sleep(Duration::from_millis(20));
        }
        let leaves_out = !fail::planted("stores-undo") && !fail::planted("told-only-after");
        let data = data.filter(|_| leaves_out).map(|(ino, _)| ino);
        let (result, changed) = observed(|| match data {
            Some(ino) => other.rewrites.change(ino, work),
            None => work().map(|(result, _)| (result, 0)),
        });
        self.tell_changed(view, link, &other, changed);
        result.map(|(result, number)| {
            if let Some(ino) = data {
                other.rewrites.end(ino, number);
            }
            result
        })
    }

    /// Tells `other` what has changed through `link`.
    fn tell_changed(&self, view: &View, link: &Arc<Link>, other: &Arc<Link>, mut changed: Vec<Invalidation>) {
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
        self.note_outdated(view, link, Some(other), &changed);
        // What the other kernel has a placeholder for stays so, with what is mounted on it.
        changed.retain(|what| match what {
            Invalidation::Entry { parent, name } => other.placeholders.find(*parent, name).is_none(),
            Invalidation::Inode { .. } => true,
        });
        // Names come first, as they sort: dropping one waits for a listing in progress, which would otherwise
        // fill the directory's cache after that was dropped.
        for invalidation in &changed {
            match invalidation {
                Invalidation::Entry { parent, name } => {
                    self.tell(view, other, &|kernel| kernel.drop_name(*parent, name), None);
                }
                Invalidation::Inode { .. } => self.tell_change(view, other, invalidation),
            }
        }
    }

    /// Appends to a file, for a kernel that may not know the size that another connection gave it. Returns
    /// the offset and the number of bytes written.
    ///
    /// # Errors
    /// As of [`View::write`].
    pub fn append(&self, view: &View, ino: Ino, data: &[u8], kill_priv: bool) -> Result<(u64, usize)> {
        let _one_at_a_time = self.appending[ino as usize % self.appending.len()].lock();
        let offset = view.getattr(ino)?.size;
        Ok((offset, view.write(ino, offset, data, kill_priv)?))
    }

    /// Notes, for the other connections, what a change through `link` changed. `told`: the one that is told
    /// to drop its pages. Before the change is answered, so that a call which begins after that finds the
    /// note.
    fn note_outdated(
        &self,
        view: &View,
        link: &Arc<Link>,
        told: Option<&Arc<Link>>,
        changed: &[Invalidation],
    ) {
        let all = self.all.read().clone();
        for other in all.iter().filter(|other| !Arc::ptr_eq(other, link)) {
            let is_told = told.is_some_and(|told| Arc::ptr_eq(told, other));
            if fail::planted(if is_told { "attributes-kept" } else { "time-untold" }) {
                continue;
            }
            for what in changed {
                if let Invalidation::Inode { ino } = what
                    && may_hold(view, &all, other, *ino)
                {
                    other.outdated.add(*ino, !is_told);
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

    /// Aborts connections whose kernel does not take a notification: a process that uses one holds a lock and
    /// waits for something that waits for this server. See [`Kernel::is_stuck`].
    pub fn abort_stuck(&self) {
        for link in self.all() {
            if link.kernel.get().is_some_and(Kernel::is_stuck)
                && let Some(abort) = link.abort.get()
            {
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
            match send(kernel) {
                Err(Errno::ENOENT)
                    if !fail::planted("no-second-try")
                        && !kernel.is_gone()
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

    /// Whether the kernel of `link` held a reference to an inode before the one that was just taken in the
    /// view, which is not counted yet. Call it while that is [`counting`](Link::counting).
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

/// Whether the kernel of `link` may hold a reference to an inode.
fn may_hold(view: &View, all: &[Arc<Link>], link: &Arc<Link>, ino: Ino) -> bool {
    match &link.references {
        Some(references) => references.counts.lock().contains_key(&ino),
        None => {
            // Others may count or give back one between the two looks.
            let before = counted_without(all, link, ino);
            let references = view.references(ino);
            references > before.min(counted_without(all, link, ino))
        }
    }
}

/// The references that all but one connection have counted.
fn counted_without(all: &[Arc<Link>], link: &Arc<Link>, ino: Ino) -> u64 {
    all.iter().filter(|other| !Arc::ptr_eq(other, link)).map(|other| other.counted(ino)).sum()
}
