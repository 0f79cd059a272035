//! Controls who may change a view: many operations at a time, or one commit or restore. While the gate is
//! held, operations wait in front of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long an operation waits at a held gate. The holder may itself be waiting for a request that this
/// thread would answer, so the wait must end.
const HELD_AT_MOST: Duration = Duration::from_secs(5);

/// Operations take it shared; steps during which the view must not change take it exclusive.
///
/// Exclusive access covers one step. [`Gate::hold`] keeps operations out over several steps, each of which
/// may take the gate exclusively.
#[derive(Debug, Default)]
pub(super) struct Gate {
    lock: RwLock<()>,
    /// Copy of `held` that can be read without the lock.
    is_held: AtomicBool,
    held: Mutex<bool>,
    opened: Condvar,
}

/// Makes operations that change the view wait until it is dropped.
#[derive(Debug)]
#[must_use = "the gate opens when it is dropped"]
pub struct Hold<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// Shared access, for an operation that makes a change. Waits at most [`HELD_AT_MOST`] at a held gate.
    pub fn read(&self) -> RwLockReadGuard<'_, ()> {
        if self.is_held.load(Ordering::Acquire) {
            self.wait();
        }
        self.lock.read()
    }

    /// Like [`Gate::read`], but returns `None` instead of waiting; for work that can be skipped.
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, ()>> {
        if self.is_held.load(Ordering::Acquire) { None } else { self.lock.try_read() }
    }

    /// Exclusive access, for a step during which no operation may change anything.
    pub fn write(&self) -> RwLockWriteGuard<'_, ()> {
        self.lock.write()
    }

    /// Keeps new operations out, without waiting for those in progress. Only one hold at a time: the caller
    /// serializes its environment's commits and restores.
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
            // The holder may take the gate for each of its steps.
            drop(gate.write());
            drop(hold);
            changed.recv_timeout(Duration::from_secs(10)).unwrap();
        });
        assert!(gate.try_read().is_some());
    }
}
