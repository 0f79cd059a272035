//! Mount points; here, those in a root that is not this process's own, for a runtime that would make them
//! itself.
//!
//! The server takes what process 1 makes for mount points, and what a runtime makes for the user's files.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use karapace_store::inode::ROOT_INO;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};

use super::lookup::open_below;

/// What a mount is attached to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Point {
    /// A directory, created if missing. For a share, missing parents are created too, and a symlink to a
    /// directory is followed.
    Directory,
    /// A file, created empty (for a share with its parents) if missing. A symlink is covered itself rather
    /// than followed, so it may dangle.
    File,
    /// An existing directory; none is created.
    Existing,
}

/// What a runtime will mount on.
pub(in crate::runtime) struct Points {
    /// The environment's directory.
    pub root: CString,
    /// Paths inside; parents come before what lies below them.
    pub list: Vec<(CString, Point)>,
}

impl Points {
    /// Makes those that are missing, with their parents. What cannot be made is left to the runtime, which
    /// says so if it cannot either.
    pub fn make(&self) {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(root) = open(self.root.as_c_str(), flags, Mode::empty()) else { return };
        let Ok(found) = fstat(&root) else { return };
        // Not in a directory on which nothing is mounted any more.
        if found.st_ino == ROOT_INO {
            self.list.iter().for_each(|(path, point)| make(&root, found.st_dev, path, *point).unwrap_or(()));
        }
    }
}

/// `device`: the file system in which something may be made. Others may be mounted in the environment.
fn make(root: &OwnedFd, device: libc::dev_t, path: &CStr, point: Point) -> Result<(), Errno> {
    if is_there(root, path)? {
        return Ok(());
    }
    each_parent(path, |parent| make_last(root, device, parent, Point::Directory).map(|()| true))?;
    make_last(root, device, path, point)
}

fn is_there(root: &OwnedFd, path: &CStr) -> Result<bool, Errno> {
    match open_below(root, path, OFlag::O_PATH) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn make_last(root: &OwnedFd, device: libc::dev_t, path: &CStr, point: Point) -> Result<(), Errno> {
    if is_there(root, path)? {
        return Ok(());
    }
    let bytes = path.to_bytes_with_nul();
    let name = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let last = CStr::from_bytes_with_nul(&bytes[name..]).map_err(|_| Errno::EINVAL)?;
    let mut above = [0; libc::PATH_MAX as usize];
    above.get_mut(..name).ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(&bytes[..name]);
    let above = CStr::from_bytes_until_nul(&above).map_err(|_| Errno::ENAMETOOLONG)?;
    let above = open_below(root, above, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    if fstat(&above)?.st_dev != device {
        return Err(Errno::EXDEV);
    }
    match point {
        Point::Directory => mkdirat(&above, last, Mode::from_bits_truncate(0o755)),
        Point::File => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            openat(&above, last, flags, Mode::from_bits_truncate(0o644)).map(drop)
        }
        Point::Existing => Ok(()),
    }
}

/// Calls `visit` for each directory above `path`, from the top down and without `/`, while it returns true.
pub(super) fn each_parent(
    path: &CStr,
    mut visit: impl FnMut(&CStr) -> Result<bool, Errno>,
) -> Result<(), Errno> {
    let mut buffer = [0; libc::PATH_MAX as usize];
    let bytes = path.to_bytes();
    if bytes.len() >= buffer.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for at in (1..bytes.len()).filter(|at| bytes[*at] == b'/') {
        buffer[..at].copy_from_slice(&bytes[..at]);
        buffer[at] = 0;
        if !visit(CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::EINVAL)?)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_missing_is_made_in_the_root_and_nowhere_else() {
        let scratch = tempfile::tempdir().unwrap();
        let (root, out) = (scratch.path().join("root"), scratch.path().join("out"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(root.join("etc/there"), "kept").unwrap();
        symlink(&out, root.join("led")).unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        let held = open(&root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let device = fstat(&held).unwrap().st_dev;
        let made =
            |path: &str, point| make(&held, device, CString::new(path.as_bytes()).unwrap().as_c_str(), point);
        assert_eq!(made("/etc/there", Point::File), Ok(()));
        assert_eq!(made("/a/b/dir", Point::Directory), Ok(()));
        assert_eq!(made("/a/b/file", Point::File), Ok(()));
        assert_eq!(made("/absolute/file", Point::File), Ok(()));
        assert!(made("/led/file", Point::File).is_err());
        assert_eq!(made("/etc/there/below", Point::File), Err(Errno::ENOTDIR));
        assert_eq!(make(&held, device + 1, c"/elsewhere", Point::Directory), Err(Errno::EXDEV));
        assert_eq!(fs::read(root.join("etc/there")).unwrap(), b"kept");
        assert!(root.join("a/b/dir").is_dir() && root.join("a/b/file").is_file());
        assert!(root.join("etc/file").is_file());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0);
        // The root of no mount.
        let list = vec![(CString::from(c"/never"), Point::Directory)];
        Points { root: CString::new(root.as_os_str().as_bytes()).unwrap(), list }.make();
        assert!(!root.join("never").exists());
    }
}
