//! The state of this process: what it inherits from its parent, and what it changes.
//!
//! A server outlives the process that started it and serves others, so it sets up a state of its own,
//! whatever starts it: a shell with limits, a build with a job server, a script that ignores signals. A
//! session's command inherits the caller's state.

pub mod signals;
mod sys;

use std::fs;
use std::os::fd::RawFd;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, killpg, raise};
use nix::sys::stat::{Mode, umask};
use nix::unistd::getpgrp;
use rustix::thread::{CapabilitySet, capabilities};

pub(crate) use sys::{default_signal, ignore_signal};

/// Limits that would end a server or make its callers' requests fail: (resource, option of `ulimit`, unit,
/// effect).
const LIMITS: [(Resource, &str, &str, &str); 5] = [
    (Resource::RLIMIT_FSIZE, "-f", "bytes", "larger files cannot be written (EFBIG)"),
    (Resource::RLIMIT_CPU, "-t", "seconds", "the mount ends after that much processor time"),
    (Resource::RLIMIT_AS, "-v", "bytes", "the mount ends when it needs more memory"),
    (Resource::RLIMIT_DATA, "-d", "bytes", "the mount ends when it needs more memory"),
    (Resource::RLIMIT_NOFILE, "-n", "files", "no more files can be in use at once"),
];

/// A limit below this many open files is worth a warning.
const FEW_FILES: u64 = 1024;

/// How many open files a server asks for: the most that the kernel allows by default (/proc/sys/fs/nr_open).
const MANY_FILES: u64 = 1 << 20;

/// Stack limit of the first program, in bytes (_STK_LIM in include/uapi/linux/resource.h).
const STACK: u64 = 8 << 20;

/// Signals whose disposition a server keeps: the Rust runtime handles the first two and ignores the third.
const KEPT: [Signal; 3] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGPIPE];

/// How many descriptors, from 3 on without a gap, the caller left open.
static INHERITED: OnceLock<u32> = OnceLock::new();

/// Sets up the process: keeps the inherited descriptors from all programs that it starts, and makes sure that
/// the statuses of its children are not discarded, even if the caller ignores SIGCHLD. Must be called first
/// in `main`, before anything is opened.
pub fn begin() {
    // Neither call fails with these arguments.
    default_signal(Signal::SIGCHLD).unwrap_or(());
    let open = (3..).take_while(|number: &RawFd| sys::is_open(*number)).count();
    if let Err(errno) = sys::close_on_exec(3) {
        tracing::debug!("descriptors stay open in started processes: {errno}");
    }
    INHERITED.get_or_init(|| u32::try_from(open).unwrap_or(u32::MAX));
}

/// How many descriptors from 3 on are the caller's; later ones may be our own.
pub fn inherited_descriptors() -> u32 {
    INHERITED.get().copied().unwrap_or(0)
}

/// Gives a server a state of its own, except for its limits: umask, signals, nice value and oom_score_adj.
/// Logs what it is not permitted to change.
///
/// # Errors
/// The errno of changing a signal's disposition or the signal mask.
pub fn become_server() -> Result<(), Errno> {
    // The umask affects mount points; files in the store get explicit modes.
    umask(Mode::from_bits_truncate(0o022));
    for signal in Signal::iterator().filter(|signal| !KEPT.contains(signal)) {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            default_signal(signal)?;
        }
    }
    SigSet::empty().thread_set_mask()?;
    if rustix::process::getpriority_process(None).is_ok_and(|nice| nice > 0)
        && let Err(error) = rustix::process::setpriority_process(None, 0)
    {
        tracing::warn!("cannot set the nice value: {error}");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "0") {
        tracing::debug!("cannot set /proc/self/oom_score_adj: {error}");
    }
    Ok(())
}

/// Lifts the limits that would end a server, as far as permitted, and logs those that stay. Ignores SIGXFSZ,
/// so that a file that grows too large is an error for its writer (EFBIG) and does not end the server.
///
/// # Errors
/// The errno of reading or setting a limit.
pub fn lift_limits() -> Result<(), Errno> {
    ignore_signal(Signal::SIGXFSZ)?;
    for (resource, ..) in LIMITS {
        let (_, hard) = getrlimit(resource)?;
        let most = if resource == Resource::RLIMIT_NOFILE { hard.max(MANY_FILES) } else { RLIM_INFINITY };
        setrlimit(resource, most, most).or_else(|_| setrlimit(resource, hard, hard))?;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_STACK)?;
    setrlimit(Resource::RLIMIT_STACK, soft.max(STACK.min(hard)), hard)?;
    harmful_limits().iter().for_each(|limit| tracing::warn!("{limit}"));
    Ok(())
}

/// The limits that a server started by this process cannot lift, and their effects, one sentence each. A
/// server with CAP_SYS_RESOURCE, which root has except in some containers, lifts all of them.
pub fn lasting_limits() -> Vec<String> {
    let lifts = capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_RESOURCE));
    if lifts { Vec::new() } else { harmful_limits() }
}

/// This process's hard limits that would harm a server, one sentence each.
fn harmful_limits() -> Vec<String> {
    let lasting = LIMITS.iter().filter_map(|(resource, option, unit, effect)| {
        let (_, hard) = getrlimit(*resource).ok()?;
        let harms = if *resource == Resource::RLIMIT_NOFILE { hard < FEW_FILES } else { hard != RLIM_INFINITY };
        harms.then(|| {
            format!(
                "the hard limit `ulimit -H {option}` of {hard} {unit} cannot be raised: {effect}; start karapace from a shell \
                 without that limit"
            )
        })
    });
    lasting.collect()
}

/// An interrupt, SIGINT or SIGQUIT, that ended a command, and which processes must receive it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    /// The signal.
    pub signal: Signal,
    /// Whether the keyboard sent it only to the command's process group: then the caller's whole group must
    /// get it.
    pub whole_group: bool,
}

/// Ends this process with the signal that ended its command, as shells expect. Returns only if the signal has
/// no effect.
pub fn die_of(interrupt: Interrupt) {
    let Interrupt { signal, whole_group } = interrupt;
    let die = || {
        // SIGQUIT dumps core: the command may, but this process must not.
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        default_signal(signal)?;
        SigSet::from(signal).thread_unblock()?;
        if whole_group { killpg(getpgrp(), signal) } else { raise(signal) }
    };
    if let Err(errno) = die() {
        tracing::debug!("cannot end by {signal}: {errno}");
    }
}
