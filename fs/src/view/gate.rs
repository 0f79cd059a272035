//! Who may change a view: many operations at a time, or one commit or restore; and no operation while the
//! gate is held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long an operation waits at a held gate. Whoever holds it may itself wait for a request that this
/// thread would answer, so the wait must end.
const HELD_AT_MOST: Duration = Duration::from_secs(5);

/// Operations take it shared, what needs the view to stand still takes it exclusive.
///
/// Exclusive is for one step. [`Gate::hold`] keeps operations out over several steps, each of which may take
/// the gate exclusive.
#[derive(Debug, Default)]
pub(super) struct Gate {
    lock: RwLock<()>,
    /// The same as `held`, to be read without a lock.
    is_held: AtomicBool,
    held: Mutex<bool>,
    opened: Condvar,
}

/// Keeps operations that change the view waiting until it is dropped.
#[derive(Debug)]
#[must_use = "the gate opens when it is dropped"]
pub struct Hold<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// For an operation that changes something.
    pub fn read(&self) -> RwLockReadGuard<'_, ()> {
        if self.is_held.load(Ordering::Acquire) {
            self.wait();
        }
        self.lock.read()
    }

    /// As [`Gate::read`], for what can as well be left undone.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if self.is_held.load(Ordering::Acquire) { None } else { self.lock.try_read() }
    }

    /// For a step during which no operation changes anything.
    pub fn write(&self) -> RwLockWriteGuard<'_, ()> {
        self.lock.write()
    }

    /// Keeps new operations out. Those that have begun are not waited for. One holds at a time: the caller
    /// has the `committing` turn of its environment.
    pub fn hold(&self) -> Hold<'_> {
        let was_held = std::mem::replace(&mut *self.held.lock(), true);
        debug_assert!(!was_held, "two hold the gate");
        self.is_held.store(true, Ordering::Release);
        Hold { gate: self }
    }

    #[cold]
    fn wait(&self) {
        let until = Instant::now() + HELD_AT_MOST;
        let mut held = self.held.lock();
        while *held && !self.opened.wait_until(&mut held, until).timed_out() {}
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        *self.gate.held.lock() = false;
        self.gate.is_held.store(false, Ordering::Release);
        self.gate.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn an_operation_waits_until_a_held_gate_opens() {
        let gate = Gate::default();
        let (done, changed) = mpsc::channel();
        std::thread::scope(|scope| {
            let hold = gate.hold();
            scope.spawn(|| {
                drop(gate.read());
                let _gone = done.send(());
            });
            assert!(changed.recv_timeout(Duration::from_millis(50)).is_err());
            assert!(gate.try_read().is_none());
            // Each step of who holds it takes it.
            drop(gate.write());
            drop(hold);
            changed.recv_timeout(Duration::from_secs(10)).unwrap();
        });
        assert!(gate.try_read().is_some());
    }
}
