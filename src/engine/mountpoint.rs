//! Mount points: preparing them, finding what is mounted on them, and clearing what a killed process left.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use karapace_fs::session;
use nix::errno::Errno;
use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use crate::engine::At as _;
use crate::engine::{Error, Result};

/// Prefix of the source of every mount; the environment's name follows. It has no colon, because df and du
/// take a mount with a source like `host:directory` for a remote one: `df --local` would leave it out, and du
/// would report a damaged file system at a bind mount inside (`ME_REMOTE` in gnulib's mountlist.c).
pub const SOURCE: &str = "karapace+";

/// What is at a path that is to be a mount point.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Nothing,
    Directory,
    /// A mount whose server is gone.
    Stale,
}

/// Makes `dir` an empty directory to mount on: creates it if it is missing, and detaches a stale mount.
/// Returns its absolute path without symlinks.
///
/// # Errors
/// [`Error::DirNotEmpty`], and [`Error::Invalid`] for a stale mount that this user did not make.
pub fn prepare(dir: &Path) -> Result<PathBuf> {
    let standing = match look(dir)? {
        Standing::Stale if !is_own(dir)? => {
            let dir = dir.display();
            return Err(Error::Invalid(format!(
                "{dir} is a mount whose server is gone, and which karapace did not make for you: unmount it (`umount -l {dir}` \
                 as root, `fusermount3 -uz {dir}` as its user), or mount elsewhere"
            )));
        }
        Standing::Stale => {
            tracing::info!("detaching the stale mount on {}", dir.display());
            detach(dir)?;
            look(dir)?
        }
        other => other,
    };
    if standing == Standing::Nothing {
        fs::create_dir_all(dir).at("create", dir)?;
    }
    let mut entries = fs::read_dir(dir).at("list", dir)?;
    if entries.next().is_some() {
        return Err(Error::DirNotEmpty { dir: dir.to_owned() });
    }
    fs::canonicalize(dir).at("resolve", dir)
}

/// Detaches the environment that is mounted on `dir` if its server is gone. Leaves anything else alone.
pub fn clear_stale(dir: &Path) -> Result<()> {
    if !is_own(dir)? {
        return Ok(());
    }
    match look(dir) {
        Ok(Standing::Stale) => detach(dir),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!("cannot look for a stale mount: {error}");
            Ok(())
        }
    }
}

/// Whether an environment is mounted on `dir` whose server is gone.
pub fn is_stale(dir: &Path) -> bool {
    matches!(is_own(dir), Ok(true)) && matches!(look(dir), Ok(Standing::Stale))
}

/// Whether the topmost mount on `dir` is an environment that this user mounted.
fn is_own(dir: &Path) -> Result<bool> {
    Ok(mounter_of_ours(dir)? == Some(geteuid().as_raw()))
}

/// The user id of the user who made the FUSE mount in a line of mountinfo.
fn mounter(line: &str) -> Option<u32> {
    let options = line.split_once(" - ")?.1.split(' ').nth(2)?;
    options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
}

/// [`session::unmount`], for the user's commands.
///
/// # Errors
/// [`Error::DirBusy`] while it is in use, and if the system refuses.
pub fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    match session::unmount(dir, lazy) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let dir = dir.display();
            Err(Error::Invalid(format!(
                "cannot unmount {dir}: it is not mounted here, or another user mounted it: `findmnt {dir}` shows who"
            )))
        }
        Err(karapace_fs::Error::Busy) => Err(Error::DirBusy { dir: dir.to_owned(), users: String::new() }),
        Err(error) => Err(error.into()),
    }
}

/// /proc/self/mountinfo, with non-ASCII bytes escaped as spaces are: any mount point, also another program's,
/// may have any bytes in its name.
fn mount_table() -> Result<String> {
    let path = Path::new("/proc/self/mountinfo");
    let table = fs::read(path).at("read", path)?;
    Ok(escaped(&table))
}

fn escaped(table: &[u8]) -> String {
    let mut text = String::with_capacity(table.len());
    for &byte in table {
        if byte.is_ascii() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("\\{byte:03o}"));
        }
    }
    text
}

/// The user id of the user who mounted the environment on `dir`; `None` if the topmost mount there is not an
/// environment.
pub fn mounter_of_ours(dir: &Path) -> Result<Option<u32>> {
    let dir = absolute(dir)?;
    let table = mount_table()?;
    let place =
        |line: &&str| line.split(' ').nth(4).map(unescape).as_deref() == Some(dir.as_os_str().as_bytes());
    let line = table.lines().rev().find(place);
    let ours = line.filter(|line| fuse_line(line).is_some_and(|(_, source)| source.starts_with(SOURCE)));
    Ok(ours.and_then(mounter))
}

/// The source of the topmost FUSE mount on `dir`, from /proc/self/mountinfo.
pub fn fuse_source(dir: &Path) -> Result<Option<String>> {
    let table = mount_table()?;
    let mut from_top = table.lines().rev().filter_map(fuse_line);
    Ok(from_top.find(|(at, _)| at == dir.as_os_str().as_bytes()).map(|(_, source)| source))
}

