//! Everything a session needs, worked out before any process is made: the inside may not allocate.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid};

use super::account::Account;
use super::oci::Bundle;
use super::seccomp::Filter;
use super::seen::{Seen, root_error};
use super::user::User;
use super::{environment, hosts};
use crate::runtime::inside::conceal::StartStrings;
use crate::runtime::inside::mounts::{Mounts, Wanted};
use crate::runtime::supervise::running::failed;
use crate::runtime::supervise::terminal;
use crate::runtime::sys::ExecStrings;
use crate::runtime::{RuntimeError, Session};

/// The shell of a user who has none, or whose shell is not in the environment.
pub(crate) const SHELL: &str = "/bin/sh";

/// Most bytes of a host name, a limit of the kernel.
const HOSTNAME_MAX: usize = 64;

/// What process 1 does.
pub(in crate::runtime) struct Preparation {
    /// The ids of a new user namespace; `None` when the session shares those that there are.
    pub id_map: Option<IdMap>,
    pub hostname: OsString,
    /// The inside has a network of its own: bring its loopback up.
    pub isolate_network: bool,
    pub mounts: Mounts,
    /// What process 1 itself may not ask the kernel for.
    pub filter: Option<Filter>,
    pub strings: StartStrings,
}

/// The lines for `/proc/<pid>/uid_map` and `gid_map`.
pub(in crate::runtime) struct IdMap {
    pub uid: Vec<u8>,
    pub gid: Vec<u8>,
}

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
    /// What the monitor may not ask the kernel for, and the command with it. An OCI runtime is not bound by it: it sets one for what
    /// it runs.
    pub filter: Option<Filter>,
    /// What the command may not ask for besides: where something of the host is read-only, and as an OCI runtime.
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

impl Preparation {
    /// `ranged`: the root is mounted in a user namespace with a range of ids, in which process 1 is made.
    pub fn new(session: &Session, ranged: bool) -> Result<Preparation, RuntimeError> {
        let root = root(session, ranged)?;
        let many_ids = ranged || has_ids();
        let Seen { user, hosts, .. } = session.seen()?;
        let id_map = if many_ids { None } else { Some(IdMap::single(&user)) };
        let console = match session.output {
            Some(_) => None,
            None => terminal::path().map(|path| c_string("terminal", path.into())).transpose()?,
        };
        let mounts = Mounts::plan(Wanted {
            root: c_string("root", root.into())?,
            served: session.served,
            console,
            terminal_group: many_ids,
            mask_control: session.mask_control,
            shares: &session.policy.shares,
            covered: &session.policy.covered,
            hosts: hosts::text(hosts.as_deref(), &session.hostname),
            owner: (user.uid, user.gid),
        })?;
        let isolate_network = session.policy.isolate_network;
        Ok(Preparation {
            id_map,
            hostname: hostname(&session.hostname)?,
            isolate_network,
            mounts,
            filter: filter(session)?,
            strings: StartStrings::find()?,
        })
    }
}

impl Command {
    /// `many_ids`: the inside has more than one. `terminal` and `signal_mask` are as in [`Command`].
    pub fn new(
        session: &Session,
        many_ids: bool,
        terminal: Option<(OwnedFd, bool)>,
        signal_mask: SigSet,
    ) -> Result<Command, RuntimeError> {
        let seen = session.seen()?;
        let (user, policy) = (&seen.user, &session.policy);
        let shell = user.shell.as_os_str();
        let variables = environment::Wanted { user, shell, policy, extra: &session.env };
        let variables = variables.collect(|key| std::env::var_os(key))?;
        let (workdir, workdir_required) = match &session.workdir {
            Some(dir) => (dir.as_os_str(), true),
            None if session.argv.is_empty() => {
                (policy.home.as_deref().unwrap_or(&user.home).as_os_str(), false)
            }
            None => (OsStr::new("/"), true),
        };
        let (programs, argv) = match session.argv.first() {
            Some(program) => (environment::candidates(program, &variables), session.argv.clone()),
            None => (vec![shell.to_owned()], vec![login_name(shell)]),
        };
        let envp = variables.into_iter().map(|(key, value)| [key, value].join(OsStr::new("="))).collect();
        let output = output(session)?;
        Ok(Command {
            programs: c_strings("program name", programs)?,
            argv: ExecStrings::new(c_strings("argument", argv)?),
            envp: ExecStrings::new(c_strings("variable", envp)?),
            workdir: c_string("directory", workdir.to_owned())?,
            workdir_required,
            ids: many_ids.then(|| Ids { uid: user.uid, gid: user.gid, groups: user.groups.clone() }),
            terminal,
            output,
            preserved: preserved(session)?,
            group: None,
            // With one id set-user-id programs gain nothing anyway; with more, su and sudo are there to be used.
            no_new_privileges: !many_ids && !policy.privileged,
            fewer_capabilities: has_ids() && !policy.privileged,
            filter: filter(session)?,
            further_filter: (!policy.privileged && policy.has_read_only())
                .then(Filter::of_mounts)
                .transpose()?,
            strings: StartStrings::find()?,
            null: null()?,
            account: Account::of(&seen, policy)?,
            bundle: None,
            signal_mask,
        })
    }

