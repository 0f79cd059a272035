//! The outside of a session: karapace while the command runs.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::Pid;

use super::channel::{Channel, Failure, MessageBuffer, Order, Report};
use super::terminal::Terminal;
use super::{RuntimeError, monitor, refusal, sys};

/// Signals that are passed on to the command.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGWINCH,
];

/// The calling thread's signal mask; put back when dropped.
pub(super) struct SignalMask {
    before: SigSet,
}

impl SignalMask {
    /// Blocks everything, so that the processes to come start in peace.
    pub fn block_all() -> Result<SignalMask, Errno> {
        let before = SigSet::thread_get_mask()?;
        SigSet::all().thread_set_mask()?;
        Ok(SignalMask { before })
    }

    /// The mask as it was.
    pub fn before(&self) -> SigSet {
        self.before
    }

    /// Blocks, beside what was blocked before, only the signals to forward, which the returned descriptor receives.
    fn receive(&self, forwarded: &SigSet) -> Result<SignalFd, Errno> {
        let signals = SignalFd::with_flags(forwarded, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        (self.before | *forwarded).thread_set_mask()?;
        Ok(signals)
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        if let Err(errno) = self.before.thread_set_mask() {
            tracing::warn!("cannot restore the signal mask: {errno}");
        }
    }
}

/// What came of a session, as the inside told it.
enum Outcome {
    Status(i32),
    Error(RuntimeError),
}

/// A session that has been started.
pub(super) struct Running<'s> {
    pub monitor: Pid,
    pub channel: Channel,
    pub terminal: Option<Terminal>,
    /// What the command was asked for by, for messages.
    pub program: String,
    /// The directory that it starts in, for messages.
    pub workdir: PathBuf,
    pub mask: &'s SignalMask,
}

impl Running<'_> {
    /// Passes signals in and reports out until nothing that the command started lives any more. Returns its status.
    pub fn wait(self) -> Result<i32, RuntimeError> {
        let told = self.converse();
        // Also after an error: what was started ends when our end of the channel is shut.
        self.channel.shut().map_err(failed("end the session"))?;
        let status = match sys::wait(Some(self.monitor), 0) {
            Ok(Some((_, status))) => monitor::shell_status(status),
            // The caller ignores SIGCHLD: then only what was told counts.
            Ok(None) | Err(Errno::ECHILD) => 128 + libc::SIGKILL,
            Err(errno) => return Err(failed("wait for the session")(errno)),
        };
        if let Some(terminal) = &self.terminal {
            // The terminal may have gone away together with its window.
            terminal
                .reclaim()
                .unwrap_or_else(|errno| tracing::debug!("cannot take the terminal back: {errno}"));
        }
        match told? {
            // Killed before it could tell anything.
            None => Ok(status),
            Some(Outcome::Status(status)) => Ok(status),
            Some(Outcome::Error(error)) => Err(error),
        }
    }

    fn converse(&self) -> Result<Option<Outcome>, RuntimeError> {
        let mut forwarded: SigSet = FORWARDED.into_iter().collect();
        if self.terminal.is_some() {
            // In a group of its own the command does not get our stops, and ours are to follow its own.
            forwarded.add(Signal::SIGTSTP);
        }
        let signals = self.mask.receive(&forwarded).map_err(failed("receive signals"))?;
        self.order(Order::Prepare)?;
        let mut buffer = MessageBuffer::new();
        let mut outcome = None;
        loop {
            let mut fds = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.channel.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(failed("wait for the session"))?,
            };
            let [signalled, reported] = fds.map(|fd| fd.any().unwrap_or(true));
            if signalled {
                while let Some(info) = signals.read_signal().map_err(failed("receive signals"))? {
                    self.forward(&info)?;
                }
            }
            if reported {
                match self.channel.next_report(&mut buffer).map_err(failed("hear from the session"))? {
                    Some(report) => outcome = outcome.or(self.digest(&report)?),
                    None => return Ok(outcome),
                }
            }
        }
    }

    fn forward(&self, info: &siginfo) -> Result<(), RuntimeError> {
        let signal = info.ssi_signo as i32;
        // What the terminal sends reaches the command directly when it is in our process group.
        let from_terminal =
            info.ssi_code == libc::SI_KERNEL && signal != libc::SIGHUP && signal != libc::SIGALRM;
        if from_terminal && self.terminal.is_none() {
            return Ok(());
        }
        self.order(Order::Signal(signal))
    }

    /// An order that comes too late, when nobody is left to hear it, is no error.
    fn order(&self, order: Order) -> Result<(), RuntimeError> {
        match self.channel.order(order) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            other => other.map_err(failed("give the session an order")),
        }
    }

    /// Acts on a report; returns how the session ended if it says so.
    fn digest(&self, report: &Report<'_>) -> Result<Option<Outcome>, RuntimeError> {
        Ok(Some(match *report {
            Report::Skipped(failure) => {
                skipped(&failure);
                return Ok(None);
            }
            Report::Started(_) | Report::Ready => return Ok(None),
            Report::Stopped(signal) => {
                if let Some(terminal) = &self.terminal {
                    let foreground = terminal.stop_job(signal).map_err(failed("stop"))?;
                    self.order(Order::Continue { foreground })?;
                }
                return Ok(None);
            }
            Report::Exited(status) => Outcome::Status(status),
            Report::Failed(failure) => Outcome::Error(refusal::setup(&failure)),
            Report::Workdir(errno) => {
                Outcome::Error(RuntimeError::Workdir { path: self.workdir.clone(), source: errno.into() })
            }
            Report::Exec(errno) => Outcome::Error(self.exec_error(errno)),
        }))
    }

    fn exec_error(&self, errno: Errno) -> RuntimeError {
        let program = self.program.clone();
        match errno {
            Errno::ENOENT => RuntimeError::NotFound { program },
            _ => RuntimeError::NotExecutable { program, source: errno.into() },
        }
    }
}

/// Says that a step failed which the session can do without.
pub(super) fn skipped(failure: &Failure<'_>) {
    let Failure { action, path, errno } = failure;
    let path = String::from_utf8_lossy(path);
    tracing::warn!("cannot {action} {path} ({errno}); going on without it");
}

/// An error of our own side.
pub(super) fn failed(action: &'static str) -> impl Fn(Errno) -> RuntimeError {
    move |errno| RuntimeError::Supervise { action, source: errno.into() }
}
