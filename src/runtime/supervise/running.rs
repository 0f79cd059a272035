//! Karapace's side of a session while its command runs.

use std::os::fd::AsFd;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::refusal;
use super::terminal::Terminal;
use crate::process::Interrupt;
use crate::runtime::channel::{Channel, Failure, MessageBuffer, Order, Report};
use crate::runtime::error::failed;
use crate::runtime::inside::monitor;
use crate::runtime::{RuntimeError, sys};

/// Signals that are forwarded to the command.
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

/// The calling thread's previous signal mask; restored on drop.
pub(in crate::runtime) struct SignalMask {
    before: SigSet,
}

impl SignalMask {
    /// Blocks all signals, so that none disturbs new processes before they are set up.
    pub fn block_all() -> Result<SignalMask, Errno> {
        let before = SigSet::thread_get_mask()?;
        SigSet::all().thread_set_mask()?;
        Ok(SignalMask { before })
    }

    /// The mask before the change.
    pub fn before(&self) -> SigSet {
        self.before
    }

    /// Blocks, besides what was blocked before, only the signals to forward, and returns a descriptor that
    /// receives them.
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

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status, or 128 + n if signal n killed it.
    pub status: i32,
    /// Set if the command was killed by an interrupt that the caller should die of too, so that a shell's
    /// loop ends with it.
    pub interrupt: Option<Interrupt>,
}

impl Ended {
    /// A command that exited.
    pub(super) fn with(status: i32) -> Ended {
        Ended { status, interrupt: None }
    }
}

/// How a session ended, as reported from the inside.
enum Outcome {
    Ended(Ended),
    Error(RuntimeError),
}

/// The interrupts seen while a command runs.
#[derive(Default)]
struct Interrupts {
    /// The last signal that the keyboard sent to the command's group.
    keyboard: Option<i32>,
    /// The last signal that karapace received.
    own: Option<i32>,
}

impl Interrupts {
    /// How a command ended that this signal killed.
    fn killed_by(&self, signal: i32) -> Ended {
        let known = [Signal::SIGINT, Signal::SIGQUIT].into_iter().find(|known| *known as i32 == signal);
        let (keyboard, own) = (self.keyboard == Some(signal), self.own == Some(signal));
        let interrupt = known.filter(|_| keyboard || own);
        Ended {
            status: 128 + signal,
            interrupt: interrupt.map(|signal| Interrupt { signal, whole_group: keyboard }),
        }
    }
}

/// A session that has been started.
pub(in crate::runtime) struct Running<'s> {
    pub monitor: Pid,
    pub channel: Channel,
    pub terminal: Option<Terminal>,
    /// The program as it was asked for, for messages.
    pub program: String,
    /// The directory in which it starts, for messages.
    pub workdir: PathBuf,
    pub mask: &'s SignalMask,
}

impl Running<'_> {
    /// Forwards signals and handles reports until every process that the command started has ended. Returns
    /// how the command ended.
    pub fn wait(self) -> Result<Ended, RuntimeError> {
        let told = self.converse();
        // Also after an error: shutting down our end of the channel ends what was started.
        self.channel.shut().map_err(failed("end the session"))?;
        let status = match sys::wait(Some(self.monitor), 0) {
            Ok(Some((_, status))) => monitor::shell_status(status),
            // The caller ignores SIGCHLD, so there is no status; only the reports count.
            Ok(None) | Err(Errno::ECHILD) => 128 + libc::SIGKILL,
            Err(errno) => return Err(failed("wait for the session")(errno)),
        };
        if let Some(terminal) = &self.terminal {
            // The terminal may be gone together with its window.
            terminal
                .reclaim()
                .unwrap_or_else(|errno| tracing::debug!("cannot take the terminal back: {errno}"));
        }
        match told? {
            // The monitor was killed before it could report.
            None => Ok(Ended::with(status)),
            Some(Outcome::Ended(ended)) => Ok(ended),
            Some(Outcome::Error(error)) => Err(error),
        }
    }

    fn converse(&self) -> Result<Option<Outcome>, RuntimeError> {
        let mut forwarded: SigSet = FORWARDED.into_iter().collect();
        if self.terminal.is_some() {
            // The command's own process group does not get our stops, and we must stop only when it does.
            forwarded.add(Signal::SIGTSTP);
        }
        // For the monitor, which a program inside may stop.
        forwarded.add(Signal::SIGCHLD);
        let mut interrupts = Interrupts::default();
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
                    self.forward(&info, &mut interrupts)?;
                }
            }
            if reported {
                match self
                    .channel
                    .next_report(&mut buffer)
                    .map_err(failed("receive reports from the session"))?
                {
                    Some(report) => outcome = outcome.or(self.digest(&report, &mut interrupts)?),
                    None => return Ok(outcome),
                }
            }
        }
    }

    fn forward(&self, info: &siginfo, interrupts: &mut Interrupts) -> Result<(), RuntimeError> {
        let signal = info.ssi_signo as i32;
        if signal == libc::SIGCHLD {
            return self.let_go_on();
        }
        if matches!(signal, libc::SIGINT | libc::SIGQUIT) {
            interrupts.own = Some(signal);
        }
        // The terminal sends its signals to a whole group.
        let from_terminal = info.ssi_code == libc::SI_KERNEL && signal != libc::SIGALRM;
        self.order(if from_terminal { Order::SignalGroup(signal) } else { Order::Signal(signal) })
    }

    /// Continues the monitor if it was stopped: without it nothing looks after the command.
    fn let_go_on(&self) -> Result<(), RuntimeError> {
        let stops = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(self.monitor), stops) {
            Ok(WaitStatus::Stopped(..)) => sys::kill(self.monitor, libc::SIGCONT).map_err(failed("signal")),
            // Its end shows on the channel.
            _ => Ok(()),
        }
    }

    /// Sends an order. It is no error if the monitor is gone already.
    fn order(&self, order: Order) -> Result<(), RuntimeError> {
        match self.channel.order(order) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            other => other.map_err(failed("send an order to the session")),
        }
    }

    /// Acts on a report; returns how the session ended if it says so.
    fn digest(
        &self,
        report: &Report<'_>,
        interrupts: &mut Interrupts,
    ) -> Result<Option<Outcome>, RuntimeError> {
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
            Report::Keyboard(signal) => {
                interrupts.keyboard = Some(signal);
                return Ok(None);
            }
            Report::Exited(status) => Outcome::Ended(Ended::with(status)),
            Report::Killed(signal) => Outcome::Ended(interrupts.killed_by(signal)),
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

/// Logs that a step failed which the session can do without.
pub(super) fn skipped(failure: &Failure<'_>) {
    let Failure { action, path, errno } = failure;
    let path = String::from_utf8_lossy(path);
    tracing::warn!("cannot {action} {path} ({errno}); continuing without it");
}