    /// What is to be run, for messages.
    pub fn program(&self) -> String {
        self.programs.first().map_or_else(String::new, |p| p.to_string_lossy().into_owned())
    }
}

impl IdMap {
    /// The caller's own ids, shown inside as those of `user`: all that an ordinary user may map alone.
    pub fn single(user: &User) -> IdMap {
        IdMap {
            uid: format!("{} {} 1\n", user.uid, geteuid()).into_bytes(),
            gid: format!("{} {} 1\n", user.gid, getegid()).into_bytes(),
        }
    }
}

/// Whether the caller is root with other ids beside its own. A root that is an ordinary user's only id, as inside a session
/// of such a user, is denied setgroups for good, and must be treated like that user.
pub(crate) fn has_ids() -> bool {
    geteuid().is_root() && fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"allow"))
}

/// The first descriptor that is not passed on to the command.
pub(super) fn preserved(session: &Session) -> Result<i32, RuntimeError> {
    i32::try_from(session.preserved).ok().and_then(|count| count.checked_add(3)).ok_or_else(|| {
        let reason = "is more than a process can have".to_owned();
        RuntimeError::Policy { what: format!("--preserve-fds {}", session.preserved), reason }
    })
}

/// What a session's processes may not ask the kernel for, if they are bound.
pub(super) fn filter(session: &Session) -> Result<Option<Filter>, RuntimeError> {
    (!session.policy.privileged).then(Filter::new).transpose()
}

/// The host's /dev/null: the one inside may be anything.
pub(super) fn null() -> Result<OwnedFd, RuntimeError> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    open(c"/dev/null", flags, Mode::empty()).map_err(failed("open /dev/null for the session"))
}

/// A descriptor of the file that takes the output, if there is one.
pub(super) fn output(session: &Session) -> Result<Option<OwnedFd>, RuntimeError> {
    let output = session.output.as_ref().map(|file| file.try_clone().map(OwnedFd::from)).transpose();
    output.map_err(|source| RuntimeError::Supervise { action: "use the file for the output", source })
}

/// The root of a session as process 1 is to open it. `ranged` as in [`Preparation::new`].
pub(super) fn root(session: &Session, ranged: bool) -> Result<PathBuf, RuntimeError> {
    if ranged {
        // Not mounted where we see it, and given by whoever mounted it, without symlinks.
        return Ok(session.root.clone());
    }
    fs::canonicalize(&session.root).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        root_error(&session.root, errno)
    })
}

/// A login shell knows itself by the dash that its name starts with.
fn login_name(shell: &OsStr) -> OsString {
    let name = Path::new(shell).file_name().unwrap_or(shell);
    OsString::from_vec([b"-", name.as_bytes()].concat())
}

pub(super) fn hostname(name: &str) -> Result<OsString, RuntimeError> {
    let reason = "must have 1 to 64 bytes and no NUL";
    if name.is_empty() || name.len() > HOSTNAME_MAX || name.contains('\0') {
        return Err(RuntimeError::Invalid { what: "host name", value: name.to_owned(), reason });
    }
    Ok(name.into())
}

pub(super) fn c_strings(what: &'static str, strings: Vec<OsString>) -> Result<Vec<CString>, RuntimeError> {
    strings.into_iter().map(|s| c_string(what, s)).collect()
}

pub(in crate::runtime) fn c_string(what: &'static str, string: OsString) -> Result<CString, RuntimeError> {
    let printable = string.to_string_lossy().into_owned();
    CString::new(string.into_vec()).map_err(|_| RuntimeError::Invalid {
        what,
        value: printable,
        reason: "must not contain a NUL byte",
    })
}
