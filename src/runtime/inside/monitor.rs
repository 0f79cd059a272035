//! The monitor of a session, inside: starts the command, does what karapace orders, and at the end, or when
//! karapace dies, ends everything that the command has left behind.
//!
//! Whatever the command starts stays below the monitor, also what is orphaned (it is a subreaper), so that a
//! session can end while others go on.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pread;
use nix::unistd::{Pid, chdir, getpid, pipe2, read, setpgid, setsid, write};

use super::account::Account;
use super::bundle::Bundle;
use super::conceal::{StartStrings, conceal};
use super::init::{fail, stand_in};
use super::keyboard::{Ear, Heard};
use super::namespaces::Namespaces;
use super::{capabilities, helper, resize, terminal};
use crate::process;
use crate::runtime::channel::{Channel, MessageBuffer, Order, Report};
use crate::runtime::sys::{self, ExecStrings, Filter};

type Failure = crate::runtime::channel::Failure<'static>;

/// What the command is and how it is started.
pub(in crate::runtime) struct Command {
    /// Paths inside to try in turn.
    pub programs: Vec<CString>,
    pub argv: ExecStrings,
    pub envp: ExecStrings,
    pub workdir: CString,
    /// Fail when `workdir` cannot be entered, rather than stay in the root directory.
    pub workdir_required: bool,
    /// The ids to take on; `None` in a user namespace that has no others.
    pub ids: Option<Ids>,
    /// The caller's terminal, and whether the command has its foreground from the beginning.
    pub terminal: Option<(OwnedFd, bool)>,
    /// Where its output goes, if not where the caller's goes; it has no input then, and no terminal.
    pub output: Option<OwnedFd>,
    /// The first descriptor that is not passed on; at least 3.
    pub preserved: i32,
    /// The entry of the cgroup that it is to be in; see [`crate::runtime::limits`].
    pub group: Option<OwnedFd>,
    /// Executing a program gives it no privileges that the command has not.
    pub no_new_privileges: bool,
    /// Take the capabilities of [`crate::runtime::inside::capabilities`] from it.
    pub fewer_capabilities: bool,
    /// What the monitor may not ask the kernel for, and the command with it. An OCI runtime is not bound by
    /// it: it sets one for what it runs.
    pub filter: Option<Filter>,
    /// What the command may not ask for besides: where something of the host is read-only, and as an OCI
    /// runtime.
    pub further_filter: Option<Filter>,
    /// Of the caller, not for the monitor to keep.
    pub strings: StartStrings,
    /// The host's /dev/null, in the place of streams that are not the caller's.
    pub null: OwnedFd,
    /// The caller's account, where the command runs as the caller.
    pub account: Option<Account>,
    /// What it is started from, where it is an OCI runtime.
    pub bundle: Option<Bundle>,
    /// The caller's own signal mask, for the command to have.
    pub signal_mask: SigSet,
}

/// Ids inside.
pub(in crate::runtime) struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Bytes read at once of the list of children.
const LIST: usize = 16 << 10;

/// In a process of its own: enters the namespaces and makes the monitor there, as a child of karapace.
pub(in crate::runtime) fn enter(namespaces: &Namespaces, command: &Command, channel: &Channel) -> ! {
    // The runtime of a bundle must not have the filter: there the monitor takes it on once that runs.
    let filter = command.filter.as_ref().filter(|_| command.bundle.is_none());
    let keep = [
        Some(channel.fd()),
        Some(&command.null),
        command.output.as_ref(),
        command.group.as_ref(),
        command.terminal.as_ref().map(|(handle, _)| handle),
    ];
    let made = command
        .strings
        .erase()
        .and_then(|()| namespaces.enter())
        .and_then(|()| conceal(&keep, command.preserved, filter))
        .and_then(|()| sys::clone_process(CloneFlags::CLONE_PARENT));
    match made {
        Ok(None) => main(command, channel),
        other => sys::exit(helper::announce(other, channel)),
    }
}

/// In a process of its own: sends a signal to all that live in the namespaces. Monitors have it blocked.
pub(in crate::runtime) fn signal(
    namespaces: &Namespaces,
    signal: i32,
    (strings, filter): (&StartStrings, &Filter),
    channel: &Channel,
) -> ! {
    let made = strings
        .erase()
        .and_then(|()| namespaces.enter())
        .and_then(|()| conceal(&[Some(channel.fd())], 0, Some(filter)))
        .and_then(|()| sys::clone_process(CloneFlags::CLONE_PARENT));
    match made {
        Ok(None) => {
            let all = Pid::from_raw(-1);
            let sent = sys::kill(all, signal).and_then(|()| sys::kill(all, libc::SIGCONT));
            sys::exit(i32::from(sent.is_err()))
        }
        other => sys::exit(helper::announce(other, channel)),
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
            let ended = look_after(&ready, command, channel);
            let report = ended.unwrap_or_else(Report::Failed);
            channel.report(&report).ok();
            ready.end_all();
            if let Some(bundle) = &command.bundle {
                bundle.remove();
            }
            sys::exit(match report {
                Report::Exited(status) => status,
                Report::Killed(signal) => 128 + signal,
                _ => 125,
            })
        }
    }
}

