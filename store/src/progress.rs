//! How those who wait hear of long work, and how they end it.

/// Is told how an operation comes along, from whatever thread does the work.
pub trait Progress: Sync {
    /// `bytes` more of the source were read (of an archive: as it is stored, compressed) and `entries` more
    /// were taken in.
    fn add(&self, bytes: u64, entries: u64);

    /// Whether the user wants the work to stop. Asked often.
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
