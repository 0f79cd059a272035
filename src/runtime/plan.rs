//! Everything a session needs, worked out before any process is made: the inside may not allocate.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::sys::signal::SigSet;
use nix::unistd::{getegid, geteuid};

use super::inside::{Inside, root_error};
use super::mounts::{Mounts, Wanted};
use super::sys::ExecStrings;
use super::user::User;
use super::{RuntimeError, Session, environment, hosts, terminal};

/// The shell of a user who has none, or whose shell is not in the environment.
pub(crate) const SHELL: &str = "/bin/sh";

/// Most bytes of a host name, a limit of the kernel.
const HOSTNAME_MAX: usize = 64;

/// What process 1 does.
pub(super) struct Plan {
    /// The ids of a new user namespace; `None` when the session shares the caller's ids (as root).
    pub id_map: Option<IdMap>,
    pub hostname: OsString,
    /// The session has a network of its own: bring its loopback up.
    pub isolate_network: bool,
    pub mounts: Mounts,
    pub command: Command,
}

/// The lines for `/proc/<pid>/uid_map` and `gid_map`.
pub(super) struct IdMap {
    pub uid: Vec<u8>,
    pub gid: Vec<u8>,
}

/// What the command is and how it is started.
pub(super) struct Command {
    /// Paths inside to try in turn.
    pub programs: Vec<CString>,
    pub argv: ExecStrings,
    pub envp: ExecStrings,
    pub workdir: CString,
    /// Fail when `workdir` cannot be entered, rather than stay in the root directory.
    pub workdir_required: bool,
    /// The ids to take on; `None` in a user namespace, which has no others.
    pub ids: Option<Ids>,
    /// Make the command a process group of its own and give it the terminal.
    pub own_group: bool,
    /// The caller's own signal mask, for the command to have.
    pub signal_mask: SigSet,
}

/// Ids inside.
pub(super) struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Plan {
    /// `own_group` and `signal_mask` are as in [`Command`].
    pub fn new(session: &Session, own_group: bool, signal_mask: SigSet) -> Result<Plan, RuntimeError> {
        let root = fs::canonicalize(&session.root).map_err(|e| {
            root_error(&session.root, nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
        })?;
        let inside = Inside::open(&root)?;
        let user = User::resolve(&inside, session.user.as_deref())?;
        let privileged = has_ids();
        let shell = login_shell(&inside, &user);
        let policy = &session.policy;
        let variables = environment::Wanted { user: &user, shell: &shell, policy, extra: &session.env };
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
            None => (vec![shell.clone()], vec![login_name(&shell)]),
        };
        let envp = variables.into_iter().map(|(key, value)| [key, value].join(OsStr::new("="))).collect();
        let command = Command {
            programs: c_strings("program name", programs)?,
            argv: ExecStrings::new(c_strings("argument", argv)?),
            envp: ExecStrings::new(c_strings("variable", envp)?),
            workdir: c_string("directory", workdir.to_owned())?,
            workdir_required,
            own_group,
            signal_mask,
            ids: privileged.then(|| Ids { uid: user.uid, gid: user.gid, groups: user.groups.clone() }),
        };
        let mounts = Mounts::plan(Wanted {
            root: c_string("root", root.into())?,
            console: terminal::path().map(|path| c_string("terminal", path.into())).transpose()?,
            terminal_group: privileged,
            mask_control: session.mask_control,
            shares: &policy.shares,
            hosts: hosts::text(inside.read(Path::new("/etc/hosts"))?.as_deref(), &session.hostname),
            owner: (user.uid, user.gid),
        })?;
        Ok(Plan {
            id_map: (!privileged).then(|| IdMap::single(&user)),
            hostname: hostname(&session.hostname)?,
            mounts,
            isolate_network: policy.isolate_network,
            command,
        })
    }
}

impl IdMap {
    /// The caller's own ids, shown inside as those of `user`: all that an ordinary user may map alone.
    fn single(user: &User) -> IdMap {
        IdMap {
            uid: format!("{} {} 1\n", user.uid, geteuid()).into_bytes(),
            gid: format!("{} {} 1\n", user.gid, getegid()).into_bytes(),
        }
    }
}

/// Whether the caller is root with other ids beside its own. A root that is an ordinary user's only id, as inside a session
/// of such a user, is denied setgroups for good, and must be treated like that user.
fn has_ids() -> bool {
    geteuid().is_root() && fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"allow"))
}

/// The user's shell, if the environment has it.
fn login_shell(inside: &Inside, user: &User) -> OsString {
    if user.shell.is_absolute() && inside.is_program(&user.shell) {
        user.shell.clone().into()
    } else {
        SHELL.into()
    }
}

/// A login shell knows itself by the dash that its name starts with.
fn login_name(shell: &OsStr) -> OsString {
    let name = Path::new(shell).file_name().unwrap_or(shell);
    OsString::from_vec([b"-", name.as_bytes()].concat())
}

fn hostname(name: &str) -> Result<OsString, RuntimeError> {
    let reason = "must have 1 to 64 bytes and no NUL";
    if name.is_empty() || name.len() > HOSTNAME_MAX || name.contains('\0') {
        return Err(RuntimeError::Invalid { what: "host name", value: name.to_owned(), reason });
    }
    Ok(name.into())
}

fn c_strings(what: &'static str, strings: Vec<OsString>) -> Result<Vec<CString>, RuntimeError> {
    strings.into_iter().map(|s| c_string(what, s)).collect()
}

pub(super) fn c_string(what: &'static str, string: OsString) -> Result<CString, RuntimeError> {
    let printable = string.to_string_lossy().into_owned();
    CString::new(string.into_vec()).map_err(|_| RuntimeError::Invalid {
        what,
        value: printable,
        reason: "must not contain a NUL byte",
    })
}
