//! Directories that no other user can reach: only this user can have mounted something below one, and a
//! socket in one belongs to this user's session.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use karapace_store::files::user_name;
use rustix::fs::{FileType, Mode, OFlags};

/// Checks that `dir` is a directory of this user, closed to all others, and not a symlink.
///
/// # Errors
/// The reason why it is not.
pub(crate) fn check(dir: &Path) -> io::Result<()> {
    // Without a trailing slash, which would make open follow a symlink.
    let dir: PathBuf = dir.components().collect();
    // Opened without following a symlink and checked by descriptor, so nothing can be exchanged in between.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::fstat(rustix::fs::open(&dir, flags, Mode::empty())?)?;
    let mode = found.st_mode & 0o7777;
    let flaw = match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => "it is a symbolic link".to_owned(),
        FileType::Directory if found.st_uid != rustix::process::geteuid().as_raw() => {
            format!("it belongs to {}", user_name(found.st_uid))
        }
        FileType::Directory if mode & 0o077 != 0 => {
            format!("it is accessible to other users (mode {mode:04o}, should be 0700)")
        }
        FileType::Directory => return Ok(()),
        _ => "it is not a directory".to_owned(),
    };
    Err(io::Error::other(flaw))
}

/// Makes such a directory if there is none.
///
/// # Errors
/// It cannot be made, or the existing file fails [`check`].
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => check(dir),
    }
}

/// The user's runtime directory, from `variable` (the value of XDG_RUNTIME_DIR). `None` if that is unset, not
/// absolute, or not private.
pub(crate) fn runtime_dir(variable: Option<OsString>) -> Option<PathBuf> {
    let dir = PathBuf::from(variable?);
    if !dir.is_absolute() {
        return None;
    }
    match check(&dir) {
        Ok(()) => Some(dir),
        Err(reason) => {
            tracing::info!("XDG_RUNTIME_DIR is not used: {}: {reason}", dir.display());
            None
        }
    }
}

/// The directory for the mounts of sessions, below the runtime directory; `None` if there is no usable
/// runtime directory.
pub(crate) fn for_sessions() -> Option<PathBuf> {
    runtime_dir(std::env::var_os("XDG_RUNTIME_DIR")).map(|dir| dir.join("karapace"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn only_a_private_directory_of_the_user_is_accepted() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("dir");
        make(&dir).unwrap();
        make(&dir).unwrap();
        let reason = |dir: &Path| check(dir).unwrap_err().to_string();
        for mode in [0o755, 0o710, 0o702] {
            fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            assert!(reason(&dir).contains(&format!("{mode:04o}")), "{mode:o}");
            assert!(make(&dir).is_err());
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        let link = place.path().join("link");
        symlink(&dir, &link).unwrap();
        for path in [link.clone(), link.join(""), link.join(".")] {
            assert!(reason(&path).contains("symbolic link"), "{}", path.display());
            assert_eq!(runtime_dir(Some(path.into())), None);
        }
        let file = place.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(reason(&file).contains("not a directory"));
        assert!(check(&place.path().join("none")).is_err());
        assert_eq!(runtime_dir(Some(dir.clone().into())), Some(dir));
        assert_eq!(runtime_dir(Some("relative".into())), None);
        assert_eq!(runtime_dir(None), None);
        // Only root can make a directory of another user; and root must not accept an ordinary user's.
        if rustix::process::geteuid().is_root() {
            let other = place.path().join("other");
            make(&other).unwrap();
            std::os::unix::fs::chown(&other, Some(54_321), None).unwrap();
            assert_eq!(reason(&other), "it belongs to user 54321");
        }
    }
}
