//! Mounting a FUSE device, and unmounting: root by mount(2) and umount2(2), an ordinary user by
//! fusermount3(1).
//!
//! fuser could mount as well, but unmounts the mount point once more when a connection has ended, whatever is
//! mounted there by then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{getegid, geteuid};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::At as _;
use crate::error::{Error, Result};
use crate::fuse::{Flag, MountOptions};

/// The device.
const DEVICE: &str = "/dev/fuse";

/// What the kernel shows as the file system's type.
const KIND: &str = "fuse.karapace";

/// The program that mounts for ordinary users.
const HELPER: &str = "fusermount3";

/// The kernel's control files of FUSE connections (Documentation/filesystems/fuse/fuse.rst), by number.
pub const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The variable that names the descriptor of a socket through which the helper sends the device.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Mounts on the directory `dir`, whose path has no symlinks. `source` is what `mount` and `df` show as the
/// mount's source. Returns the device, from which no request has been read: the mount does not answer yet. By
/// root, also root of a user namespace, the mount is open to all users.
///
/// # Errors
/// If the mount point cannot be used, or /dev/fuse or (for an ordinary user) `fusermount3` is missing or
/// refuses.
pub fn mount(dir: &Path, source: &str, options: &MountOptions) -> Result<OwnedFd> {
    let by_root = geteuid().is_root();
    let options = options.in_effect(by_root);
    let mounted =
        if by_root { mount_directly(dir, source, &options) } else { mount_by_helper(dir, source, &options) };
    mounted.map_err(|error| Error::host("mount on", dir, explain(error, by_root)))
}

fn mount_directly(dir: &Path, source: &str, options: &MountOptions) -> io::Result<OwnedFd> {
    let device: OwnedFd = OpenOptions::new().read(true).write(true).open(DEVICE)?.into();
    let (user, group) = (geteuid(), getegid());
    let number = device.as_raw_fd();
    let data =
        format!("fd={number},rootmode=40000,user_id={user},group_id={group},default_permissions,allow_other");
    let mut flags = MsFlags::MS_NOATIME;
    for flag in &options.flags {
        flags |= match flag {
            Flag::ReadOnly => MsFlags::MS_RDONLY,
            Flag::NoSuid => MsFlags::MS_NOSUID,
            Flag::NoDev => MsFlags::MS_NODEV,
            Flag::NoExec => MsFlags::MS_NOEXEC,
        };
    }
    nix::mount::mount(Some(source), dir, Some(KIND), flags, Some(data.as_str()))?;
    Ok(device)
}

/// The helper always adds nosuid and nodev.
fn mount_by_helper(dir: &Path, source: &str, options: &MountOptions) -> io::Result<OwnedFd> {
    let mut words = vec![format!("fsname={source}"), "subtype=karapace".to_owned(), "noatime".to_owned()];
    words.extend(options.flags.iter().map(|flag| flag.word().to_owned()));
    if options.allow_other {
        // Other users have access, so the kernel must check permissions.
        words.extend(["default_permissions", "allow_other"].map(str::to_owned));
    }
    let (socket, theirs) = UnixStream::pair()?;
    let mut helper = Command::new(HELPER);
    helper.args(["-o", &words.join(","), "--"]).arg(dir);
    helper.env(HELPER_SOCKET, "0").stdin(Stdio::from(OwnedFd::from(theirs)));
    helper.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = helper.spawn()?;
    // With it goes this process's copy of the other end, so that the helper's end is seen.
    drop(helper);
    let device = receive(&socket);
    let output = child.wait_with_output()?;
    match device? {
        Some(device) => Ok(device),
        None => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let refused = text.contains("'user_allow_other' is set");
            Err(io::Error::new(if refused { ErrorKind::PermissionDenied } else { ErrorKind::Other }, text))
        }
    }
}

/// The descriptor that the helper sends; `None` if it ends without.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    let mut sent = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(sent.next())
}

/// Adds advice for the usual reasons why a mount fails.
fn explain(error: io::Error, by_root: bool) -> io::Error {
    let advice = if !Path::new(DEVICE).exists() {
        "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)"
    } else if by_root {
        return error;
    } else if error.kind() == ErrorKind::NotFound {
        "mounting as a user needs fusermount3: install the package fuse3"
    } else if File::open(DEVICE).is_err() {
        "ordinary users cannot open /dev/fuse: chmod 0666 /dev/fuse, or install the package fuse3, which does it"
    } else {
        return error;
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

/// How to end a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Unmount it, unless it is in use.
    Unmount,
    /// Detach it even while it is in use: new look-ups do not reach it, open files stay.
    Detach,
    /// Abort its connection: whatever waits for it fails, and what only the kernel holds is lost.
    Abort,
}

/// The minor device number of the FUSE mount on `dir`, which is also that of its connection. Asks the server
/// nothing.
pub fn connection(dir: &Path) -> Option<u32> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    statx(CWD, dir, flags, StatxFlags::empty()).ok().map(|found| found.stx_dev_minor)
}

/// Aborts the connection of the FUSE mount on `dir`: root, also of the user namespace in which it was
/// mounted, by umount2(2) with MNT_FORCE, which the mount itself survives if it is in use; its ordinary user
/// through the control files of the kernel, if they are mounted.
///
/// # Errors
/// If the system refuses.
pub fn abort(dir: &Path, connection: Option<u32>) -> io::Result<()> {
    match umount2(dir, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => match connection {
            Some(number) => fs::write(format!("{CONNECTIONS}/{number}/abort"), "1"),
            None => Err(errno.into()),
        },
    }
}

/// Unmounts what is mounted on `mountpoint`. With `lazy`, detaches it even while it is in use: new look-ups
/// do not reach it, open files stay. Returns false if nothing is mounted there, or nothing that this user
/// may unmount: the two cannot be told apart.
///
/// # Errors
/// [`Error::Busy`] while a file in it is open, or something in it is a working directory or mount point; and
/// if the system refuses.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(mountpoint, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => unmount_by_helper(mountpoint, lazy),
        Err(Errno::EBUSY) => Err(Error::Busy),
        // Not a mount point any more, because someone else has unmounted it; or another namespace's.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::host("unmount", mountpoint, errno.into())),
    }
}

/// Unmounts an ordinary user's mount with `fusermount3`, which also made it.
fn unmount_by_helper(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let mut helper = Command::new(HELPER);
    helper.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(mountpoint).stdin(Stdio::null());
    let output = helper.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            io::Error::new(error.kind(), "fusermount3 is not installed: install the package fuse3")
        }
        _ => error,
    });
    let output = output.at("run fusermount3 to unmount", mountpoint)?;
    if output.status.success() {
        return Ok(true);
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("busy") {
        return Err(Error::Busy);
    }
    // Already unmounted, like EINVAL above (a caller without the privilege to unmount gets EPERM instead), or
    // another user's.
    if text.contains("not found in") {
        return Ok(false);
    }
    Err(Error::host("unmount", mountpoint, io::Error::other(text)))
}
