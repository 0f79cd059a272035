//! Host directories that the manifest's `[mounts]` names: which may be shown, and where.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::home;
use super::{Caller, Share, ShareKind};
use crate::description::manifest::Mount;
use crate::runtime::RuntimeError;
use crate::runtime::error::refused;

/// Absolute host paths must lie below one of these.
const ALLOWED: [&str; 2] = ["/home", "/tmp"];

/// Paths inside that no mount may cover: the session's own, and the control directory.
const COVERED: [&str; 4] = ["/proc", "/sys", "/dev", "/.karapace"];

/// The shares that `[mounts]` asks for.
pub(super) fn shares(
    mounts: &BTreeMap<String, Mount>,
    caller: &Caller<'_>,
) -> Result<Vec<Share>, RuntimeError> {
    mounts.iter().map(|(label, mount)| share(label, mount, caller)).collect()
}

/// For `build`: refuses early what every session would refuse. Returns a warning for each host path that does
/// not exist yet; sessions refuse it until it does.
///
/// # Errors
/// [`RuntimeError::Policy`], as [`Policy::new`](crate::runtime::Policy::new).
pub fn check_mounts(
    mounts: &BTreeMap<String, Mount>,
    caller: &Caller<'_>,
) -> Result<Vec<String>, RuntimeError> {
    let mut warnings = Vec::new();
    for (label, mount) in mounts {
        let what = key(label);
        place(&what, &mount.container)?;
        let source = Source::of(&what, mount, caller)?;
        match fs::canonicalize(&source.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                source.check(&what, mount, &nearest(&source.path))?;
                warnings.push(format!(
                    "{what}: {}: {error}; enter and exec will fail until it exists",
                    source.path.display()
                ));
            }
            _ => drop(share(label, mount, caller)?),
        }
    }
    Ok(warnings)
}

/// The host side of a mount, before symlinks are resolved.
struct Source {
    path: PathBuf,
    /// The directories below which the path must lie once resolved; `None`: anywhere.
    roots: Option<Vec<PathBuf>>,
}

impl Source {
    fn of(what: &str, mount: &Mount, caller: &Caller<'_>) -> Result<Source, RuntimeError> {
        let mut roots: Vec<PathBuf> = ALLOWED.iter().map(PathBuf::from).collect();
        if let Some(rest) = mount.from_home() {
            let (home, resolved) = home::of_caller(what, caller.variable)?;
            let path = home.join(rest.trim_start_matches('/'));
            roots.push(resolved);
            return Ok(Source { path, roots: Some(roots) });
        }
        if !mount.is_relative() {
            return Ok(Source { path: PathBuf::from(&mount.host), roots: Some(roots) });
        }
        let base = caller.manifest_dir.ok_or_else(|| {
            let reason = format!(
                "{} is relative to the manifest, whose path is not recorded: build the environment again under a new name, or \
                 use an absolute path",
                mount.host
            );
            refused(what, reason)
        })?;
        Ok(Source { path: base.join(&mount.host), roots: None })
    }

    /// Refuses a resolved path that does not lie below one of the roots. The roots are resolved too: `/home`
    /// is a symlink on some systems.
    fn check(&self, what: &str, mount: &Mount, host: &Path) -> Result<(), RuntimeError> {
        let Some(roots) = &self.roots else { return Ok(()) };
        let (home, shared) = (mount.from_home().is_some(), ALLOWED.len());
        let is_below = |(number, root): (usize, &PathBuf)| {
            let root = fs::canonicalize(root).unwrap_or_else(|_| root.clone());
            // The caller's home may be mounted itself; `/home` and `/tmp`, which everybody shares, may not.
            host.starts_with(&root) && (number >= shared || host != root)
        };
        if roots.iter().enumerate().any(is_below) {
            return Ok(());
        }
        let leads = if host == Path::new(&mount.host) {
            String::new()
        } else {
            format!(", which is {},", host.display())
        };
        let rule = if home {
            "the caller's home, /home or /tmp, as a path with ~/ must be"
        } else {
            "/home or /tmp, as an absolute host path must be; a relative one may be anywhere"
        };
        Err(refused(what, format!("{}{leads} is not below {rule}", mount.host)))
    }
}