/// A monitor whose command has been started.
struct Ready {
    command: Pid,
    /// Lists the children of this process.
    children: OwnedFd,
    signals: SignalFd,
    /// Hears the keyboard, where there is one.
    ear: Option<Ear>,
}

fn prepare(command: &Command, channel: &Channel) -> Result<Ready, Failure> {
    prctl::set_name(c"karapace-run").map_err(fail("name"))?;
    prctl::set_child_subreaper(true).map_err(fail("take in the orphans of"))?;
    // An ignored SIGCHLD, which exec passes on, would make the statuses of children vanish.
    process::default_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    let path = c"/proc/thread-self/children";
    let failed = |errno| Failure { action: "read", path: path.to_bytes(), errno };
    let list = || open_in_proc(path).map_err(failed);
    // Before there is a command that could not be ended.
    drop(list()?);
    // The command waits until it is looked after; the keyboard may interrupt it as soon as it runs.
    let (held, hold) = pipe2(OFlag::O_CLOEXEC).map_err(fail("start the command of"))?;
    let started = match sys::clone_process(CloneFlags::empty()).map_err(fail("start the command of"))? {
        Some(command) => command,
        None => {
            drop(hold);
            channel.report(&execute(command, held)).ok();
            sys::exit(125)
        }
    };
    let terminal = command.terminal.as_ref().map(|(handle, _)| handle);
    let ear = terminal.map(|_| Ear::open(started)).transpose().map_err(fail("listen to the terminal of"))?;
    drop(held);
    // Its size is the one that a container's terminal follows.
    let first = if command.bundle.is_some() && command.terminal.is_some() { 1 } else { 0 };
    stand_in(&command.null, first).map_err(fail("let go of the streams of"))?;
    let ours = [Some(channel.fd()), Some(&hold), terminal, ear.as_ref().map(Ear::fd)];
    sys::close_all_but(&ours, 3).map_err(fail("let go of the descriptors of"))?;
    if let (Some(filter), Some(_)) = (&command.filter, &command.bundle) {
        sys::set_filter(filter).map_err(fail("filter the system calls of"))?;
    }
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(fail("receive signals of"))?;
    let children = list()?;
    write(&hold, b"x").map_err(fail("start the command of"))?;
    Ok(Ready { command: started, children, signals, ear })
}

/// Opens a file of /proc, over which root inside may have mounted anything.
fn open_in_proc(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    if fstatfs(&file)?.filesystem_type() == PROC_SUPER_MAGIC { Ok(file) } else { Err(Errno::ENXIO) }
}

/// Becomes the command, once it is told to by a byte from `held`. Returns only what went wrong.
fn execute(command: &Command, held: OwnedFd) -> Report<'static> {
    let failed = |action| move |errno| Report::Failed(fail(action)(errno));
    let ready = || {
        if read(&held, &mut [0]).map_err(failed("start the command of"))? == 0 {
            // Nobody would look after it; whoever failed has said so.
            sys::exit(125);
        }
        if command.output.is_some() {
            // Nobody is there to answer what it might ask on the caller's terminal.
            setsid().map(drop).map_err(failed("detach"))?;
        } else {
            setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed("make a process group for"))?;
        }
        if let Some((terminal, true)) = &command.terminal {
            terminal::give_to(terminal, getpid()).map_err(failed("give the terminal to"))?;
        }
        if let Some(output) = &command.output {
            let streams = [(&command.null, 0), (output, 1), (output, 2)];
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
        if let Some(filter) = &command.further_filter {
            sys::set_filter(filter).map_err(failed("filter the system calls of"))?;
        }
        if command.fewer_capabilities {
            capabilities::give_up().map_err(failed("take capabilities from"))?;
        }
        if let Some(ids) = &command.ids {
            sys::set_ids(ids.uid, ids.gid, &ids.groups).map_err(failed("take on the user of"))?;
            // A change of ids may open it to others (/proc/sys/fs/suid_dumpable).
            prctl::set_dumpable(false).map_err(failed("close"))?;
        }
        match chdir(command.workdir.as_c_str()) {
            Err(errno) if command.workdir_required => return Err(Report::Workdir(errno)),
            // Already in the root directory then.
            _ => {}
        }
        if command.terminal.is_some() {
            // Where the caller ignores them, as bash does in $(...), the command would get an error where it
            // is to be lent the terminal.
            for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTSTP] {
                process::default_signal(signal).map_err(failed("set up signals of"))?;
            }
        }
        // The Rust runtime ignores it, and exec would pass that on.
        process::default_signal(Signal::SIGPIPE).map_err(failed("set up signals of"))?;
        sys::keep_across_exec(3..command.preserved).map_err(failed("pass descriptors on to"))?;
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

