//! Directories to mount on: making them ready, finding what is mounted, clearing what a killed process left.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use crate::engine::At as _;
use crate::engine::{Error, Result};

/// What the source of every mount begins with; the environment's name follows. With a colon, as of
/// `host:directory`, df and du would take the mount for a remote one: `df --local` left it out, and du called
/// a bind mount inside a damaged file system (`ME_REMOTE` of gnulib's mountlist.c).
pub const SOURCE: &str = "karapace+";

/// What stands at a path where a mount is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Nothing,
    Directory,
    /// A mount whose server is gone.
    Stale,
}

/// Makes `dir` an empty directory to mount on: created if missing, a stale mount on it detached.
/// Gives its absolute path without symlinks.
pub fn prepare(dir: &Path) -> Result<PathBuf> {
    let standing = match look(dir)? {
        Standing::Stale if !is_own(dir)? => {
            let dir = dir.display();
            return Err(Error::Invalid(format!(
                "{dir} is a mount whose server is gone, and karapace has not made it for you: unmount it (`umount -l {dir}` as root, \
                 `fusermount3 -uz {dir}` as its user), or mount elsewhere"
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

/// Detaches the environment that is mounted on `dir` if its server is gone; anything else is left alone.
pub fn clear_stale(dir: &Path) -> Result<()> {
    if !is_own(dir)? {
        return Ok(());
    }
    match look(dir) {
        Ok(Standing::Stale) => detach(dir),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!("not looked for a stale mount: {error}");
            Ok(())
        }
    }
}

/// Whether an environment is mounted on `dir` whose server is gone.
pub fn is_stale(dir: &Path) -> bool {
    matches!(is_own(dir), Ok(true)) && matches!(look(dir), Ok(Standing::Stale))
}

/// Whether the topmost mount on `dir` is an environment's, made by this user.
fn is_own(dir: &Path) -> Result<bool> {
    Ok(mounter_of_ours(dir)? == Some(geteuid().as_raw()))
}

/// Who made the FUSE mount of a line of mountinfo.
fn mounter(line: &str) -> Option<u32> {
    let options = line.split_once(" - ")?.1.split(' ').nth(2)?;
    options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
}

/// Unmounts `dir`; with `lazy`, even while it is in use, as far as new look-ups go.
///
/// # Errors
/// [`Error::DirBusy`] when files are open or a shell is inside.
pub fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    if geteuid().is_root() {
        let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        return match umount2(dir, flags | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(Error::DirBusy { dir: dir.to_owned() }),
            Err(errno) => Err(Error::io("unmount", dir, errno.into())),
        };
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).stdin(Stdio::null()).output();
    let output = output.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            Error::Invalid("fusermount3 is not installed: install the package fuse3".to_owned())
        }
        _ => Error::io("run fusermount3 on", dir, e),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if words.contains("busy") {
        return Err(Error::DirBusy { dir: dir.to_owned() });
    }
    Err(Error::Invalid(format!("cannot unmount {}: {words}", dir.display())))
}

/// /proc/self/mountinfo, in which bytes beyond ASCII are escaped like blanks: a mount point may have any
/// name, anybody's too.
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

/// Who made the environment's mount on `dir`, by user id; `None` where the topmost mount there is none.
pub fn mounter_of_ours(dir: &Path) -> Result<Option<u32>> {
    let dir = absolute(dir)?;
    let table = mount_table()?;
    let place =
        |line: &&str| line.split(' ').nth(4).map(unescape).as_deref() == Some(dir.as_os_str().as_bytes());
    let line = table.lines().rev().find(place);
    let ours = line.filter(|line| fuse_line(line).is_some_and(|(_, source)| source.starts_with(SOURCE)));
    Ok(ours.and_then(mounter))
}

/// The source of the FUSE mount on `dir` as /proc/self/mountinfo has it; the topmost where several are.
pub fn fuse_source(dir: &Path) -> Result<Option<String>> {
    let table = mount_table()?;
    let mut from_top = table.lines().rev().filter_map(fuse_line);
    Ok(from_top.find(|(at, _)| at == dir.as_os_str().as_bytes()).map(|(_, source)| source))
}

/// The minor device number of the environment or snapshot mounted on `dir`: of its connection, for the
/// kernel. Does not touch the mount.
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

/// Whether a table of mounts (as /proc/PID/mountinfo) has the FUSE mount of this minor device number.
pub(super) fn has_device(table: &str, minor: u32) -> bool {
    table.lines().any(|line| fuse_line(line).is_some() && device(line) == Some(minor))
}

/// The mount points of all environments and snapshots that this process sees, stale ones among them.
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
            tracing::warn!("taken as mounted here: {error}");
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
    // Not stat: the kernel may still have the attributes of a dead mount's root.
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

/// Mount point and source of a FUSE line of mountinfo.
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
