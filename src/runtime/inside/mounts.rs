//! The file systems of a session: the environment as root, and what a running system needs on top of it.
//!
//! Every mount is made detached first, while the host's paths can still be seen, and attached after the root
//! has changed. So the place it is attached to is looked up inside: no symlink of the environment can lead a
//! mount to the outside.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use karapace_store::inode::ROOT_INO;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat, lstat, umask};
use nix::unistd::{UnlinkatFlags, chdir, fchdir, mkdir, pivot_root, symlinkat, unlink, unlinkat, write};

use rustix::fs::{AtFlags, StatxFlags};

use crate::runtime::channel::{Channel, Failure, Report};
use crate::runtime::sys;

/// Symlinks of a usual /dev: (path, what it points at).
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/dev/ptmx", c"pts/ptmx"),
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
];

/// Where a file of the session's own is made: on its `/dev`, so that nothing is written into the environment.
/// The name goes once the file is mounted where it belongs.
const TEXT: &CStr = c"/dev/.text";

/// What a mount shows.
pub(in crate::runtime) enum Source {
    /// What is at this path on the host.
    Host { path: CString, recursive: bool },
    /// The same, of a path that had no symlink in it when it was checked, and must have none now.
    Checked { path: CString, recursive: bool },
    /// A new file system of this type, with these options.
    New { kind: &'static CStr, options: Vec<(&'static CStr, Cow<'static, CStr>)> },
    /// A new file with this content, which lives as long as the session.
    Text(Vec<u8>),
}

/// What a mount is attached to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime) enum Point {
    /// A directory, made when it is missing; of a share with its parents, and a symlink to one is followed.
    Directory,
    /// A file, made (empty, and its parents with it) when it is missing; a symlink is covered itself, so it
    /// may as well dangle.
    File,
    /// A directory that is covered if it is there.
    Existing,
}

pub(in crate::runtime) struct Mount {
    pub source: Source,
    pub target: Cow<'static, CStr>,
    pub point: Point,
    pub attributes: u64,
    pub required: bool,
    /// The mount while it is detached.
    pub tree: Option<OwnedFd>,
    /// What it is attached to was made for it, and goes with it: the usual directories and resolv.conf, which
    /// every session needs, stay.
    pub made: bool,
}

/// All mounts of a session.
pub(in crate::runtime) struct Mounts {
    /// What becomes `/`; `None`: what is already.
    pub root: Option<CString>,
    /// The root must be a FUSE mount.
    pub served: bool,
    /// Parents before what lies below them.
    pub list: Vec<Mount>,
}

impl Mounts {
    /// Makes the environment the root of this process's mount namespace, which must be its own, and mounts
    /// everything. What can be done without is reported and skipped.
    pub fn enter(&mut self, channel: &Channel) -> Result<(), Failure<'_>> {
        private().map_err(|errno| failure("make private", c"/", errno))?;
        let tree = match &self.root {
            Some(root) => Some(open_root(root, self.served).map_err(|e| failure("bind", root, e))?),
            None => None,
        };
        let mut failed = None;
        for (number, mount) in self.list.iter_mut().enumerate() {
            match mount.detached() {
                Ok(tree) => mount.tree = tree,
                Err(errno) if mount.required => {
                    failed = Some((number, errno));
                    break;
                }
                Err(errno) => skip(channel, mount, errno),
            }
        }
        if let Some((number, errno)) = failed {
            return Err(self.list[number].failure(errno));
        }
        if let (Some(tree), Some(root)) = (&tree, &self.root) {
            change_root(tree, root).map_err(|e| failure("change the root to", root, e))?;
        }
        // What is made for a mount is made in the environment, never in what the host shows there.
        let own = match &self.root {
            Some(_) => Some(mount_id(c"/").map_err(|e| failure("look at", c"/", e))?),
            None => None,
        };
        let mask = umask(Mode::from_bits_truncate(0o022));
        for (number, mount) in self.list.iter_mut().enumerate() {
            match mount.attach(own) {
                Ok(()) => {}
                Err(errno) if mount.required => {
                    failed = Some((number, errno));
                    break;
                }
                Err(errno) => skip(channel, mount, errno),
            }
        }
        if let Some((number, errno)) = failed {
            return Err(self.list[number].failure(errno));
        }
        for (path, target) in LINKS.into_iter().filter(|_| self.root.is_some()) {
            symlinkat(target, AT_FDCWD, path).map_err(|e| failure("make the symlink", path, e))?;
        }
        umask(mask);
        Ok(())
    }

    /// Takes away again the mount points that were made, so that a session leaves no trace of itself. One
    /// that is in use or has been filled from outside stays.
    pub fn leave(&self) {
        for mount in self.list.iter().rev().filter(|mount| mount.made) {
            mount.remove_point().ok();
        }
    }
}

