//! Reports the progress of long operations, and cancels them.

/// Receives the progress of an operation, from any thread that works on it.
pub trait Progress: Sync {
    /// `bytes` more of the source were read (for an archive: bytes as stored, compressed) and `entries` more
    /// were imported.
    fn add(&self, bytes: u64, entries: u64);

    /// Whether the user wants to cancel the work. Polled often.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// For callers that show no progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn add(&self, _bytes: u64, _entries: u64) {}
}
