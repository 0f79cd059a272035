//! The monitor of a session, inside: starts the command, does what karapace orders, and at the end, or when karapace dies,
//! ends everything that the command has left behind. As in `init`, nothing here allocates.
//!
//! Whatever the command starts stays below the monitor, also what is orphaned (it is a subreaper), so that a session can end
//! while others go on.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::{Pid, chdir, getpid, setpgid, write};

use super::channel::{Channel, MessageBuffer, Order, Report};
use super::init::{fail, release};
use super::namespaces::Namespaces;
use super::plan::Command;
use super::{oci, start, sys, terminal};

type Failure = super::channel::Failure<'static>;

/// Bytes read at once of the list of children.
const LIST: usize = 16 << 10;

/// In a process of its own: enters the namespaces and makes the monitor there, as a child of karapace.
pub(super) fn enter(namespaces: &Namespaces, command: &Command, channel: &Channel) -> ! {
    let made = namespaces.enter().and_then(|()| sys::clone_process(CloneFlags::CLONE_PARENT));
    match made {
        Ok(None) => main(command, channel),
        other => sys::exit(start::announce(other, channel)),
    }
}

/// In a process of its own: sends a signal to all that live in the namespaces. Monitors have it blocked.
pub(super) fn signal(namespaces: &Namespaces, signal: i32, channel: &Channel) -> ! {
    match namespaces.enter().and_then(|()| sys::clone_process(CloneFlags::CLONE_PARENT)) {
        Ok(None) => {
            let all = Pid::from_raw(-1);
            let sent = sys::kill(all, signal).and_then(|()| sys::kill(all, libc::SIGCONT));
            sys::exit(i32::from(sent.is_err()))
        }
        other => sys::exit(start::announce(other, channel)),
    }
}

fn main(command: &Command, channel: &Channel) -> ! {
    // Not before karapace knows who this is: what it heard first would be taken for the answer to that.
    if !matches!(channel.next_order(&mut MessageBuffer::new()), Ok(Some(Order::Prepare))) {
        sys::exit(125);
    }
    // A failed report means that karapace is gone, and then so is this session.
    match prepare(command, channel) {
        Err(failure) => {
            channel.report(&Report::Failed(failure)).ok();
            sys::exit(125)
        }
        Ok(ready) => {
            let ended = look_after(&ready, command.own_group, channel);
            let report = match ended {
                Ok(status) => Report::Exited(status),
                Err(failure) => Report::Failed(failure),
            };
            channel.report(&report).ok();
            ready.end_all();
            if let Some(bundle) = &command.bundle {
                bundle.remove();
            }
            sys::exit(ended.unwrap_or(125))
        }
    }
}

/// A monitor whose command has been started.
struct Ready {
    command: Pid,
    /// Lists the children of this process.
    children: OwnedFd,
    signals: SignalFd,
}

fn prepare(command: &Command, channel: &Channel) -> Result<Ready, Failure> {
    prctl::set_dumpable(false).map_err(fail("close"))?;
    prctl::set_name(c"karapace-run").map_err(fail("name"))?;
    prctl::set_child_subreaper(true).map_err(fail("take in the orphans of"))?;
    // An ignored SIGCHLD, which exec passes on, would make the statuses of children vanish.
    sys::default_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    let path = c"/proc/thread-self/children";
    let failed = |errno| Failure { action: "read", path: path.to_bytes(), errno };
    let list = || open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed);
    // Before there is a command that could not be ended.
    drop(list()?);
    let started = match sys::clone_process(CloneFlags::empty()).map_err(fail("start the command of"))? {
        Some(command) => command,
        None => {
            channel.report(&execute(command)).ok();
            sys::exit(125)
        }
    };
    // With a terminal to share, standard input stays the handle on it.
    let first = if command.own_group { 1 } else { 0 };
    release(&[channel], first).map_err(fail("let go of the descriptors of"))?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    if command.own_group && command.bundle.is_some() {
        // The command has another terminal then, which is to follow this one: its foreground group is told of changes. The
        // command makes the group as well; whoever comes second finds it made.
        setpgid(started, started).ok();
        setpgid(Pid::from_raw(0), started).map_err(fail("join the process group of"))?;
        mask.add(Signal::SIGWINCH);
    }
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(fail("receive signals of"))?;
    Ok(Ready { command: started, children: list()?, signals })
}

