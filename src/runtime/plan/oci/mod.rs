//! Sessions for the backend that drives an OCI runtime of the host: crun, runc or youki.
//!
//! ```text
//! karapace ── monitor ── crun ── command        karapace (a second session) ── monitor ── crun ── command
//!                          process 1 (one for all of them)
//! ```
//!
//! Karapace makes the namespaces that hold everything together (process ids, host name, IPC, network, for an
//! ordinary user the user ids, and a private view of the host's mounts), as in the other backend. Inside them
//! each command gets a container of its own, which a runtime makes from a bundle whose root file system is
//! the environment's mount. So signals, the exit status, joining and the end work as in the other backend,
//! and the runtime leaves nothing behind: bundle and state lie on a file system that goes with the last
//! session.

mod config;

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io::stdin;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::SigSet;

use super::prepare::{filter, has_ids, hostname, null, output, preserved, root};
use super::seen::Seen;
use super::session::Session;
use super::strings::{c_string, c_strings};
use super::user::User;
use super::{environment, hosts};
use crate::runtime::RuntimeError;
use crate::runtime::error::refused;
use crate::runtime::inside::bundle::Bundle;
use crate::runtime::inside::capabilities;
use crate::runtime::inside::conceal::StartStrings;
use crate::runtime::inside::init::{IdMap, Preparation};
use crate::runtime::inside::monitor::Command;
use crate::runtime::inside::mounts::Mounts;
use crate::runtime::inside::points::{Point, Points};
use crate::runtime::policy::ShareKind;
use crate::runtime::sys::{ExecStrings, Filter};

/// The supported runtimes, the preferred one first, each with the options that precede `run`. crun can run
/// without cgroups, and refuses to start if both versions are mounted: they are hidden from it.
const RUNTIMES: [(&str, &[&str]); 3] =
    [("crun", &["--cgroup-manager=disabled"]), ("runc", &[]), ("youki", &[])];

/// Where the host mounts cgroups.
const CGROUPS: &CStr = c"/sys/fs/cgroup";

/// A directory that every host has. Inside, an empty file system covers it, which holds bundles and state.
const SCRATCH: &str = "/dev/shm";

/// A runtime of the host.
pub(in crate::runtime) struct Runtime {
    program: PathBuf,
    options: &'static [&'static str],
}

impl Runtime {
    pub(in crate::runtime) fn on_path() -> Result<Runtime, RuntimeError> {
        Runtime::find(&env::var_os("PATH").unwrap_or_default()).ok_or_else(|| {
            let names = RUNTIMES.map(|(name, _)| name).join(", ");
            let reason = format!("none of {names} is on PATH; install one, or choose the namespace backend");
            refused("runtime.backend = \"oci\"", reason)
        })
    }

    fn find(path: &OsStr) -> Option<Runtime> {
        RUNTIMES.iter().find_map(|(name, options)| {
            let programs = env::split_paths(path).map(|dir| dir.join(name));
            let program = programs.into_iter().find(|program| {
                program.is_absolute()
                    && fs::metadata(program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
            })?;
            Some(Runtime { program, options })
        })
    }

    /// A path that must be hidden from the runtime, if there is one.
    fn hidden(&self) -> Option<&'static CStr> {
        (!self.options.is_empty()).then_some(CGROUPS)
    }
}

/// With a single id the runtime itself must be root, and so must the command that it runs.
fn check_user(user: &User, many_ids: bool) -> Result<(), RuntimeError> {
    if many_ids || (user.uid, user.gid) == (0, 0) {
        return Ok(());
    }
    let reason = format!(
        "cannot run as {} with the oci backend: there is only one id, which is root's inside; `karapace doctor` says how to get \
         more",
        String::from_utf8_lossy(&user.name)
    );
    Err(refused("--user", reason))
}

/// What process 1 sets up. `ranged`: the root is mounted in a user namespace with a range of ids.
pub(in crate::runtime) fn preparation(
    session: &Session,
    runtime: &Runtime,
    ranged: bool,
) -> Result<Preparation, RuntimeError> {
    let Seen { user, .. } = session.seen()?;
    let many_ids = ranged || has_ids();
    check_user(&user, many_ids)?;
    let root = root(session, ranged)?;
    if root.starts_with(SCRATCH) {
        let reason = format!("an environment mounted below {SCRATCH} cannot be run; mount it elsewhere");
        return Err(refused("runtime.backend = \"oci\"", reason));
    }
    if session.overlay.is_some() {
        let reason = "an OCI runtime writes into the environment itself".to_owned();
        return Err(RuntimeError::NoOverlay { reason });
    }
    Ok(Preparation {
        id_map: (!many_ids).then(|| IdMap::single(&user)),
        hostname: hostname(&session.hostname)?,
        isolate_network: session.policy.isolate_network,
        mounts: Mounts::beside(CString::from(c"/dev/shm"), runtime.hidden(), points(session, root)?),
        filter: filter(session)?,
        strings: StartStrings::find()?,
    })
}

