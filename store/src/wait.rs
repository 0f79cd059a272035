//! Waiting with an end: for an event of a descriptor or, by asking again and again, for what the kernel
//! reports no event of, such as another process's lock, or a file that is about to be removed. Where there is
//! an event (a pidfd, a socket, a condition variable, a channel), wait for that instead of asking.
//!
//! To cancel a wait, let the attempt return an error: it ends the wait at once.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The first pause.
const SHORTEST: Duration = Duration::from_millis(1);

/// No pause is longer. Short enough that a user does not notice it.
const LONGEST: Duration = Duration::from_millis(20);

/// The end of a wait.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    start: Instant,
    patience: Duration,
}

impl Deadline {
    /// A wait that begins now and ends after `patience`.
    pub fn after(patience: Duration) -> Deadline {
        Deadline { start: Instant::now(), patience }
    }

    /// A wait that begins now and does not end by itself.
    pub fn never() -> Deadline {
        Deadline::after(Duration::MAX)
    }

    /// How long the wait has lasted.
    pub fn waited(&self) -> Duration {
        self.start.elapsed()
    }

    /// How long the wait may still last.
    pub fn left(&self) -> Duration {
        self.patience.saturating_sub(self.waited())
    }

    /// Whether the patience has run out.
    pub fn has_passed(&self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps before the next attempt: a quarter of the time waited so far, from 1 to 20 milliseconds, so
    /// that a short wait is hardly prolonged and a long one costs little. Does not sleep past the deadline.
    pub fn pause(&self) {
        std::thread::sleep(pause_after(self.waited(), self.patience));
    }

    /// Repeats `attempt` until it returns a value. Returns `None` if the patience runs out first; there is
    /// always at least one attempt, and one when the time is up.
    ///
    /// # Errors
    /// The first error of `attempt`, which ends the wait.
    pub fn until<T, E>(&self, mut attempt: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        loop {
            let is_last = self.has_passed();
            let found = attempt()?;
            if found.is_some() || is_last {
                return Ok(found);
            }
            self.pause();
        }
    }
}

/// Like [`Deadline::until`], for a wait that begins now and ends after `patience`.
///
/// # Errors
/// The first error of `attempt`, which ends the wait.
pub fn until<T, E>(
    patience: Duration,
    attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    Deadline::after(patience).until(attempt)
}

/// Waits until one of `events`, or an error or the other end's closing, is reported for the descriptor.
/// Returns false if the patience runs out first. A signal does not end the wait.
///
/// # Errors
/// Those of poll(2), except EINTR.
pub fn for_event(of: impl AsFd, events: PollFlags, patience: Duration) -> io::Result<bool> {
    let deadline = Deadline::after(patience);
    let mut polled = [PollFd::new(of.as_fd(), events)];
    loop {
        let left = deadline.left();
        // Rounded up to milliseconds: a shorter rest is not waited for by polling without a pause.
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_micros(999)));
        match poll(&mut polled, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn pause_after(waited: Duration, patience: Duration) -> Duration {
    (waited / 4).clamp(SHORTEST, LONGEST).min(patience.saturating_sub(waited))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_grow_and_do_not_pass_the_deadline() {
        let pauses = [0, 4, 40, 80, 90, 95, 100, 200].map(|waited| pause_after(waited * MS, 100 * MS));
        assert_eq!(pauses.map(|pause| pause.as_millis()), [1, 1, 10, 20, 10, 5, 0, 0]);
        assert_eq!(pause_after(Duration::from_secs(1 << 40), Duration::MAX), LONGEST);
    }

    #[test]
    fn a_wait_ends_with_the_value() {
        let mut left = 3;
        let found = until(Duration::MAX, || {
            left -= 1;
            Ok::<_, ()>((left == 0).then_some("there"))
        });
        assert_eq!(found, Ok(Some("there")));
    }

    #[test]
    fn a_wait_ends_when_the_patience_runs_out() {
        let start = Instant::now();
        assert_eq!(until(20 * MS, || Ok::<Option<()>, ()>(None)), Ok(None));
        assert!(start.elapsed() >= 20 * MS);
    }

    #[test]
    fn without_patience_there_is_one_attempt() {
        let mut attempts = 0;
        let mut attempt = |found| {
            attempts += 1;
            Ok::<Option<()>, ()>(found)
        };
        assert_eq!(until(Duration::ZERO, || attempt(None)), Ok(None));
        assert_eq!(until(Duration::ZERO, || attempt(Some(()))), Ok(Some(())));
        assert_eq!(attempts, 2);
    }

    #[test]
    fn an_error_ends_the_wait() {
        let mut attempts = 0;
        let ended = until(Duration::MAX, || {
            attempts += 1;
            if attempts < 3 { Ok(None::<()>) } else { Err("cancelled") }
        });
        assert_eq!((ended, attempts), (Err("cancelled"), 3));
    }

    #[test]
    fn an_event_ends_the_wait() {
        let (reader, writer) = std::io::pipe().unwrap();
        let wait = |patience| for_event(&reader, PollFlags::POLLIN, patience).unwrap();
        assert!(!wait(Duration::ZERO));
        let start = Instant::now();
        assert!(!wait(20 * MS));
        assert!(start.elapsed() >= 20 * MS);
        let closes = std::thread::spawn(move || drop(writer));
        assert!(wait(Duration::MAX));
        closes.join().unwrap();
    }

    #[test]
    fn what_has_no_deadline_does_not_pass() {
        let endless = Deadline::never();
        endless.pause();
        assert!(!endless.has_passed() && endless.waited() >= MS);
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }
}
