//! Distributes work on many small files over a few threads.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::thread;

/// Maximum number of threads: more would only wait for the file system's own locks.
const THREADS: usize = 4;

/// How many items justify another thread.
const SHARE: usize = 64;

/// Maximum number of threads for work that waits for the disk: file systems combine concurrent writes.
const WAITING: usize = 8;

/// Splits `items` into up to four pieces, at most one for each available processor, calls `work` with each
/// piece on a thread of its own, and returns the results in the order of the pieces. With few items, `work`
/// runs on the calling thread.
pub fn in_pieces<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    on_threads(items, processors.min(THREADS).min(items.len() / SHARE), work)
}

/// Like [`in_pieces`], for work that waits for the disk for each item.
pub fn in_waiting_pieces<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    on_threads(items, WAITING.min(items.len()), work)
}

fn on_threads<T: Sync, R: Send>(items: &[T], threads: usize, work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    if threads < 2 {
        return vec![work(items)];
    }
    thread::scope(|scope| {
        let pieces = items.chunks(items.len().div_ceil(threads));
        let handles: Vec<_> = pieces.map(|piece| scope.spawn(|| work(piece))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_in_order() {
        for count in [0, 1, SHARE, 2 * SHARE, 10 * SHARE + 7] {
            let items: Vec<usize> = (0..count).collect();
            let double = |piece: &[usize]| piece.iter().map(|n| n * 2).collect::<Vec<_>>();
            let doubled = items.iter().map(|n| n * 2).collect::<Vec<_>>();
            assert_eq!(in_pieces(&items, double).concat(), doubled);
            assert_eq!(in_waiting_pieces(&items, double).concat(), doubled);
        }
    }
}
