//! The monitor of a session, inside: starts the command, carries out karapace's orders and, when the command
//! ends or karapace dies, kills everything that the command left behind.
//!
//! All descendants of the command stay below the monitor, orphans too (it is a subreaper), so that one
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
    /// Fail if `workdir` cannot be entered, rather than stay in the root directory.
    pub workdir_required: bool,
    /// The ids to switch to; `None` in a user namespace that has no others.
    pub ids: Option<Ids>,
    /// The caller's terminal, and whether the command starts in its foreground.
    pub terminal: Option<(OwnedFd, bool)>,
    /// Redirects the command's output to this file; it then has no input and no controlling terminal.
    pub output: Option<OwnedFd>,
    /// The first descriptor that is not passed on; at least 3.
    pub preserved: i32,
    /// The descriptor through which the command enters its cgroup; see [`crate::runtime::limits`].
    pub group: Option<OwnedFd>,
    /// Set no_new_privs: executing a program gives the command no privileges that it does not have.
    pub no_new_privileges: bool,
    /// Drop the capabilities listed in [`crate::runtime::inside::capabilities`] from it.
    pub fewer_capabilities: bool,
    /// The seccomp filter of the monitor and of the command. It does not apply to an OCI runtime, which sets
    /// one for what it runs.
    pub filter: Option<Filter>,
    /// A further filter for the command: used if something of the host is read-only, and for an OCI runtime.
    pub further_filter: Option<Filter>,
    /// The caller's start strings, which the monitor must not keep.
    pub strings: StartStrings,
    /// The host's /dev/null; it replaces standard streams that must not be the caller's.
    pub null: OwnedFd,
    /// The caller's account, if the command runs as the caller.
    pub account: Option<Account>,
    /// The bundle to start from, if the command is an OCI runtime.
    pub bundle: Option<Bundle>,
    /// The caller's signal mask, which the command gets.
    pub signal_mask: SigSet,
}

/// User and group ids, as they are inside.
pub(in crate::runtime) struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Size of one read of the list of children, in bytes.
const LIST: usize = 16 << 10;

/// Runs in a process of its own: enters the namespaces and makes the monitor there, as a child of karapace.
pub(in crate::runtime) fn enter(namespaces: &Namespaces, command: &Command, channel: &Channel) -> ! {
    // An OCI runtime must not have the filter: for a bundle the monitor sets its own only after the runtime
    // has been started.
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

/// Runs in a process of its own: sends a signal to every process in the namespaces. Monitors have it blocked.
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
    // Wait until karapace knows this process: an earlier report would be taken for the reply that names it.
    if !matches!(channel.next_order(&mut MessageBuffer::new()), Ok(Some(Order::Prepare))) {
        sys::exit(125);
    }
    // If a report cannot be sent, karapace is gone and the session ends with it.
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
    /// The open list of this process's children.
    children: OwnedFd,
    signals: SignalFd,
    /// The ear, if the session has a terminal.
    ear: Option<Ear>,
}

fn prepare(command: &Command, channel: &Channel) -> Result<Ready, Failure> {
    prctl::set_name(c"karapace-run").map_err(fail("name"))?;
    prctl::set_child_subreaper(true).map_err(fail("adopt the orphans of"))?;
    // SIGCHLD may be ignored, which survives exec; then the statuses of children would be lost.
    process::default_signal(Signal::SIGCHLD).map_err(fail("set up signals of"))?;
    let path = c"/proc/thread-self/children";
    let failed = |errno| Failure { action: "read", path: path.to_bytes(), errno };
    let list = || open_in_proc(path).map_err(failed);
    // Check before the command starts that the list can be read: without it the command's leftovers could not
    // be killed.
    drop(list()?);
    // The command waits on this pipe until the monitor is ready; once it runs, the keyboard may interrupt it.
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
    // A container's terminal follows the size of the one on standard input, so that one stays open.
    let first = if command.bundle.is_some() && command.terminal.is_some() { 1 } else { 0 };
    stand_in(&command.null, first).map_err(fail("close the streams of"))?;
    let ours = [Some(channel.fd()), Some(&hold), terminal, ear.as_ref().map(Ear::fd)];
    sys::close_all_but(&ours, 3).map_err(fail("close the descriptors of"))?;
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

/// Opens a file of /proc. Root inside may have mounted something over it, so the file system type is checked.
fn open_in_proc(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty())?;
    if fstatfs(&file)?.filesystem_type() == PROC_SUPER_MAGIC { Ok(file) } else { Err(Errno::ENXIO) }
}