/// Becomes the command. Returns only what went wrong.
fn execute(command: &Command) -> Report<'static> {
    let failed = |action| move |errno| Report::Failed(fail(action)(errno));
    let ready = || {
        if command.own_group {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed("make a process group for"))?;
            terminal::give_to(getpid()).map_err(failed("give the terminal to"))?;
        }
        if let Some(output) = &command.output {
            let null = open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed("open /dev/null for"))?;
            let streams = [(&null, 0), (output, 1), (output, 2)];
            streams
                .iter()
                .try_for_each(|(fd, number)| sys::replace_fd(fd, *number))
                .map_err(failed("set up the streams of"))?;
        }
        if let Some(bundle) = &command.bundle {
            bundle.prepare()?;
        }
        if let Some(account) = &command.account {
            account.show().map_err(failed("show the caller as a user of"))?;
        }
        if let Some(group) = &command.group {
            write(group, b"0").map_err(failed("limit"))?;
        }
        if command.no_new_privileges {
            prctl::set_no_new_privs().map_err(failed("bind the privileges of"))?;
        }
        // While we may without giving up privileges: as the chosen user we may not any more.
        if let Some(filter) = &command.filter {
            sys::set_filter(filter).map_err(failed("filter the system calls of"))?;
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

/// Reaps what dies and does what karapace orders, until the command is over. Returns its status.
fn look_after(ready: &Ready, report_stops: bool, channel: &Channel) -> Result<i32, Failure> {
    let Ready { command, signals, .. } = ready;
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
            while let Some(info) = signals.read_signal().map_err(fail("receive signals of"))? {
                if info.ssi_signo == libc::SIGWINCH as u32 {
                    // Before there is a container: it begins with the size that there is.
                    oci::follow(*command).ok();
                }
            }
            if let Some(status) = reap(*command, report_stops, channel).map_err(fail("wait for"))? {
                return Ok(status);
            }
        }
        if ordered {
            match channel.next_order(&mut buffer).map_err(fail("take orders for"))? {
                Some(order) => obey(order, *command).map_err(fail("signal"))?,
                // Karapace is gone.
                None => return Ok(125),
            }
        }
    }
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
        Order::Prepare => Ok(()),
        Order::Signal(signal) => sys::kill(command, signal),
        Order::Continue { foreground } => {
            if foreground {
                terminal::give_to(command)?;
            }
            sys::kill(Pid::from_raw(-command.as_raw()), libc::SIGCONT)
        }
    }
}

impl Ready {
    /// Kills all that is below this process. The children of who is killed become children of ours and are killed next.
    fn end_all(&self) {
        loop {
            self.kill_children();
            match sys::wait(None, 0) {
                Err(Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            while matches!(sys::wait(None, libc::WNOHANG), Ok(Some(_))) {}
        }
    }

    /// Kills the children that fit one reading of the list; whoever is left is in the next.
    fn kill_children(&self) {
        let mut list = [0; LIST];
        let Ok(length) = pread(&self.children, &mut list, 0) else { return };
        let mut pid = 0_i32;
        for byte in &list[..length] {
            match byte {
                b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0')),
                // The list ends each number with a space: one that was cut off is not taken.
                _ => {
                    if pid > 1 {
                        // A child that is gone already, or one that the kernel protects: there is nothing else to be done.
                        sys::kill(Pid::from_raw(pid), libc::SIGKILL).ok();
                    }
                    pid = 0;
                }
            }
        }
    }
}