/// Resolves the part of a path that exists, and appends the rest.
fn nearest(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| fs::canonicalize(above).ok().map(|real| (above, real)));
    match there {
        Some((above, real)) => {
            path.strip_prefix(above).map_or_else(|_| path.to_owned(), |rest| real.join(rest))
        }
        None => path.to_owned(),
    }
}

fn share(label: &str, mount: &Mount, caller: &Caller<'_>) -> Result<Share, RuntimeError> {
    let what = key(label);
    let inside = place(&what, &mount.container)?;
    let source = Source::of(&what, mount, caller)?;
    let host = fs::canonicalize(&source.path).map_err(|error| {
        let path = source.path.display();
        refused(&what, format!("{path}: {error}; create it, or change the manifest and rebuild"))
    })?;
    source.check(&what, mount, &host)?;
    let kind = fs::metadata(&host)
        .map_err(|source| refused(&what, format!("{}: {source}", host.display())))?
        .file_type();
    if kind.is_char_device() || kind.is_block_device() {
        let reason = format!("{} is a device; use [hardware] for devices", host.display());
        return Err(refused(what, reason));
    }
    let kind = if kind.is_dir() { ShareKind::Directory } else { ShareKind::File };
    Ok(Share { what, host, inside, kind, read_only: false })
}

fn key(label: &str) -> String {
    format!("mounts.{label}")
}

