//! Running a command inside an environment, in namespaces of its own.
//!
//! ```text
//! karapace ── monitor ── command        karapace (a second session) ── monitor ── command
//!    orders →          ← reports
//!                          process 1 (one for all of them)
//! ```
//!
//! An *inside* is a set of namespaces with its process 1 ([`Backend::start`]); any number of sessions run a command each in it
//! ([`Backend::join`]).
//! As root it has mount, pid, uts and ipc namespaces of its own and shares the caller's ids. As an ordinary user it also has a
//! user namespace: one with the whole range of ids that /etc/subuid gives the user ([`ranges`]), if the root is mounted in
//! such a one, else one in which the caller's own id is shown as root's (or as the chosen user's) and no other id exists. No
//! program of the host is run, but for newuidmap and newgidmap.
//!
//! - **Root.** The directory becomes `/` (pivot_root). On it come a new `/proc`, the host's `/sys` read-only, a small
//!   `/dev` (null, zero, full, random, urandom, tty, pts, shm, the usual links, and console where there is a
//!   terminal), the host's `resolv.conf`, read-only, an `/etc/hosts` that knows the session's host name, and what the
//!   [`Policy`] lets in. `/run` and `/tmp` are the environment's own. Missing mount points are made in the environment. On
//!   the host nothing is mounted.
//! - **Streams.** Standard input, output and error are the caller's own descriptors, and so are as many others as are asked
//!   for ([`Session::preserved`]). Nothing is copied or added.
//! - **Signals.** HUP, INT, QUIT, USR1, USR2, ALRM, TERM and WINCH sent to karapace go to the command, which is a process group of
//!   its own; how the terminal is shared stands in `terminal`. Real-time signals are not passed on.
//! - **End.** When the command ends, everything it left behind inside is killed. When karapace dies, however it dies, so
//!   does everything that its command started. With the last session ends process 1, and all else that may live inside.
//! - **Privileges.** Some system calls are denied (`seccomp`), and a command that has one id cannot gain privileges by executing a
//!   program. What karapace itself has inside shows nothing of the caller (`conceal`). A root session is no cage: its root has most
//!   capabilities of the caller's (`capabilities`).
//!
//! Needs Linux 5.12 (`openat2`, the fd-based mount calls, `mount_setattr`).

mod channel;
mod error;
mod inside;
mod limits;
mod plan;
mod policy;
mod supervise;
mod sys;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sched::CloneFlags;
use nix::sys::signal::SigSet;

pub use error::RuntimeError;
pub use inside::namespaces::{NamespaceId, Namespaces};
pub use limits::Limits;
pub use plan::account::{Accounts, SELF};
pub use plan::seen::Seen;
pub use plan::user::User;
pub use policy::home::HomeMode;
pub use policy::host_mounts::check_mounts;
pub use policy::{Caller, Choices, Policy, Share, ShareKind};
pub use supervise::backend::{Backend, backend};
pub use supervise::ranges;
pub use supervise::running::Ended;
pub use supervise::start::Started;

pub(crate) use plan::environment::PATH;
pub(crate) use plan::prepare::{SHELL, has_ids};
pub(crate) use plan::user::root_shell;

use channel::Channel;
use inside::conceal::StartStrings;
use plan::prepare::Command;
use plan::seccomp::Filter;
use supervise::running::{Running, SignalMask, failed};
use supervise::terminal::Terminal;

/// A command to be run inside an environment.
#[derive(Debug, Clone)]
pub struct Session {
    /// The directory of the host where the environment is mounted. Any other root file system does as well.
    pub root: PathBuf,
    /// The root is a FUSE mount: anything else that is found there lies below one that has ended, and is left alone.
    pub served: bool,
    /// The command and its arguments. A name without a slash is looked for in the PATH of the inside. Empty: the login
    /// shell of the user, `/bin/sh` where that is missing.
    pub argv: Vec<OsString>,
    /// Who runs the command: `name`, `uid`, `name:group` or `uid:gid`, from the environment's own lists. `None`: root.
    pub user: Option<String>,
    /// What stands below `root`, where it is known already: whoever cannot see it must have it from another. `None`: it is
    /// looked up.
    pub seen: Option<Seen>,
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
    /// A file that takes standard output and error; the command reads nothing then and shares no terminal. `None`: the
    /// caller's own streams.
    pub output: Option<Arc<File>>,
    /// How many descriptors of the caller's, from 3 on, the command has beside its standard streams.
    pub preserved: u32,
}

impl Session {
    fn seen(&self) -> Result<Seen, RuntimeError> {
        match &self.seen {
            Some(seen) => Ok(seen.clone()),
            None => Seen::look(&self.root, self.user.as_deref()),
        }
    }
}

/// Runs a command in an inside that is there. `make` is told of the command's terminal ([`Command::terminal`]), and the
/// caller's signal mask.
fn join(
    session: &Session,
    namespaces: Namespaces,
    make: impl FnOnce(Option<(OwnedFd, bool)>, SigSet) -> Result<Command, RuntimeError>,
) -> Result<Ended, RuntimeError> {
    let terminal = if session.output.is_some() { None } else { Terminal::of_job() };
    let handle = terminal.as_ref().map(|terminal| Ok((terminal.handle()?, terminal.foreground)));
    let handle = handle.transpose().map_err(failed("share the terminal"))?;
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let mut command = make(handle, mask.before())?;
    // Removed on drop, when nothing of the session lives any more.
    let group = session.policy.limits.enforce();
    command.group = group.as_ref().map(limits::Group::entry).transpose().map_err(failed("limit"))?;
    let (channel, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let Some(helper) = sys::clone_process(CloneFlags::empty()).map_err(failed("start a process"))? else {
        // Or the monitor would keep karapace's end open and never see it close.
        drop(channel);
        inside::monitor::enter(&namespaces, &command, &inner)
    };
    // Held longer, the namespaces would keep mounted what is mounted in them.
    drop((inner, namespaces));
    let monitor = supervise::start::started(&channel, helper)?;
    let program =
        session.argv.first().map_or_else(|| command.program(), |p| p.to_string_lossy().into_owned());
    let workdir = session.workdir.clone().unwrap_or_else(|| PathBuf::from("/"));
    Running { monitor, channel, terminal, program, workdir, mask: &mask }.wait()
}

/// Sends a signal to everything that lives in an inside but its process 1 and the monitors, and lets what is stopped go on.
///
/// # Errors
/// [`RuntimeError`]. That nothing lives there is none.
pub fn signal_all(namespaces: Namespaces, signal: i32) -> Result<(), RuntimeError> {
    let own = (&StartStrings::find()?, &Filter::new()?);
    let mask = SignalMask::block_all().map_err(failed("block signals"))?;
    let (channel, inner) = Channel::pair().map_err(failed("make a socket pair"))?;
    let Some(helper) = sys::clone_process(CloneFlags::empty()).map_err(failed("start a process"))? else {
        drop(channel);
        inside::monitor::signal(&namespaces, signal, own, &inner)
    };
    drop((inner, namespaces));
    let sender = supervise::start::started(&channel, helper)?;
    drop(mask);
    supervise::start::reap(sender)
}