/// Reaps what dies, does what karapace orders and says what the keyboard sends, until the command is over.
/// Returns how it ended.
fn look_after(ready: &Ready, command: &Command, channel: &Channel) -> Result<Report<'static>, Failure> {
    let (mut buffer, mut ear) = (MessageBuffer::new(), ready.ear.as_ref());
    loop {
        let mut fds = [
            PollFd::new(ready.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(ear.map_or(channel.as_fd(), AsFd::as_fd), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other.map_err(fail("wait for"))?,
        };
        let [died, ordered, heard] = fds.map(|fd| fd.any().unwrap_or(true));
        if let (true, Some(open)) = (heard, ear) {
            match open.hear().map_err(fail("listen to the terminal of"))? {
                // Before there is a container: it begins with the size that there is.
                Heard::Signal(libc::SIGWINCH) if command.bundle.is_some() => {
                    resize::follow(ready.command).unwrap_or(());
                }
                Heard::Signal(libc::SIGWINCH) | Heard::All => {}
                Heard::Signal(signal) => {
                    channel.report(&Report::Keyboard(signal)).map_err(fail("speak for"))?;
                }
                Heard::Gone => ear = None,
            }
        }
        if died {
            while ready.signals.read_signal().map_err(fail("receive signals of"))?.is_some() {}
            if let Some(end) = ready.reap(ear, channel).map_err(fail("wait for"))? {
                return Ok(end);
            }
        }
        if ordered {
            match channel.next_order(&mut buffer).map_err(fail("take orders for"))? {
                Some(order) => obey(order, ready.command, command).map_err(fail("signal"))?,
                // Karapace is gone.
                None => return Ok(Report::Exited(125)),
            }
        }
    }
}

/// A wait status as a shell shows it: the exit status, or 128 + the signal that killed.
pub(in crate::runtime) fn shell_status(status: libc::c_int) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

fn obey(order: Order, process: Pid, command: &Command) -> Result<(), Errno> {
    let group = Pid::from_raw(-process.as_raw());
    match order {
        Order::Prepare => Ok(()),
        Order::Signal(signal) => sys::kill(process, signal),
        Order::SignalGroup(signal) => sys::kill(group, signal),
        Order::Continue { foreground } => {
            if let (true, Some((terminal, _))) = (foreground, &command.terminal) {
                terminal::give_to(terminal, process)?;
            }
            sys::kill(group, libc::SIGCONT)
        }
    }
}

impl Ready {
    /// Collects every dead child, and reports stops where there is a terminal. Returns how the command ended,
    /// once it has.
    fn reap(&self, ear: Option<&Ear>, channel: &Channel) -> Result<Option<Report<'static>>, Errno> {
        let flags = libc::WNOHANG | if self.ear.is_some() { libc::WUNTRACED } else { 0 };
        loop {
            let (pid, status) = match sys::wait(None, flags) {
                Ok(None) | Err(Errno::ECHILD) => return Ok(None),
                other => other?.ok_or(Errno::ECHILD)?,
            };
            if let Some(ear) = ear
                && ear.process() == pid
                && libc::WIFSTOPPED(status)
            {
                sys::kill(pid, libc::SIGCONT)?;
            }
            if pid != self.command {
                continue;
            }
            if libc::WIFSTOPPED(status) {
                channel.report(&Report::Stopped(libc::WSTOPSIG(status)))?;
            } else if libc::WIFSIGNALED(status) {
                let signal = libc::WTERMSIG(status);
                if let (Some(ear), libc::SIGINT | libc::SIGQUIT) = (ear, signal)
                    && ear.has_heard(signal)?
                {
                    channel.report(&Report::Keyboard(signal))?;
                }
                return Ok(Some(Report::Killed(signal)));
            } else {
                return Ok(Some(Report::Exited(libc::WEXITSTATUS(status))));
            }
        }
    }

    /// Kills all that is below this process. The children of who is killed become children of ours and are
    /// killed next.
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
                        // A child that is gone already, or one that the kernel protects: there is nothing
                        // else to be done.
                        sys::kill(Pid::from_raw(pid), libc::SIGKILL).ok();
                    }
                    pid = 0;
                }
            }
        }
    }
}