/// What the runtime will mount on, except in its own `/dev`. A file of the session's that is a directory in
/// the environment is there, and is not covered.
fn points(session: &Session, root: PathBuf) -> Result<Points, RuntimeError> {
    let shares = session.policy.shares.iter().filter(|share| !share.inside.starts_with("/dev"));
    let shares = shares.map(|share| match share.kind {
        ShareKind::Directory | ShareKind::Device { directory: true } => {
            (share.inside.clone(), Point::Directory)
        }
        ShareKind::File | ShareKind::Device { directory: false } => (share.inside.clone(), Point::File),
    });
    let usual = ["/proc", "/sys", "/dev"].map(|path| (PathBuf::from(path), Point::Directory));
    let own = ["/etc/hosts", "/etc/resolv.conf"].map(|path| (PathBuf::from(path), Point::File));
    let list = shares.chain(usual).chain(own);
    let list = list.map(|(path, point)| Ok((c_string("path inside", path.into())?, point)));
    Ok(Points { root: c_string("root", root.into())?, list: list.collect::<Result<_, RuntimeError>>()? })
}

/// The runtime as the command of a session, with the bundle that it runs.
pub(in crate::runtime) fn command(
    session: &Session,
    runtime: &Runtime,
    many_ids: bool,
    terminal: Option<(OwnedFd, bool)>,
    signal_mask: SigSet,
) -> Result<Command, RuntimeError> {
    let seen = session.seen()?;
    check_user(&seen.user, many_ids)?;
    // One inside has several sessions, and process ids are reused, so the name also has the time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let dir = format!("{SCRATCH}/{}-{now}", std::process::id());
    let state = format!("{dir}/state");
    let mut argv: Vec<OsString> = vec![runtime.program.clone().into(), "--root".into(), state.clone().into()];
    argv.extend(runtime.options.iter().map(OsString::from));
    let shares_terminal = matches!(terminal, Some((_, true)));
    argv.push("run".into());
    if session.preserved > 0 {
        argv.push(format!("--preserve-fds={}", session.preserved).into());
    }
    argv.extend(["--bundle", &dir, "karapace"].map(OsString::from));
    let envp = [format!("PATH={}", environment::PATH), format!("XDG_RUNTIME_DIR={dir}")];
    Ok(Command {
        programs: c_strings("program name", vec![runtime.program.clone().into()])?,
        argv: ExecStrings::new(c_strings("argument", argv)?),
        envp: ExecStrings::new(c_strings("variable", envp.map(OsString::from).to_vec())?),
        workdir: CString::from(c"/"),
        workdir_required: true,
        ids: None,
        terminal,
        output: output(session)?,
        preserved: preserved(session)?,
        group: None,
        // The bundle sets these for the command that the runtime runs.
        no_new_privileges: false,
        fewer_capabilities: false,
        filter: filter(session)?,
        further_filter: (!session.policy.privileged).then(Filter::of_runtime),
        strings: StartStrings::find()?,
        null: null()?,
        account: None,
        bundle: Some(bundle(session, &seen, &dir, state, many_ids, shares_terminal)?),
        signal_mask,
    })
}

