//! This process as the system sees it: what it inherits from who starts it, and what it makes of that.
//!
//! A server outlives its starter and serves others, so it begins from a state of its own, whoever starts it:
//! a shell with limits, a build with a job server, a script that ignores signals. The command of a session
//! gets what the caller has.

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

/// Limits that would end a server or make it fail its callers' requests: (resource, what `ulimit` calls it,
/// its unit, what it does).
const LIMITS: [(Resource, &str, &str, &str); 5] = [
    (Resource::RLIMIT_FSIZE, "-f", "bytes", "larger files cannot be written (EFBIG)"),
    (Resource::RLIMIT_CPU, "-t", "seconds", "the mount ends when it has used that much processor time"),
    (Resource::RLIMIT_AS, "-v", "bytes", "the mount ends when it needs more memory"),
    (Resource::RLIMIT_DATA, "-d", "bytes", "the mount ends when it needs more memory"),
    (Resource::RLIMIT_NOFILE, "-n", "files", "no more files can be in use at a time"),
];

/// A limit below this many open files is worth a warning.
const FEW_FILES: u64 = 1024;

/// As many open files as a server asks for where it may: what the kernel allows by default
/// (/proc/sys/fs/nr_open).
const MANY_FILES: u64 = 1 << 20;

/// What the kernel gives the first program (_STK_LIM in include/uapi/linux/resource.h).
const STACK: u64 = 8 << 20;

/// Signals that a server leaves as they are: the runtime catches the first two and ignores the third.
const KEPT: [Signal; 3] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGPIPE];

/// How many descriptors the caller has left open from 3 on without a gap.
static INHERITED: OnceLock<u32> = OnceLock::new();

/// Begins the program: keeps the descriptors that it was started with from all that it will start, and hears
/// of its children's ends whatever the caller ignores. To be called first in `main`, before anything is
/// opened.
pub fn begin() {
    // Neither fails for these arguments.
    default_signal(Signal::SIGCHLD).unwrap_or(());
    let open = (3..).take_while(|number: &RawFd| sys::is_open(*number)).count();
    if let Err(errno) = sys::close_on_exec(3) {
        tracing::debug!("descriptors stay open in what is started: {errno}");
    }
    INHERITED.get_or_init(|| u32::try_from(open).unwrap_or(u32::MAX));
}

/// How many descriptors from 3 on are the caller's; those after them may be our own.
pub fn inherited_descriptors() -> u32 {
    INHERITED.get().copied().unwrap_or(0)
}

/// Gives a server a state of its own, but for its limits: file mode mask, signals, place in the queue for the
/// processor and for being killed when memory runs out. What it may not change is said in the log.
pub fn become_server() -> Result<(), Errno> {
    // For mount points; what is in the store has modes of its own.
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
        tracing::warn!("stays as nice as who started it: {error}");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "0") {
        tracing::debug!("/proc/self/oom_score_adj stays as it is: {error}");
    }
    Ok(())
}

/// Lifts the limits that would end a server, as far as it may, and says in the log what stays; a file that
/// becomes too long all the same is an error of its writer (EFBIG), and no signal.
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

/// The limits that a server started by this process will keep, and what they do, a sentence each. One with
/// CAP_SYS_RESOURCE, as root has it but in some containers, lifts all of them.
pub fn lasting_limits() -> Vec<String> {
    let lifts = capabilities(None).is_ok_and(|held| held.effective.contains(CapabilitySet::SYS_RESOURCE));
    if lifts { Vec::new() } else { harmful_limits() }
}

/// The hard limits of this process that would harm a server.
fn harmful_limits() -> Vec<String> {
    let lasting = LIMITS.iter().filter_map(|(resource, option, unit, effect)| {
        let (_, hard) = getrlimit(*resource).ok()?;
        let harms = if *resource == Resource::RLIMIT_NOFILE { hard < FEW_FILES } else { hard != RLIM_INFINITY };
        harms.then(|| {
            format!(
                "the hard limit `ulimit -H {option}` of {hard} {unit} stays: {effect}; start it from a shell without that limit"
            )
        })
    });
    lasting.collect()
}

/// An interrupt, SIGINT or SIGQUIT, that ended a command, and who else has to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupt {
    /// The signal.
    pub signal: Signal,
    /// The keyboard sent it to the command's process group alone: all of the caller's is to have it.
    pub whole_group: bool,
}

/// Ends this process by the interrupt that ended its command, as shells expect. Returns only where the signal
/// has no effect.
pub fn die_of(interrupt: Interrupt) {
    let Interrupt { signal, whole_group } = interrupt;
    let die = || {
        // SIGQUIT leaves a core file: of the command, not of us.
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        default_signal(signal)?;
        SigSet::from(signal).thread_unblock()?;
        if whole_group { killpg(getpgrp(), signal) } else { raise(signal) }
    };
    if let Err(errno) = die() {
        tracing::debug!("cannot end by {signal}: {errno}");
    }
}
