//! Works out everything a session needs before any process is made, because the inside may not allocate.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read as _, stderr, stdin, stdout};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{getegid, geteuid, ttyname};

use super::files::root_error;
use super::mounts::Wanted;
use super::seen::Seen;
use super::session::Session;
use super::strings::{c_string, c_strings};
use super::user::User;
use super::{environment, hosts};
use crate::runtime::RuntimeError;
use crate::runtime::error::failed;
use crate::runtime::inside::conceal::StartStrings;
use crate::runtime::inside::init::{IdMap, Preparation};
use crate::runtime::inside::monitor::{Command, Ids};
use crate::runtime::inside::mounts::Mounts;
use crate::runtime::sys::{ExecStrings, Filter};

/// Longest `/etc/resolv.conf`, in bytes.
const RESOLV_CONF_MAX: u64 = 1 << 16;

/// Longest host name, in bytes; a kernel limit.
const HOSTNAME_MAX: usize = 64;

impl Preparation {
    /// `ranged`: the root is mounted in a user namespace with a range of ids, and process 1 is made in it.
    pub fn new(session: &Session, ranged: bool) -> Result<Preparation, RuntimeError> {
        let root = root(session, ranged)?;
        let many_ids = ranged || has_ids();
        if session.overlay.is_some() && !many_ids {
            let reason = "it needs more than one id, to keep its attributes".to_owned();
            return Err(RuntimeError::NoOverlay { reason });
        }
        let Seen { user, hosts, .. } = session.seen()?;
        let id_map = if many_ids { None } else { Some(IdMap::single(&user)) };
        let console = match session.output {
            Some(_) => None,
            None => terminal_path().map(|path| c_string("terminal", path.into())).transpose()?,
        };
        let mounts = Mounts::plan(Wanted {
            root: c_string("root", root.into())?,
            served: session.served,
            overlay: session.overlay.as_ref(),
            ranged,
            console,
            terminal_group: many_ids,
            mask_control: session.mask_control,
            shares: &session.policy.shares,
            covered: &session.policy.covered,
            hosts: hosts::text(hosts.as_deref(), &session.hostname),
            resolv_conf: resolv_conf(),
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
    /// `many_ids`: the inside has more than one id. `terminal` and `signal_mask` are as in [`Command`].
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
            // With a single id, set-user-id programs gain nothing anyway. With many, su and sudo must work.
            no_new_privileges: !many_ids && !policy.privileged,
            fewer_capabilities: has_ids() && !policy.privileged,
            filter: filter(session)?,
            further_filter: (!policy.privileged && policy.has_read_only())
                .then(Filter::of_mounts)
                .transpose()?,
            strings: StartStrings::find()?,
            null: null()?,
            account: seen.accounts.as_ref().map(|lists| lists.shown_to(user, policy)).transpose()?,
            bundle: None,
            signal_mask,
        })
    }

    /// The program to run, for messages.
    pub fn program(&self) -> String {
        self.programs.first().map_or_else(String::new, |p| p.to_string_lossy().into_owned())
    }
}

impl IdMap {
    /// Maps the caller's own ids to those of `user` inside: the only mapping that an ordinary user may write
    /// alone.
    pub fn single(user: &User) -> IdMap {
        IdMap {
            uid: format!("{} {} 1\n", user.uid, geteuid()).into_bytes(),
            gid: format!("{} {} 1\n", user.gid, getegid()).into_bytes(),
        }
    }
}

/// The host's `/etc/resolv.conf`, unless it is too long to be one.
fn resolv_conf() -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let file = fs::File::open("/etc/resolv.conf").ok()?;
    file.take(RESOLV_CONF_MAX + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= RESOLV_CONF_MAX).then_some(text)
}

/// Whether the caller is root with other ids besides its own. A root that is an ordinary user's only id, as
/// in that user's session, is permanently denied setgroups, and must be treated like that user.
pub(crate) fn has_ids() -> bool {
    geteuid().is_root() && fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"allow"))
}

/// The first descriptor that the command does not inherit.
pub(super) fn preserved(session: &Session) -> Result<i32, RuntimeError> {
    i32::try_from(session.preserved).ok().and_then(|count| count.checked_add(3)).ok_or_else(|| {
        let reason = "exceeds the number of descriptors that a process can have".to_owned();
        RuntimeError::Policy { what: format!("--preserve-fds {}", session.preserved), reason }
    })
}

/// The seccomp filter of a session's processes; `None` if the session is privileged.
pub(super) fn filter(session: &Session) -> Result<Option<Filter>, RuntimeError> {
    (!session.policy.privileged).then(Filter::new).transpose()
}

/// Opens the host's /dev/null: the one inside may be anything.
pub(super) fn null() -> Result<OwnedFd, RuntimeError> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    open(c"/dev/null", flags, Mode::empty()).map_err(failed("open /dev/null for the session"))
}

/// A copy of the descriptor of the session's output file, if there is one.
pub(super) fn output(session: &Session) -> Result<Option<OwnedFd>, RuntimeError> {
    let output = session.output.as_ref().map(|file| file.try_clone().map(OwnedFd::from)).transpose();
    output.map_err(|source| RuntimeError::Supervise { action: "use the output file", source })
}

/// The root of a session, as the path that process 1 opens. `ranged` as in [`Preparation::new`].
pub(super) fn root(session: &Session, ranged: bool) -> Result<PathBuf, RuntimeError> {
    if ranged {
        // The root is not mounted in our namespace; the server that mounted it gave this path, without
        // symlinks.
        return Ok(session.root.clone());
    }
    fs::canonicalize(&session.root).map_err(|e| {
        let errno = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO));
        root_error(&session.root, errno)
    })
}

/// A shell is a login shell if its name starts with a dash.
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

/// The path on the host of the terminal that one of the standard streams is connected to.
#[expect(clippy::disallowed_methods, reason = "nothing is written")]
fn terminal_path() -> Option<PathBuf> {
    ttyname(stdin()).or_else(|_| ttyname(stdout())).or_else(|_| ttyname(stderr())).ok()
}
