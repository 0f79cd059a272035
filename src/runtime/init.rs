//! The inside of a session: process 1, which prepares everything and looks after the command, and the command
//! until it is executed.
//!
//! All of this runs after `clone` in a copy of karapace that has one thread. It must not allocate, take locks,
//! print or panic; everything it needs is in the [`Plan`] made before.

use std::ffi::CStr;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chdir, getpid, sethostname, setpgid, write};

use super::channel::{Channel, Failure, MessageBuffer, Order, Report};
use super::plan::{Command, IdMap, Plan};
use super::{network, sys, terminal};

/// Runs as process 1 of the new namespaces, with all signals blocked, until the command is over.
pub(super) fn main(plan: &mut Plan, channel: &Channel) -> ! {
    // A failed report means that karapace is gone; the kernel kills this process for that anyway.
    let status = match prepare(plan, channel) {
        Err(failure) => {
            channel.report(&Report::Failed(failure)).ok();
            125
        }
        Ok(command) => match look_after(plan, command, channel) {
            Err(failure) => {
                channel.report(&Report::Failed(failure)).ok();
                125
            }
            Ok(status) => {
                plan.mounts.leave();
                channel.report(&Report::Exited(status)).ok();
                status
            }
        },
    };
    // The kernel kills whatever else is left inside.
    sys::exit(status)
}

/// A failure of process 1 itself.
fn fail(action: &'static str) -> impl Fn(Errno) -> Failure<'static> {
    move |errno| Failure { action, path: b"the session", errno }
}

/// Makes the inside and starts the command.
fn prepare<'p>(plan: &'p mut Plan, channel: &Channel) -> Result<Pid, Failure<'p>> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(fail("tie to karapace"))?;
    if orphaned(channel) {
        sys::exit(125);
    }
    prctl::set_name(c"karapace-init").map_err(fail("name"))?;
    // An ignored SIGCHLD, which exec passes on, would make the statuses of children vanish.
    sys::default_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    if let Some(map) = &plan.id_map {
        map.write_own()?;
    }
    sethostname(&plan.hostname).map_err(fail("name the host of"))?;
    if plan.isolate_network {
        network::raise_loopback().map_err(fail("bring up the network of"))?;
    }
    plan.mounts.enter(channel)?;
    match sys::clone_process(CloneFlags::empty()).map_err(fail("start the command of"))? {
        Some(command) => Ok(command),
        None => {
            channel.report(&execute(&plan.command)).ok();
            sys::exit(125)
        }
    }
}

/// Whether karapace died before the kernel was told to kill us for it.
fn orphaned(channel: &Channel) -> bool {
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::ZERO);
    ready.is_ok() && fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLHUP))
}

impl IdMap {
    /// Gives the calling process, alone in a new user namespace, its one id.
    fn write_own(&self) -> Result<(), Failure<'_>> {
        // A group map may be written without privileges only where setgroups is given up.
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", &self.uid)?;
        write_file(c"/proc/self/gid_map", &self.gid)
    }
}

fn write_file(path: &'static CStr, bytes: &[u8]) -> Result<(), Failure<'static>> {
    open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| write(&file, bytes))
        .map(drop)
        .map_err(|errno| Failure { action: "write", path: path.to_bytes(), errno })
}

/// Becomes the command. Returns only what went wrong.
fn execute(command: &Command) -> Report<'static> {
    let failed = |action| move |errno| Report::Failed(fail(action)(errno));
    let ready = || {
        if command.own_group {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed("make a process group for"))?;
            terminal::give_to(getpid()).map_err(failed("give the terminal to"))?;
        }
        if let Some(ids) = &command.ids {
            sys::set_ids(ids.uid, ids.gid, &ids.groups).map_err(failed("take on the user of"))?;
        }
        match chdir(command.workdir.as_c_str()) {
            Err(errno) if command.workdir_required => return Err(Report::Workdir(errno)),
            // Already in the root directory then.
            _ => {}
        }
        // The Rust runtime ignores it, and exec would pass that on.
        sys::default_signal(Signal::SIGPIPE).map_err(failed("set up signals of"))?;
        command.signal_mask.thread_set_mask().map_err(failed("set up signals of"))
    };
    match ready() {
        Err(report) => report,
        Ok(()) => Report::Exec(exec_first(command)),
    }
}

/// Executes the first program that there is. One that may not be run counts only when no other is found,
/// as in a shell.
fn exec_first(command: &Command) -> Errno {
    let mut result = Errno::ENOENT;
    for program in &command.programs {
        match sys::execve(program, &command.argv, &command.envp) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => result = Errno::EACCES,
            other => return other,
        }
    }
    result
}

/// Reaps what dies inside and does what karapace orders, until the command is over. Returns its status.
fn look_after(plan: &Plan, command: Pid, channel: &Channel) -> Result<i32, Failure<'static>> {
    release(plan, channel).map_err(fail("let go of the descriptors of"))?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(fail("receive signals of"))?;
    let mut buffer = MessageBuffer::new();
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(fail("wait for"))?,
        };
        let [died, ordered] = fds.map(|fd| fd.any().unwrap_or(true));
        if died {
            while signals.read_signal().map_err(fail("receive signals of"))?.is_some() {}
            if let Some(status) = reap(command, plan.command.own_group, channel).map_err(fail("wait for"))? {
                return Ok(status);
            }
        }
        if ordered {
            match channel.next_order(&mut buffer).map_err(fail("take orders for"))? {
                Some(order) => obey(order, command).map_err(fail("signal"))?,
                // Karapace is gone without the kernel having killed us: end everything.
                None => sys::exit(125),
            }
        }
    }
}

/// Closes what process 1 has no use for: it would keep files of the caller open, and hold up whoever waits for the
/// end of a pipe that the command has closed.
fn release(plan: &Plan, channel: &Channel) -> Result<(), Errno> {
    sys::close_all_but(channel.fd())?;
    let null = open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    // With a terminal to share, standard input stays the handle on it.
    let first = if plan.command.own_group { 1 } else { 0 };
    (first..=2).try_for_each(|number| sys::replace_fd(&null, number))
}

/// Collects every dead child. Returns the command's status, as a shell would show it, once it is over.
fn reap(command: Pid, report_stops: bool, channel: &Channel) -> Result<Option<i32>, Errno> {
    let flags = libc::WNOHANG | if report_stops { libc::WUNTRACED } else { 0 };
    loop {
        match sys::wait(None, flags) {
            Ok(None) | Err(Errno::ECHILD) => return Ok(None),
            Ok(Some((pid, status))) if pid == command => {
                if libc::WIFSTOPPED(status) {
                    channel.report(&Report::Stopped(libc::WSTOPSIG(status)))?;
                } else {
                    return Ok(Some(shell_status(status)));
                }
            }
            Ok(Some(_)) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// A wait status as a shell shows it: the exit status, or 128 + the signal that killed.
pub(super) fn shell_status(status: libc::c_int) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

fn obey(order: Order, command: Pid) -> Result<(), Errno> {
    match order {
        Order::Signal(signal) => sys::kill(command, signal),
        Order::Continue { foreground } => {
            if foreground {
                terminal::give_to(command)?;
            }
            sys::kill(Pid::from_raw(-command.as_raw()), libc::SIGCONT)
        }
    }
}