/// The path inside, without redundant dots and slashes.
fn place(what: &str, container: &str) -> Result<PathBuf, RuntimeError> {
    let path = Path::new(container);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(refused(what, format!("{container}: the path inside must be absolute and without '..'")));
    }
    let place: PathBuf = path.components().collect();
    if place == Path::new("/") {
        return Err(refused(what, "nothing can be mounted over / itself"));
    }
    match COVERED.iter().find(|covered| place.starts_with(covered)) {
        Some(covered) => {
            let reason =
                format!("{container}: nothing can be mounted on or below {covered}; choose another path");
            Err(refused(what, reason))
        }
        None => Ok(place),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(host: &str, container: &str) -> Mount {
        Mount { host: host.to_owned(), container: container.to_owned() }
    }

    /// The results of a session and of a build for one mount, for a caller with this HOME whose manifest lies
    /// in `base`.
    fn both(host: &str, container: &str, base: &Path, home: Option<&Path>) -> [Result<String, String>; 2] {
        let variable = |key: &str| home.filter(|_| key == "HOME").map(|home| home.as_os_str().to_owned());
        let caller = Caller { instance: "test", manifest_dir: Some(base), variable: &variable };
        let mount = mount(host, container);
        let session = share("data", &mount, &caller).map(|share| share.host.display().to_string());
        let build = check_mounts(&BTreeMap::from([("data".to_owned(), mount)]), &caller);
        [session.map_err(|e| e.to_string()), build.map(|told| told.join("\n")).map_err(|e| e.to_string())]
    }

    fn try_share(host: &str, container: &str, base: Option<&Path>) -> Result<Share, String> {
        let caller = Caller { instance: "test", manifest_dir: base, variable: &|_| None };
        share("data", &mount(host, container), &caller).map_err(|e| e.to_string())
    }

    #[test]
    fn refusals() {
        let dir = tempfile::Builder::new().prefix("kp-mounts").tempdir_in("/tmp").unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        symlink("/etc", dir.path().join("out")).unwrap();
        symlink("/dev/null", dir.path().join("device")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let outside = "is not below /home or /tmp";
        for (host, container, reason) in [
            ("/etc".to_owned(), "/data", outside),
            ("/".to_owned(), "/data", outside),
            ("/tmp".to_owned(), "/data", outside),
            ("/tmp/../etc".to_owned(), "/data", "/tmp/../etc, which is /etc, is not below /home or /tmp"),
            (path("out"), "/data", ", which is /etc, is not below /home or /tmp"),
            (path("out/ssl"), "/data", outside),
            (path("missing"), "/data", "create it"),
            (path("loop"), "/data", "loop"),
            ("device".to_owned(), "/data", "/dev/null is a device; use [hardware] for devices"),
            ("/dev/null".to_owned(), "/data", outside),
            (path(""), "data", "must be absolute"),
            (path(""), "/a/../data", "without '..'"),
            (path(""), "/", "over / itself"),
            (path(""), "//.", "over / itself"),
            (path(""), "/proc", "on or below /proc"),
            (path(""), "/./sys/kernel", "on or below /sys"),
            (path(""), "//dev/shm", "on or below /dev"),
            (path(""), "/.karapace/", "on or below /.karapace"),
        ] {
            let error = try_share(&host, container, Some(dir.path())).unwrap_err();
            assert!(error.starts_with("mounts.data: "), "{error}");
            assert!(error.contains(reason), "{host}:{container} gave {error:?}, not {reason:?}");
            // A build refuses the same, except paths that may still be created.
            let [_, build] = both(&host, container, dir.path(), None);
            if reason == "create it" {
                assert!(build.as_ref().is_ok_and(|told| told.contains("fail until it exists")), "{build:?}");
            } else {
                assert_eq!(build, Err(error));
            }
        }
        let [session, build] = both("/var/no/such/thing", "/data", dir.path(), None);
        assert!(session.unwrap_err().contains("No such file") && build.unwrap_err().contains(outside));
    }

    #[test]
    fn the_callers_home() {
        let dir = tempfile::Builder::new().prefix("kp-mounts").tempdir_in("/var/tmp").unwrap();
        let home = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(home.join("work")).unwrap();
        symlink("/etc", home.join("out")).unwrap();
        let both = |host: &str, home| both(host, "/data", Path::new("/tmp"), home);
        let work = home.join("work").display().to_string();
        assert_eq!(both("~/work", Some(&home)), [Ok(work), Ok(String::new())]);
        assert_eq!(both("~", Some(&home))[0], Ok(home.display().to_string()));
        let [session, build] = both("~/missing", Some(&home));
        assert!(session.unwrap_err().contains("create it") && build.unwrap().contains("until it exists"));
        for (host, home, reason) in [
            ("~/out", Some(home.as_path()), "~/out, which is /etc, is not below the caller's home"),
            ("~/..", Some(&home), "~/.., which is /var/tmp, is not below the caller's home"),
            ("~/x", Some(Path::new("/")), "not a home directory"),
            ("~/x", None, "HOME is not set"),
        ] {
            let [session, build] = both(host, home);
            assert!(session.as_ref().is_err_and(|said| said.contains(reason)), "{host}: {session:?}");
            assert_eq!(build.map(drop), session.map(drop));
        }
        // `~else` is a directory of that name beside the manifest.
        assert!(both("~else/x", Some(&home))[0].as_ref().is_err_and(|said| said.contains("/tmp/~else/x")));
    }

    #[test]
    fn allowed_host_paths() {
        let dir = tempfile::Builder::new().prefix("kp-mounts").tempdir_in("/tmp").unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(base.join("sub")).unwrap();
        fs::write(base.join("file"), "").unwrap();
        symlink("sub", base.join("link")).unwrap();
        let given = |host: &str| try_share(host, "/work//x/", Some(&base.join("sub"))).unwrap();
        let directory = given("./");
        assert_eq!((directory.host, directory.kind), (base.join("sub"), ShareKind::Directory));
        assert_eq!(directory.inside, Path::new("/work/x"));
        assert_eq!(given(base.join("link").to_str().unwrap()).host, base.join("sub"));
        assert_eq!(given("../file").kind, ShareKind::File);
        // Relative paths may lead anywhere.
        assert_eq!(given("../../../etc").host, fs::canonicalize("/etc").unwrap());
        assert!(try_share("./", "/work", None).unwrap_err().contains("relative to the manifest"));
        // A path that merely starts with the same letters as `/dev` may be mounted.
        assert!(try_share("./", "/devel", Some(&base)).is_ok());
    }
}
