//! File locks that exclude between the connections of a view.
//!
//! The kernel keeps the locks of each of its connections apart. Where they are shared, it sends them here
//! instead, and tells when a process closes a file, and when an open file ends. The two kinds, POSIX (with
//! OFD) and flock, ignore each other.
//!
//! A request that waits is kept with what answers it, and answered by whoever makes room for it, or by a
//! thread that looks for those that wait in vain. It exists while any request waits.
//!
//! Lock order: the state's lock is the innermost. No answer is given with it held.

mod held;
mod signals;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use self::held::Held;
pub(crate) use self::held::{Lock, Mode, Owner};

/// How often those that wait are looked at for a signal that interrupts them.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long a closed descriptor may have been the last one of its open file. The kernel does not wait until
/// it has told of that, so a request that could not wait waits this long for what the file had.
const CLOSING: Duration = Duration::from_millis(200);

/// Most locks of one kind on a file.
const MOST: usize = 1 << 14;

/// Which locks exclude each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockScope {
    /// Those taken through one connection. The kernel keeps them.
    #[default]
    Local,
    /// Those taken through any connection of the view.
    Shared,
}

impl LockScope {
    /// Each value with the word that users write.
    pub const WORDS: [(&str, LockScope); 2] = [("local", LockScope::Local), ("shared", LockScope::Shared)];

    /// The word that users write.
    pub fn word(self) -> &'static str {
        LockScope::WORDS.iter().find(|(_, scope)| *scope == self).map_or("", |(word, _)| word)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `fcntl`: F_SETLK and F_OFD_SETLK.
    Posix,
    Flock,
}

/// A file: its node, and its connection if it is not in the live view, which alone all of them show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct File {
    pub link: Option<u64>,
    pub node: u64,
}

/// What to do if a lock cannot be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Else {
    Refuse,
    /// Wait, until a signal for this thread comes. 0: it is not known which thread waits.
    Wait(u32),
}

/// Answers a request, with an error number if the lock is refused.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), i32>) + Send>;

/// The locks of a view.
#[derive(Default)]
pub(crate) struct Locks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    files: HashMap<File, Kinds>,
    /// In the order in which they came.
    waiters: Vec<Waiter>,
    last_waiter: u64,
    /// Whether the thread that looks at them runs.
    watched: bool,
}

#[derive(Default)]
struct Kinds {
    posix: Held,
    flock: Held,
}

struct Waiter {
    number: u64,
    file: File,
    kind: Kind,
    lock: Lock,
    thread: u32,
    /// When it is refused.
    end: Option<Instant>,
    answer: Answer,
}

/// Answers that are due.
type Due = Vec<(Answer, Result<(), i32>)>;

impl Kinds {
    fn of(&mut self, kind: Kind) -> &mut Held {
        match kind {
            Kind::Posix => &mut self.posix,
            Kind::Flock => &mut self.flock,
        }
    }
}

impl Locks {
    /// Takes a lock, or changes the mode of one that the owner has. The answer is an error number:
    /// `EAGAIN` if it cannot be had and the request does not wait, `EINTR` if it waited until a signal came,
    /// `EDEADLK` if it would wait for an owner that waits for this one, `ENOLCK` if there are too many.
    pub fn take(self: &Arc<Self>, file: File, kind: Kind, lock: Lock, otherwise: Else, answer: Answer) {
        let mut state = self.state.lock();
        let mut due = Due::new();
        let held = state.files.entry(file).or_default().of(kind);
        match kind {
            Kind::Flock if held.mode_of(lock.owner) == Some(lock.mode) => due.push((answer, Ok(()))),
            _ => {
                if kind == Kind::Flock {
                    // As flock(2) says, another mode is not taken in one step.
                    held.free_owner(lock.owner);
                }
                if let Some(answer) = state.take(file, kind, lock, answer, &mut due) {
                    state.postpone(file, kind, lock, otherwise, answer, &mut due);
                }
                state.settle(file, &mut due);
            }
        }
        state.drop_empty(file);
        let starts = !state.watched && !state.waiters.is_empty();
        state.watched |= starts;
        drop(state);
        self.changed.notify_all();
        answer_all(due);
        if starts {
            self.start_watching();
        }
    }

