//! Running a command inside an environment, in namespaces of its own.
//!
//! ```text
//! karapace ── process 1 inside ── command
//!    signals and orders →   reaps, passes on
//!                       ← reports
//! ```
//!
//! As root a session has mount, pid, uts and ipc namespaces of its own and shares the caller's ids. As an ordinary user it
//! also has a user namespace, in which the caller's own id is shown as root's (or as the chosen user's) and no other
//! id exists. No program of the host is run.
//!
//! - **Root.** The directory becomes `/` (pivot_root). On it come a new `/proc`, the host's `/sys` read-only, a small
//!   `/dev` (null, zero, full, random, urandom, tty, pts, shm, the usual links, and console where there is a
//!   terminal), the host's `resolv.conf`, read-only, an `/etc/hosts` that knows the session's host name, and what the
//!   [`Policy`] lets in. `/run` and `/tmp` are the environment's own. Missing mount points are made in the environment. On
//!   the host nothing is mounted.
//! - **Streams.** Standard input, output and error are the caller's own descriptors, and so are others that the caller
//!   left open across exec. Nothing is copied or added.
//! - **Signals.** HUP, INT, QUIT, USR1, USR2, ALRM, TERM and WINCH sent to karapace go to the command; how the
//!   terminal is shared stands in `terminal`. Real-time signals are not passed on.
//! - **End.** When the command ends, everything it left behind inside is killed. When karapace dies, however it
//!   dies, so does everything inside.
//! - **Privileges.** A root session is no cage: its root has all capabilities of the caller's.
//!
//! Needs Linux 5.12 (`openat2`, the fd-based mount calls, `mount_setattr`).

mod channel;
mod environment;
mod error;
mod home;
mod host_mounts;
mod hosts;
mod init;
mod inside;
mod mounts;
mod network;
mod plan;
mod policy;
mod refusal;
mod supervise;
mod sys;
mod terminal;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;

use nix::sched::CloneFlags;

pub use error::RuntimeError;
pub use home::HomeMode;
pub use host_mounts::check_places;
pub use policy::{Caller, Choices, Policy, Share, ShareKind};

pub(crate) use environment::PATH;
pub(crate) use plan::SHELL;
pub(crate) use user::root_shell;

use channel::Channel;
use plan::Plan;
use supervise::{Running, SignalMask, failed};
use terminal::Terminal;

/// A command to be run inside an environment.
#[derive(Debug, Clone)]
pub struct Session {
    /// The directory of the host where the environment is mounted. Any other root file system does as well.
    pub root: PathBuf,
    /// The command and its arguments. A name without a slash is looked for in the PATH of the inside. Empty: the login
    /// shell of the user, `/bin/sh` where that is missing.
    pub argv: Vec<OsString>,
    /// Who runs the command: `name`, `uid`, `name:group` or `uid:gid`, from the environment's own lists. `None`: root.
    pub user: Option<String>,
    /// Where the command starts, a path inside. `None`: `/`, and for a login shell the user's home if it is there.
    pub workdir: Option<PathBuf>,
    /// Variables that the command gets beside PATH, HOME, USER, LOGNAME, SHELL, XDG_RUNTIME_DIR, and the caller's TERM
    /// and LANG; they win over those.
    pub env: Vec<(OsString, OsString)>,
    /// The host name inside, of 1 to 64 bytes.
    pub hostname: String,
    /// Hide the control directory `/.karapace`, if there is one, behind an empty read-only one. This keeps programs from
    /// stumbling into it; root inside can take it away.
    pub mask_control: bool,
    /// What of the host is let in, and what is kept away.
    pub policy: Policy,
}

/// Runs a session to its end and returns the command's exit status, or 128 + n when signal n killed it.
///
/// The calling thread's signal mask is changed meanwhile, and signals to the process are received instead of acted on; so
/// call it from the main thread of a process that has no others, or none that leave the forwarded signals unblocked. The
/// session ends when the calling thread does.
///
/// # Errors
/// [`RuntimeError`]; its [`exit_status`](RuntimeError::exit_status) is what `enter` and `exec` end with.
pub fn run(session: &Session) -> Result<i32, RuntimeError> {
    let terminal = Terminal::of_job();
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let mut plan = Plan::new(session, terminal.is_some(), mask.before())?;
    let (channel, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if plan.id_map.is_some() {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    if plan.isolate_network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    let Some(init) = sys::clone_process(namespaces).map_err(refusal::namespaces)? else {
        // Or process 1 would keep karapace's end open and never see it close.
        drop(channel);
        init::main(&mut plan, &inner)
    };
    drop(inner);
    let program =
        plan.command.programs.first().map_or_else(String::new, |p| p.to_string_lossy().into_owned());
    let program = session.argv.first().map_or(program, |p| p.to_string_lossy().into_owned());
    let workdir = session.workdir.clone().unwrap_or_else(|| PathBuf::from("/"));
    Running { init, channel, terminal, program, workdir, mask: &mask }.wait()
}