impl Mount {
    fn failure(&self, errno: Errno) -> Failure<'_> {
        // Of a share it is the host's side that may have changed since it was looked at.
        match &self.source {
            Source::Checked { path, .. } if self.tree.is_none() => failure("bind", path, errno),
            _ => failure("mount", &self.target, errno),
        }
    }

    /// The mount before it is attached; `None` for what is made in its place.
    fn detached(&self) -> Result<Option<OwnedFd>, Errno> {
        let (tree, recursive) = match &self.source {
            Source::New { kind, options } => {
                return sys::new_filesystem(kind, options, self.attributes).map(Some);
            }
            Source::Text(_) => return Ok(None),
            Source::Host { path, recursive } => (sys::open_tree(path, *recursive)?, *recursive),
            Source::Checked { path, recursive } => {
                let how = OpenHow::new()
                    .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
                    .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
                let checked = openat2(AT_FDCWD, path.as_c_str(), how)?;
                (sys::open_tree_at(&checked, *recursive)?, *recursive)
            }
        };
        if self.attributes != 0 {
            sys::add_attributes(&tree, self.attributes, recursive)?;
        }
        Ok(Some(tree))
    }

    /// Attaches what is detached, or has to be made in its place. `own`: the mount in which a point may be
    /// made; `None`: any.
    fn attach(&mut self, own: Option<u64>) -> Result<(), Errno> {
        if !matches!(self.source, Source::Text(_)) {
            return self.attach_tree(own);
        }
        let attached = self.attach_tree(own);
        // Not before: what has no name any more cannot be attached.
        unlink(TEXT).and(attached)
    }

    fn attach_tree(&mut self, own: Option<u64>) -> Result<(), Errno> {
        let written;
        let tree = match (&self.source, &self.tree) {
            (Source::Text(text), _) => {
                written = text_file(text)?;
                &written
            }
            (_, Some(tree)) => tree,
            (_, None) => return Ok(()),
        };
        // Only shares lie deeper than in a directory that every system has: of the others a missing parent
        // means that the environment is none that needs them. Nor do the others follow a symlink: a `/dev`
        // that is `/` would hide all.
        let deep = matches!(self.source, Source::Checked { .. });
        let follow = deep && self.point == Point::Directory;
        match sys::move_mount(tree, &self.target, follow) {
            Err(Errno::ENOENT) if self.point != Point::Existing && may_make(&self.target, own)? => {
                let passing = matches!(self.source, Source::Checked { .. } | Source::Text(_));
                self.made = make_point(&self.target, self.point, deep)? && passing;
                sys::move_mount(tree, &self.target, follow)
            }
            Err(Errno::EINVAL) => Err(misfit(&self.target, self.point)),
            other => other,
        }
    }

    /// Takes away the point that was made, unless something has come into it from outside.
    fn remove_point(&self) -> Result<(), Errno> {
        match umount2(self.target.as_ref(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing came to be mounted on it.
            Err(Errno::EINVAL) => {}
            other => other?,
        }
        match self.point {
            Point::Directory => unlinkat(AT_FDCWD, self.target.as_ref(), UnlinkatFlags::RemoveDir),
            Point::File if lstat(self.target.as_ref())?.st_size == 0 => unlink(self.target.as_ref()),
            Point::File | Point::Existing => Ok(()),
        }
    }
}

/// What the kernel calls invalid of a mount point: it is a directory where a file is attached, or the other
/// way round.
fn misfit(path: &CStr, point: Point) -> Errno {
    let is_directory = lstat(path).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFDIR);
    match point {
        Point::File if is_directory => Errno::EISDIR,
        Point::Directory | Point::Existing if !is_directory => Errno::ENOTDIR,
        _ => Errno::EINVAL,
    }
}

