//! Host directories of the manifest's `[mounts]`: which may be shown, and where.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::RuntimeError;
use super::policy::{Share, ShareKind, refused};
use crate::manifest::Mount;

/// Absolute host paths must lie below one of these.
const ALLOWED: [&str; 2] = ["/home", "/tmp"];

/// What no mount may cover inside: the session's own, and the control directory.
const COVERED: [&str; 4] = ["/proc", "/sys", "/dev", "/.karapace"];

/// The shares that `[mounts]` asks for. Relative host paths start from `base`, the manifest's directory.
pub(super) fn shares(
    mounts: &BTreeMap<String, Mount>,
    base: Option<&Path>,
) -> Result<Vec<Share>, RuntimeError> {
    mounts.iter().map(|(label, mount)| share(label, mount, base)).collect()
}

/// Refuses what no session would mount, wherever the host's paths lead: for `build`, which tells early.
///
/// # Errors
/// [`RuntimeError::Policy`] for a place inside that may not be covered.
pub fn check_places(mounts: &BTreeMap<String, Mount>) -> Result<(), RuntimeError> {
    mounts.iter().try_for_each(|(label, mount)| place(&key(label), &mount.container).map(drop))
}

fn share(label: &str, mount: &Mount, base: Option<&Path>) -> Result<Share, RuntimeError> {
    let what = key(label);
    let inside = place(&what, &mount.container)?;
    let written = Path::new(&mount.host);
    let path = if written.is_absolute() {
        written.to_owned()
    } else {
        let base = base.ok_or_else(|| {
            let reason = format!(
                "{} is relative to the manifest, and where that lies is not recorded: build the environment from its \
                 manifest again under a new name, or write an absolute path",
                mount.host
            );
            refused(&what, reason)
        })?;
        base.join(written)
    };
    let host = fs::canonicalize(&path).map_err(|source| {
        let path = path.display();
        refused(&what, format!("{path}: {source}; create it, or change the manifest and rebuild"))
    })?;
    if written.is_absolute() && !is_allowed(&host) {
        let leads = if host == written { String::new() } else { format!(", which is {},", host.display()) };
        let reason = format!(
            "{}{leads} is not below /home or /tmp; an absolute host path must be, a relative one may be anywhere",
            mount.host
        );
        return Err(refused(what, reason));
    }
    let kind = fs::metadata(&host)
        .map_err(|source| refused(&what, format!("{}: {source}", host.display())))?
        .file_type();
    if kind.is_char_device() || kind.is_block_device() {
        let reason = format!("{} is a device; devices come in through [hardware] only", host.display());
        return Err(refused(what, reason));
    }
    let kind = if kind.is_dir() { ShareKind::Directory } else { ShareKind::File };
    Ok(Share { what, host, inside, kind, read_only: false })
}

fn key(label: &str) -> String {
    format!("mounts.{label}")
}

/// The place inside, without needless dots and slashes.
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

/// Whether a resolved path lies below a directory that all may mount from. Those are resolved too: `/home` is a symlink on
/// some systems.
fn is_allowed(host: &Path) -> bool {
    ALLOWED.iter().any(|root| {
        let root = fs::canonicalize(root).unwrap_or_else(|_| PathBuf::from(root));
        host != root && host.starts_with(&root)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn try_share(host: &str, container: &str, base: Option<&Path>) -> Result<Share, String> {
        let mount = Mount { host: host.to_owned(), container: container.to_owned() };
        share("data", &mount, base).map_err(|e| e.to_string())
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
            ("device".to_owned(), "/data", "/dev/null is a device; devices come in through [hardware] only"),
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
        }
    }

    #[test]
    fn what_is_let_in() {
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
        // Relative ones are let in wherever they lead.
        assert_eq!(given("../../../etc").host, fs::canonicalize("/etc").unwrap());
        assert!(try_share("./", "/work", None).unwrap_err().contains("relative to the manifest"));
        // What only begins like a covered path is not covered.
        assert!(try_share("./", "/devel", Some(&base)).is_ok());
    }
}
