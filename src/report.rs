//! Where long work tells how far it is.

use karapace_store::progress::Progress;

/// Progress and remarks of one command. Shared between threads; never fails.
pub trait Report: Progress {
    /// A stretch of work begins: what it is, and how many bytes it has if that is known.
    fn begin(&self, what: &str, bytes: Option<u64>);

    /// The stretch is over.
    fn end(&self);

    /// Something the user should know though the command goes on.
    fn note(&self, text: &str);

    /// A line that a program printed which runs for the user.
    fn output(&self, _line: &str) {}

    /// From here on the work asks whether it is to stop ([`Progress::is_cancelled`]), and ends cleanly.
    /// Before, an interruption ends the program.
    fn heed_interruptions(&self) {}
}

/// Reports to nobody; remarks go to the log.
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