    /// Gives back a range of an owner's locks.
    pub fn give_back(&self, file: File, kind: Kind, owner: Owner, range: (u64, u64)) {
        self.change(file, |kinds| kinds.of(kind).free(owner, range));
    }

    /// A process has closed a descriptor: its POSIX locks on the file are gone.
    pub fn closed(&self, file: File, owner: Owner, handle: u64) {
        let now = Instant::now();
        self.change(file, |kinds| {
            kinds.posix.free_owner(owner);
            kinds.posix.note_close(owner.link, handle, now);
            kinds.flock.note_close(owner.link, handle, now);
        });
    }

    /// An open file has no descriptors any more: its OFD and flock locks are gone.
    pub fn released(&self, file: File, link: u64, handle: u64) {
        self.change(file, |kinds| {
            kinds.posix.free_handle(link, handle);
            kinds.flock.free_handle(link, handle);
        });
    }

    /// A POSIX lock beside which this one cannot be had.
    pub fn against(&self, file: File, wanted: &Lock) -> Option<Lock> {
        self.state.lock().files.get(&file).and_then(|kinds| kinds.posix.against(wanted).next().copied())
    }

    /// A connection has ended: what was taken through it is gone, and nobody waits there for an answer.
    pub fn ended(&self, link: u64) {
        let mut state = self.state.lock();
        let mut due = Due::new();
        state.take_waiters(&mut due, libc::EIO, |waiter| waiter.lock.owner.link == link);
        let files: Vec<File> = state.files.keys().copied().collect();
        for file in files {
            if let Some(kinds) = state.files.get_mut(&file) {
                kinds.posix.free_link(link);
                kinds.flock.free_link(link);
            }
            state.settle(file, &mut due);
            state.drop_empty(file);
        }
        drop(state);
        self.changed.notify_all();
        answer_all(due);
    }

    fn change(&self, file: File, change: impl FnOnce(&mut Kinds)) {
        let mut state = self.state.lock();
        let Some(kinds) = state.files.get_mut(&file) else { return };
        change(kinds);
        let mut due = Due::new();
        state.settle(file, &mut due);
        state.drop_empty(file);
        drop(state);
        answer_all(due);
    }

    fn start_watching(self: &Arc<Self>) {
        let locks = self.clone();
        let thread = std::thread::Builder::new().name("karapace-locks".to_owned());
        if let Err(error) = thread.spawn(move || locks.watch()) {
            tracing::error!(%error, "cannot start a thread that looks for interrupted waits for a lock");
            self.state.lock().watched = false;
        }
    }

    /// Refuses those whose time is over, and interrupts those that have a signal to handle.
    fn watch(&self) {
        loop {
            let mut due = Due::new();
            let mut state = self.state.lock();
            if state.waiters.is_empty() {
                state.watched = false;
                return;
            }
            let end = state.waiters.iter().filter_map(|waiter| waiter.end).min();
            let next = Instant::now() + INTERVAL;
            self.changed.wait_until(&mut state, end.map_or(next, |end| end.min(next)));
            let now = Instant::now();
            state.take_waiters(&mut due, libc::EAGAIN, |waiter| waiter.end.is_some_and(|end| end <= now));
            let threads: Vec<_> = state.waiters.iter().map(|waiter| (waiter.number, waiter.thread)).collect();
            drop(state);
            let interrupted: HashSet<u64> = threads
                .into_iter()
                .filter(|(_, thread)| *thread != 0 && signals::interrupts(*thread))
                .map(|(number, _)| number)
                .collect();
            if !interrupted.is_empty() {
                let mut state = self.state.lock();
                state.take_waiters(&mut due, libc::EINTR, |waiter| interrupted.contains(&waiter.number));
            }
            answer_all(due);
        }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.files.is_empty() && state.waiters.is_empty()
    }
}