/// Whether what a mount is attached to may be made at `path`: in the mount `own`, which is the environment's,
/// or on the session's own `/dev`. In a directory that the host shares it would stay on the host when the
/// session is killed, and taking it away at the end would end the mount of another session there.
fn may_make(path: &CStr, own: Option<u64>) -> Result<bool, Errno> {
    let Some(own) = own.filter(|_| !path.to_bytes().starts_with(b"/dev/")) else { return Ok(true) };
    let mut nearest = own;
    each_parent(path, |parent| match mount_id(parent) {
        Ok(id) => {
            nearest = id;
            Ok(true)
        }
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    })?;
    Ok(nearest == own)
}

/// The mount that shows a path.
fn mount_id(path: &CStr) -> Result<u64, Errno> {
    let found = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
    found.map(|found| found.stx_mnt_id).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Makes what a mount is attached to, with what lies above it when `deep`. Returns whether it was missing.
fn make_point(path: &CStr, point: Point, deep: bool) -> Result<bool, Errno> {
    match make_last(path, point) {
        Err(Errno::ENOENT) if deep => {
            make_parents(path)?;
            make_last(path, point)
        }
        other => other,
    }
}

fn make_last(path: &CStr, point: Point) -> Result<bool, Errno> {
    let made = if point == Point::Directory {
        mkdir(path, Mode::from_bits_truncate(0o755))
    } else {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        open(path, flags, Mode::from_bits_truncate(0o644)).map(drop)
    };
    match made {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Makes the directories above `path` that are missing.
pub(in crate::runtime) fn make_parents(path: &CStr) -> Result<(), Errno> {
    each_parent(path, |parent| match mkdir(parent, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(true),
        Err(errno) => Err(errno),
    })
}

/// Goes through the directories above `path`, the highest first and `/` left out, as long as `visit` gives
/// true.
fn each_parent(path: &CStr, mut visit: impl FnMut(&CStr) -> Result<bool, Errno>) -> Result<(), Errno> {
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

/// A detached mount of a new file, [`TEXT`].
fn text_file(text: &[u8]) -> Result<OwnedFd, Errno> {
    write_new(TEXT, text)?;
    sys::open_tree(TEXT, false)
}

/// Writes a file that is not there yet.
pub(in crate::runtime) fn write_new(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::from_bits_truncate(0o644))?;
    let mut rest = text;
    while !rest.is_empty() {
        rest = &rest[write(&file, rest)?..];
    }
    Ok(())
}

/// Refuses a directory that should be a mount of an environment and is not. Such a mount's root has the
/// number 1, which no directory that one is mounted on has: it lies below the root of a file system.
pub(super) fn check_served(directory: &OwnedFd, served: bool) -> Result<(), Errno> {
    if served && fstat(directory)?.st_ino != ROOT_INO { Err(Errno::ENOTCONN) } else { Ok(()) }
}

/// A detached copy of the root. Where it must be served and nothing is mounted there any more, it is
/// ENOTCONN, as of a dead mount.
fn open_root(root: &CStr, served: bool) -> Result<OwnedFd, Errno> {
    let tree = sys::open_tree(root, true)?;
    check_served(&tree, served)?;
    Ok(tree)
}

fn failure<'a>(action: &'static str, path: &'a CStr, errno: Errno) -> Failure<'a> {
    Failure { action, path: path.to_bytes(), errno }
}

/// Says that a mount is left out, unless it is simply that one side of it does not exist: a host without
/// resolv.conf, an environment without /etc or with no control directory.
fn skip(channel: &Channel, mount: &Mount, errno: Errno) {
    if errno != Errno::ENOENT {
        // When nobody listens any more this process is about to be killed.
        channel.report(&Report::Skipped(mount.failure(errno))).ok();
    }
}

/// Lets nothing that is mounted here from now on reach the host, nor the other way round.
pub(in crate::runtime) fn private() -> Result<(), Errno> {
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&CStr>)
}

/// Attaches `root` over its own path `place` and goes there; the old root is put on top of the new one, as
/// pivot_root(2) allows, and detached, so that no directory is needed to hold it.
fn change_root(root: &OwnedFd, place: &CStr) -> Result<(), Errno> {
    sys::move_mount(root, place, true)?;
    fchdir(root)?;
    pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    chdir(c"/")
}
