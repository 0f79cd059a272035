//! Progress reports of long operations.

use karapace_store::progress::Progress;

/// Progress and remarks of one command. Shared between threads; never fails.
pub trait Report: Progress {
    /// Starts a phase of work: what it is, and its size in bytes if known.
    fn begin(&self, what: &str, bytes: Option<u64>);

    /// Ends the phase.
    fn end(&self);

    /// A remark that the user should see; the command goes on.
    fn note(&self, text: &str);

    /// A line printed by a program that runs for the user.
    fn output(&self, _line: &str) {}

    /// From here on the work checks whether it was cancelled ([`Progress::is_cancelled`]) and then ends
    /// cleanly. Before this call, an interrupt ends the program.
    fn heed_interruptions(&self) {}
}

/// Discards progress; remarks go to the log.
pub struct Silent;

impl Progress for Silent {
    fn add(&self, _bytes: u64, _entries: u64) {}
}

impl Report for Silent {
    fn begin(&self, _what: &str, _bytes: Option<u64>) {}

    fn end(&self) {}

    fn note(&self, text: &str) {
        tracing::warn!("{text}");
    }
}