impl State {
    /// Takes a lock if it can be had. Returns the answer otherwise.
    fn take(&mut self, file: File, kind: Kind, lock: Lock, answer: Answer, due: &mut Due) -> Option<Answer> {
        let held = self.files.entry(file).or_default().of(kind);
        if held.against(&lock).next().is_some() {
            return Some(answer);
        }
        if held.len() >= MOST {
            due.push((answer, Err(libc::ENOLCK)));
        } else {
            held.put(lock);
            due.push((answer, Ok(())));
        }
        None
    }

    /// Makes a request wait whose lock cannot be had now, or refuses it.
    fn postpone(
        &mut self,
        file: File,
        kind: Kind,
        lock: Lock,
        otherwise: Else,
        answer: Answer,
        due: &mut Due,
    ) {
        let (thread, end) = match otherwise {
            Else::Wait(_) if kind == Kind::Posix && self.is_deadlock(file, &lock) => {
                return due.push((answer, Err(libc::EDEADLK)));
            }
            Else::Wait(thread) => (thread, None),
            Else::Refuse => match self.may_be_gone(file, kind, &lock) {
                Some(end) => (0, Some(end)),
                None => return due.push((answer, Err(libc::EAGAIN))),
            },
        };
        self.last_waiter += 1;
        let number = self.last_waiter;
        self.waiters.push(Waiter { number, file, kind, lock, thread, end, answer });
    }

    /// When it is known that no lock in the way belongs to an open file of which the last descriptor was
    /// closed. `None`: it is known now that one is.
    fn may_be_gone(&mut self, file: File, kind: Kind, lock: &Lock) -> Option<Instant> {
        let held = self.files.entry(file).or_default().of(kind);
        let ends = held.against(lock).map(|held| held.closed.map(|closed| closed + CLOSING));
        ends.min().flatten().filter(|end| *end > Instant::now())
    }

    /// Whether an owner in the way of a POSIX lock waits, itself or through others, for this owner.
    fn is_deadlock(&self, file: File, lock: &Lock) -> bool {
        let in_the_way = |file: File, lock: &Lock| -> Vec<Owner> {
            let kinds = self.files.get(&file);
            kinds.map_or_else(Vec::new, |kinds| kinds.posix.against(lock).map(|held| held.owner).collect())
        };
        let mut seen = HashSet::new();
        let mut next = in_the_way(file, lock);
        while let Some(owner) = next.pop() {
            if owner == lock.owner {
                return true;
            }
            if seen.insert(owner) {
                let waits = self.waiters.iter().filter(|w| w.kind == Kind::Posix && w.lock.owner == owner);
                next.extend(waits.flat_map(|waiter| in_the_way(waiter.file, &waiter.lock)));
            }
        }
        false
    }

    /// Gives those that wait for a file what they can have now, the first one first.
    fn settle(&mut self, file: File, due: &mut Due) {
        let State { files, waiters, .. } = self;
        let Some(kinds) = files.get_mut(&file) else { return };
        // One that gets a shared lock for its exclusive one makes room for others, also for earlier ones.
        while let Some(at) = waiters.iter().position(|waiter| {
            waiter.file == file && kinds.of(waiter.kind).against(&waiter.lock).next().is_none()
        }) {
            let waiter = waiters.remove(at);
            kinds.of(waiter.kind).put(waiter.lock);
            due.push((waiter.answer, Ok(())));
        }
    }

    fn take_waiters(&mut self, due: &mut Due, errno: i32, which: impl Fn(&Waiter) -> bool) {
        due.extend(
            self.waiters.extract_if(.., |waiter| which(waiter)).map(|waiter| (waiter.answer, Err(errno))),
        );
    }

    fn drop_empty(&mut self, file: File) {
        if self.files.get(&file).is_some_and(|kinds| kinds.posix.is_empty() && kinds.flock.is_empty()) {
            self.files.remove(&file);
        }
    }
}

fn answer_all(due: Due) {
    due.into_iter().for_each(|(answer, result)| answer(result));
}