/// The minor device number of the environment or snapshot mounted on `dir`, which is also the number of its
/// FUSE connection. Does not access the mount.
pub fn fuse_device(dir: &Path) -> Result<Option<u32>> {
    let table = mount_table()?;
    let ours = |line: &&str| {
        fuse_line(line)
            .is_some_and(|(at, source)| at == dir.as_os_str().as_bytes() && source.starts_with(SOURCE))
    };
    Ok(table.lines().rev().find(ours).and_then(device))
}

/// The minor device number in a line of mountinfo.
fn device(line: &str) -> Option<u32> {
    line.split(' ').nth(2)?.split_once(':')?.1.parse().ok()
}

/// Whether `table` (the text of a /proc/PID/mountinfo) has the FUSE mount with this minor device number.
pub(super) fn has_device(table: &str, minor: u32) -> bool {
    table.lines().any(|line| fuse_line(line).is_some() && device(line) == Some(minor))
}

/// What is mounted below `dir`, in this mount namespace.
pub(super) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = mount_table()?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsString::from_vec(unescape(point))));
    Ok(points.filter(|point| point != dir && point.starts_with(dir)).collect())
}

/// The mount points of all environments and snapshots that this process sees, including stale ones.
pub fn all_of_ours() -> Result<Vec<PathBuf>> {
    let table = mount_table()?;
    let ours = table.lines().filter_map(fuse_line).filter(|(_, source)| source.starts_with(SOURCE));
    Ok(ours.map(|(at, _)| PathBuf::from(OsString::from_vec(at))).collect())
}

/// Whether an environment is mounted on `dir` in this mount namespace.
pub fn is_ours(dir: &Path) -> bool {
    match fuse_source(dir) {
        Ok(source) => source.is_some_and(|source| source.starts_with(SOURCE)),
        Err(error) => {
            tracing::warn!("assuming that it is mounted here: {error}");
            true
        }
    }
}

/// An absolute path for `dir` that resolves symlinks up to its parent, so that it works on a stale mount too.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).at("resolve", dir)?;
    match (dir.parent().map(fs::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        _ => Ok(dir),
    }
}

fn look(dir: &Path) -> Result<Standing> {
    // Not stat, because the kernel may still have the attributes of a dead mount's root.
    match statfs(dir) {
        Ok(_) => Ok(Standing::Directory),
        Err(Errno::ENOENT) => Ok(Standing::Nothing),
        Err(Errno::ENOTCONN) => Ok(Standing::Stale),
        Err(errno) => Err(Error::io("look at", dir, errno.into())),
    }
}

fn detach(dir: &Path) -> Result<()> {
    unmount(&absolute(dir)?, true)
}

/// The mount point and the source in a line of mountinfo, if it is a FUSE mount.
fn fuse_line(line: &str) -> Option<(Vec<u8>, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?, right.next()?);
    (kind == "fuse" || kind.starts_with("fuse.")).then_some(())?;
    let at = unescape(left.split(' ').nth(4)?);
    Some((at, String::from_utf8_lossy(&unescape(source)).into_owned()))
}

/// Undoes the octal escapes of mountinfo (`\040` is a space).
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[i] == b'\\' => {
                out.push(byte);
                i += 4;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_of_any_bytes() {
        let line = b"81 29 0:52 / /home/u/\xff\xfe rw - fuse.karapace karapace+dev rw,user_id=7\n";
        let text = escaped(line);
        assert_eq!(
            fuse_line(text.trim_end()),
            Some((b"/home/u/\xff\xfe".to_vec(), "karapace+dev".to_owned()))
        );
        assert_eq!(mounter(text.trim_end()), Some(7));
    }

    #[test]
    fn mountinfo_lines() {
        let line =
            r"81 29 0:52 / /home/u/a\040b rw,nosuid shared:1 - fuse.karapace karapace+dev rw,user_id=1000";
        assert_eq!(fuse_line(line), Some((b"/home/u/a b".to_vec(), "karapace+dev".to_owned())));
        assert_eq!(device(line), Some(52));
        assert_eq!(mounter(line), Some(1000));
        assert!(has_device(line, 52) && !has_device(line, 5));
        assert!(!has_device("29 1 0:52 / / rw - tmpfs tmpfs rw", 52));
        assert_eq!(fuse_line("29 1 8:1 / / rw - ext4 /dev/sda1 rw"), None);
        assert_eq!(unescape(r"\134\x\04"), br"\\x\04");
    }

    #[test]
    fn a_new_directory_is_made_and_a_full_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = prepare(&dir.path().join("a/b")).unwrap();
        assert!(made.is_dir());
        prepare(&made).unwrap();
        fs::write(made.join("x"), "").unwrap();
        assert!(matches!(prepare(&made), Err(Error::DirNotEmpty { .. })));
        assert!(prepare(&made.join("x")).is_err());
    }
}
