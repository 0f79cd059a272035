//! Threads for requests that may take long, so that the request threads stay free.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;

type Work = Box<dyn FnOnce() + Send>;

/// A few threads that wait for disks. They end once this is dropped and the queued work is done.
pub(crate) struct Workers {
    sender: Sender<Work>,
    /// Number of offered work items that are not done.
    offered: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` threads named after `name`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(name: &str, count: usize) -> std::io::Result<Workers> {
        let (sender, receiver) = channel::<Work>();
        let receiver = Arc::new(Mutex::new(receiver));
        for number in 0..count {
            let receiver = receiver.clone();
            thread::Builder::new()
                .name(format!("karapace-{name}-{number}"))
                .spawn(move || serve(&receiver))?;
        }
        Ok(Workers { sender, offered: Arc::default() })
    }

    /// Runs `work` on one of the threads, or on this one if none is left.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        let work = in_this_span(work);
        if let Err(unsent) = self.sender.send(Box::new(work)) {
            (unsent.0)();
        }
    }

    /// Queues `work` unless `most` offered items are pending. Returns whether it was queued.
    pub fn offer(&self, most: usize, work: impl FnOnce() + Send + 'static) -> bool {
        if self.offered.fetch_add(1, Ordering::Relaxed) >= most {
            self.offered.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let offered = Offered(self.offered.clone());
        let work = Box::new(move || {
            work();
            drop(offered);
        });
        self.sender.send(work).is_ok()
    }
}

/// Counts an offered item as done when dropped, even after a panic.
struct Offered(Arc<AtomicUsize>);

impl Drop for Offered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(receiver: &Mutex<Receiver<Work>>) {
    loop {
        // Holding the lock while waiting only makes the other threads wait for the lock instead.
        let work = receiver.lock().recv();
        match work {
            Ok(work) => {
                // The panic hook has reported the panic. The thread must survive for the next item.
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    tracing::error!("a background task panicked and was not completed");
                }
            }
            Err(_) => return,
        }
    }
}

/// Runs `work` on a new thread, for commands, which may take minutes.
///
/// # Errors
/// If the thread cannot be started; `work` is then dropped.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(format!("karapace-{name}")).spawn(in_this_span(work)).map(drop)
}

/// Attributes what `work` logs to the request that it belongs to.
fn in_this_span(work: impl FnOnce()) -> impl FnOnce() {
    let span = tracing::Span::current();
    move || span.in_scope(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only thread survives panics, and an offered item that panicked no longer counts as pending.
    #[test]
    fn a_panic_ends_its_work_only() {
        let workers = Workers::new("test", 1).unwrap();
        workers.run(|| panic!("on purpose"));
        assert!(workers.offer(1, || panic!("on purpose")));
        let (sender, receiver) = channel();
        workers.run(move || sender.send("done").unwrap());
        assert_eq!(receiver.recv(), Ok("done"));
        assert!(workers.offer(1, || ()));
    }
}