/// Waits for a byte from `held`, then becomes the command. Returns only on failure.
fn execute(command: &Command, held: OwnedFd) -> Report<'static> {
    let failed = |action| move |errno| Report::Failed(fail(action)(errno));
    let ready = || {
        if read(&held, &mut [0]).map_err(failed("start the command of"))? == 0 {
            // The monitor has failed and has reported it: nothing would look after the command.
            sys::exit(125);
        }
        if command.output.is_some() {
            // A session of its own: nobody is there to answer a question asked on the caller's terminal.
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
            prctl::set_no_new_privs().map_err(failed("set no_new_privs for"))?;
        }
        // Now, while no_new_privs is not needed for it: as the chosen user it would be.
        if let Some(filter) = &command.further_filter {
            sys::set_filter(filter).map_err(failed("filter the system calls of"))?;
        }
        if command.fewer_capabilities {
            capabilities::give_up().map_err(failed("take capabilities from"))?;
        }
        if let Some(ids) = &command.ids {
            sys::set_ids(ids.uid, ids.gid, &ids.groups).map_err(failed("switch to the user of"))?;
            // A change of ids may have made the process dumpable (/proc/sys/fs/suid_dumpable).
            prctl::set_dumpable(false).map_err(failed("close"))?;
        }
        match chdir(command.workdir.as_c_str()) {
            Err(errno) if command.workdir_required => return Err(Report::Workdir(errno)),
            // On failure the command stays in the root directory.
            _ => {}
        }
        if command.terminal.is_some() {
            // If the caller ignores them, as bash does in $(...), the command would get an error instead of
            // being stopped and then lent the terminal.
            for signal in [Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGTSTP] {
                process::default_signal(signal).map_err(failed("set up signals of"))?;
            }
        }
        // The Rust runtime ignores SIGPIPE, and exec would pass that on.
        process::default_signal(Signal::SIGPIPE).map_err(failed("set up signals of"))?;
        sys::keep_across_exec(3..command.preserved).map_err(failed("pass descriptors on to"))?;
        command.signal_mask.thread_set_mask().map_err(failed("set up signals of"))
    };
    match ready() {
        Err(report) => report,
        Ok(()) => Report::Exec(exec_first(command)),
    }
}

/// Executes the first program that exists. As in a shell, one that cannot be executed counts only if no other
/// is found.
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

/// Reaps children, carries out karapace's orders and reports what the keyboard sends, until the command has
/// ended. Returns how it ended.
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
                // An error means that there is no container yet: it starts with the current size.
                Heard::Signal(libc::SIGWINCH) if command.bundle.is_some() => {
                    resize::follow(ready.command).unwrap_or(());
                }
                Heard::Signal(libc::SIGWINCH) | Heard::All => {}
                Heard::Signal(signal) => {
                    channel.report(&Report::Keyboard(signal)).map_err(fail("report on"))?;
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
            match channel.next_order(&mut buffer).map_err(fail("receive orders for"))? {
                Some(order) => obey(order, ready.command, command).map_err(fail("signal"))?,
                // Karapace is gone.
                None => return Ok(Report::Exited(125)),
            }
        }
    }
}

/// Converts a wait status as a shell does: the exit status, or 128 plus the number of the fatal signal.
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
    /// Reaps every dead child and, if there is a terminal, reports stops. Returns how the command ended, once
    /// it has.
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

    /// Kills every descendant of this process. Children of a killed process become children of this one and
    /// are killed next.
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

    /// Kills the children that fit into one read of the list; the rest appear in the next one.
    fn kill_children(&self) {
        let mut list = [0; LIST];
        let Ok(length) = pread(&self.children, &mut list, 0) else { return };
        let mut pid = 0_i32;
        for byte in &list[..length] {
            match byte {
                b'0'..=b'9' => pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0')),
                // Each number in the list ends with a space, so a truncated one is not used.
                _ => {
                    if pid > 1 {
                        // The child may be gone already, or protected by the kernel; nothing else can be
                        // done.
                        sys::kill(Pid::from_raw(pid), libc::SIGKILL).ok();
                    }
                    pid = 0;
                }
            }
        }
    }
}