fn bundle(
    session: &Session,
    seen: &Seen,
    dir: &str,
    state: String,
    many_ids: bool,
    terminal: bool,
) -> Result<Bundle, RuntimeError> {
    let (user, policy) = (&seen.user, &session.policy);
    let shell = user.shell.as_os_str();
    let variables = environment::Wanted { user, shell, policy, extra: &session.env };
    let variables = variables.collect(|key| env::var_os(key))?;
    let workdir = workdir(session, seen);
    let argv = match session.argv.is_empty() {
        true => vec![shell.to_owned(), "-l".into()],
        false => session.argv.clone(),
    };
    let hosts = format!("{dir}/hosts");
    // The runtime refuses to mount a file over a directory.
    let is_file = |path: &str| !seen.directories.iter().any(|found| found == Path::new(path));
    // An ordinary user has many ids only in the user namespace in which the root is mounted too.
    let root = root(session, many_ids && !has_ids())?;
    let wanted = config::Wanted {
        root: root.as_os_str(),
        argv: &argv,
        variables: &variables,
        workdir: workdir.as_os_str(),
        ids: (user.uid, user.gid),
        groups: &user.groups,
        capabilities: match (has_ids(), policy.privileged) {
            (false, _) => u64::MAX,
            (true, true) => own_capabilities()?,
            (true, false) => capabilities::without(own_capabilities()?),
        },
        terminal: if terminal { Some(terminal_size()) } else { None },
        many_ids,
        mask_control: session.mask_control,
        no_new_privileges: !many_ids && !policy.privileged,
        filter: !policy.privileged,
        keep_read_only: policy.has_read_only(),
        shares: &policy.shares,
        covered: &policy.covered,
        hosts: is_file("/etc/hosts").then_some(hosts.as_str()),
        resolv_conf: Path::new("/etc/resolv.conf").exists() && is_file("/etc/resolv.conf"),
    };
    let config = config::text(&wanted)?;
    let path = |path: String| c_string("path", path.into());
    // The runtime would create the directory if it is missing.
    let must_be = session.workdir.as_ref().filter(|dir| !is_shared(session, dir));
    Ok(Bundle {
        directories: vec![path(dir.to_owned())?, path(state)?],
        files: vec![
            (path(format!("{dir}/config.json"))?, config),
            (path(hosts.clone())?, hosts::text(seen.hosts.as_deref(), &session.hostname)),
        ],
        root: c_string("root", root.into())?,
        served: session.served,
        programs: programs(session, &argv[0], &variables, &workdir)?,
        workdir: must_be.map(|dir| c_string("directory", dir.into())).transpose()?,
    })
}

/// Columns and rows of the terminal on standard input; zeros if they cannot be read.
fn terminal_size() -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(stdin());
    size.map_or((0, 0), |size| (size.ws_col, size.ws_row))
}

/// This process's effective capabilities, one bit each; root's session has the same.
fn own_capabilities() -> Result<u64, RuntimeError> {
    let sets = rustix::thread::capabilities(None).map_err(|errno| RuntimeError::Supervise {
        action: "read this process's capabilities",
        source: errno.into(),
    })?;
    Ok(sets.effective.bits())
}

fn workdir(session: &Session, seen: &Seen) -> PathBuf {
    match (&session.workdir, &session.policy.home) {
        (Some(dir), _) => dir.clone(),
        (None, Some(home)) if session.argv.is_empty() => home.clone(),
        (None, None) if session.argv.is_empty() && seen.has_home => seen.user.home.clone(),
        _ => "/".into(),
    }
}

/// Whether a path inside lies in a share.
fn is_shared(session: &Session, path: &Path) -> bool {
    session.policy.shares.iter().any(|share| path.starts_with(&share.inside))
}

/// The paths in the environment where the program may be; empty if one of them lies in a share.
fn programs(
    session: &Session,
    program: &OsStr,
    variables: &[(OsString, OsString)],
    workdir: &Path,
) -> Result<Vec<CString>, RuntimeError> {
    let places = environment::candidates(program, variables);
    if places.is_empty() {
        return Err(RuntimeError::NotFound { program: program.to_string_lossy().into_owned() });
    }
    let places: Vec<_> = places.iter().map(|place| workdir.join(place)).collect();
    if places.iter().any(|place| is_shared(session, place)) {
        return Ok(Vec::new());
    }
    c_strings("program name", places.into_iter().map(PathBuf::into_os_string).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn with_one_id_only_root_can_run_commands() {
        let user = |uid, gid| User {
            uid,
            gid,
            groups: vec![gid],
            name: b"ana".to_vec(),
            home: "/home/ana".into(),
            shell: "/bin/sh".into(),
        };
        assert!(check_user(&user(0, 0), false).is_ok());
        assert!(check_user(&user(1000, 1000), true).is_ok());
        for (uid, gid) in [(1000, 1000), (0, 1000), (1000, 0)] {
            let error = check_user(&user(uid, gid), false).unwrap_err().to_string();
            assert!(error.starts_with("--user: cannot run as ana with the oci backend"), "{error}");
        }
    }

    #[test]
    fn the_first_runtime_on_path_by_preference() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (path, mode) in [(a.join("runc"), 0o755), (b.join("crun"), 0o755), (a.join("youki"), 0o644)] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let on = |dirs: &[&Path]| Runtime::find(&env::join_paths(dirs).unwrap()).map(|found| found.program);
        assert_eq!(on(&[&a, &b]), Some(b.join("crun")));
        assert_eq!(on(&[&a]), Some(a.join("runc")));
        fs::remove_file(a.join("runc")).unwrap();
        assert_eq!(on(&[&a]), None, "not executable");
        assert!(Runtime::find(OsStr::from_bytes(b"relative:")).is_none());
    }
}
