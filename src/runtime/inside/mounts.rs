//! The mounts of a session: the environment as root, and what a running system needs on top of it.
//!
//! Every mount is created detached while the host's paths are still visible, and attached after the root has
//! changed. So its mount point is looked up inside: no symlink of the environment can lead a mount outside.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use karapace_store::inode::{MAX_INO, ROOT_INO};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fstat, fstatat, lstat, umask};
use nix::unistd::{UnlinkatFlags, chdir, fchdir, mkdir, pivot_root, symlinkat, unlink, unlinkat, write};

use super::lookup::open_below;
use super::overlay::{self, Overlay};
use super::points::{Point, Points, each_parent};
use crate::runtime::channel::{Channel, Failure, Report};
use crate::runtime::sys;

/// Symlinks that a usual /dev has: (path, target).
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/dev/ptmx", c"pts/ptmx"),
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
];

/// Where a file of the session itself is created: on the session's `/dev`, so that nothing is written into
/// the environment. It is unlinked once the file has been mounted on its target.
const TEXT: &CStr = c"/dev/.text";

/// Under which name, in /etc, a file that the server keeps is written first, and the name that it then gets.
const KEPT: (&CStr, &CStr) = (c".karapace-resolv.conf", c"resolv.conf");

/// What a mount shows.
pub(in crate::runtime) enum Source {
    /// The file or directory at this path on the host.
    Host { path: CString, recursive: bool },
    /// Like `Host`, but the path had no symlink in it when it was checked, and must have none now.
    Checked { path: CString, recursive: bool },
    /// A new file system of this type, with these options.
    New { kind: &'static CStr, options: Vec<(&'static CStr, Cow<'static, CStr>)> },
    /// A new file with this content, which lives as long as the session.
    Text(Vec<u8>),
    /// No mount: a file of the session's own, which the server of the environment keeps in memory. Programs
    /// may replace it, which changes the environment's.
    Kept(Vec<u8>),
}

pub(in crate::runtime) struct Mount {
    pub source: Source,
    pub target: Cow<'static, CStr>,
    pub point: Point,
    pub attributes: u64,
    pub required: bool,
    /// The mount while it is detached.
    pub tree: Option<OwnedFd>,
}

/// All mounts of a session.
pub(in crate::runtime) struct Mounts {
    /// What becomes `/`; `None` keeps the current root.
    pub root: Option<CString>,
    /// Whether the root must be a FUSE mount.
    pub served: bool,
    /// What lies over the root and takes its changes.
    pub overlay: Option<Overlay>,
    /// The mounts; parents come before what lies below them.
    pub list: Vec<Mount>,
    /// What the environment needs for mounts that others make.
    pub points: Option<Points>,
}

impl Mounts {
    /// Makes the environment the root of this process's mount namespace, which must be its own, and mounts
    /// everything. An optional mount that fails is reported and skipped.
    pub fn enter(&mut self, channel: &Channel) -> Result<(), Failure<'_>> {
        private().map_err(|errno| failure("make private", c"/", errno))?;
        if let Some(points) = &self.points {
            points.make();
        }
        let tree = match (&self.root, &self.overlay) {
            (Some(root), None) => Some(open_root(root, self.served).map_err(|e| failure("bind", root, e))?),
            (Some(root), Some(overlay)) => {
                Some(overlaid(overlay, root).map_err(|e| failure(overlay::ACTION, root, e))?)
            }
            (None, _) => None,
        };
        let detach = |mount: &mut Mount| mount.detached().map(|tree| mount.tree = tree);
        if let Err((number, errno)) = each(&mut self.list, channel, detach) {
            return Err(self.list[number].failure(errno));
        }
        if let (Some(tree), Some(root)) = (&tree, &self.root) {
            change_root(tree, root).map_err(|e| failure("change the root to", root, e))?;
        }
        // Mount points are created only in the environment, never in a directory that the host shares there.
        let own = match &self.root {
            Some(_) => Some(mount_id(c"/").map_err(|e| failure("look at", c"/", e))?),
            None => None,
        };
        let mask = umask(Mode::from_bits_truncate(0o022));
        if let Err((number, errno)) = each(&mut self.list, channel, |mount| mount.attach(own)) {
            return Err(self.list[number].failure(errno));
        }
        for (path, target) in LINKS.into_iter().filter(|_| self.root.is_some()) {
            symlinkat(target, AT_FDCWD, path).map_err(|e| failure("make the symlink", path, e))?;
        }
        umask(mask);
        Ok(())
    }
}

impl Mount {
    fn failure(&self, errno: Errno) -> Failure<'_> {
        // A share that could not be opened may have changed on the host since it was checked: name the host's
        // path.
        match &self.source {
            Source::Checked { path, .. } if self.tree.is_none() => failure("bind", path, errno),
            _ => failure("mount", &self.target, errno),
        }
    }

    /// Creates the detached mount; `None` for one that is made when it is attached.
    fn detached(&self) -> Result<Option<OwnedFd>, Errno> {
        let (tree, recursive) = match &self.source {
            Source::New { kind, options } => {
                return sys::new_filesystem(kind, options, self.attributes).map(Some);
            }
            Source::Text(_) | Source::Kept(_) => return Ok(None),
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

    /// Attaches the detached mount, or makes and attaches it. `own`: the only mount in which a mount point
    /// may be created; `None`: any.
    fn attach(&self, own: Option<u64>) -> Result<(), Errno> {
        match &self.source {
            Source::Text(_) => {
                let attached = self.attach_tree(own);
                // Unlink only now: a file without a name cannot be attached.
                unlink(TEXT).and(attached)
            }
            Source::Kept(text) if may_make(&self.target, own)? => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                keep(&open(c"/etc", flags, Mode::empty())?, text)
            }
            Source::Kept(_) => Ok(()),
            _ => self.attach_tree(own),
        }
    }

    fn attach_tree(&self, own: Option<u64>) -> Result<(), Errno> {
        let written;
        let tree = match (&self.source, &self.tree) {
            (Source::Text(text), _) => {
                written = text_file(text)?;
                &written
            }
            (_, Some(tree)) => tree,
            (_, None) => return Ok(()),
        };
        // Only shares lie deeper than in a directory that every system has: if a parent of any other mount is
        // missing, the environment does not need that mount. Nor do the others follow a symlink: a `/dev`
        // that points to `/` would hide everything.
        let deep = matches!(self.source, Source::Checked { .. });
        let follow = deep && self.point == Point::Directory;
        match sys::move_mount(tree, &self.target, follow) {
            Err(Errno::ENOENT) if self.point != Point::Existing && may_make(&self.target, own)? => {
                make_point(&self.target, self.point, deep)?;
                sys::move_mount(tree, &self.target, follow)
            }
            Err(Errno::EINVAL) => Err(misfit(&self.target, self.point)),
            other => other,
        }
    }
}

/// Covers `resolv.conf` in `etc` with a file that the environment's server keeps for the session: it takes
/// the new file for a mount point, until something is written to it.
fn keep(etc: &OwnedFd, text: &[u8]) -> Result<(), Errno> {
    let (first, last) = KEPT;
    let kept = write_new_in(etc, first, text).and_then(|()| {
        // If the server does not know this process, the file is one of the environment's.
        if fstatat(etc, first, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino <= MAX_INO {
            Err(Errno::ESTALE)
        } else {
            renameat(etc, first, etc, last)
        }
    });
    match kept {
        Err(errno) if errno != Errno::EEXIST => {
            unlinkat(etc, first, UnlinkatFlags::NoRemoveDir).and(Err(errno))
        }
        other => other,
    }
}

/// Refines the EINVAL that the kernel returns if a file is attached to a directory, or the other way round.
fn misfit(path: &CStr, point: Point) -> Errno {
    let is_directory = lstat(path).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFDIR);
    match point {
        Point::File if is_directory => Errno::EISDIR,
        Point::Directory | Point::Existing if !is_directory => Errno::ENOTDIR,
        _ => Errno::EINVAL,
    }
}

/// Whether a mount point may be created at `path`: only in the mount `own`, which is the environment's, or on
/// the session's own `/dev`. In a directory that the host shares, it would stay on the host.
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

/// The id of the mount that `path` is on.
fn mount_id(path: &CStr) -> Result<u64, Errno> {
    let found = rustix::fs::statx(
        rustix::fs::CWD,
        path,
        rustix::fs::AtFlags::empty(),
        rustix::fs::StatxFlags::MNT_ID,
    );
    found.map(|found| found.stx_mnt_id).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

/// Creates a mount point, with its parents if `deep`.
fn make_point(path: &CStr, point: Point, deep: bool) -> Result<(), Errno> {
    match make_last(path, point) {
        Err(Errno::ENOENT) if deep => {
            make_parents(path)?;
            make_last(path, point)
        }
        other => other,
    }
}

fn make_last(path: &CStr, point: Point) -> Result<(), Errno> {
    let made = if point == Point::Directory {
        mkdir(path, Mode::from_bits_truncate(0o755))
    } else {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        open(path, flags, Mode::from_bits_truncate(0o644)).map(drop)
    };
    match made {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Creates the missing directories above `path`.
pub(in crate::runtime) fn make_parents(path: &CStr) -> Result<(), Errno> {
    each_parent(path, |parent| match mkdir(parent, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(true),
        Err(errno) => Err(errno),
    })
}

/// Creates [`TEXT`] with this content and returns a detached mount of it.
fn text_file(text: &[u8]) -> Result<OwnedFd, Errno> {
    write_new(TEXT, text)?;
    sys::open_tree(TEXT, false)
}

/// Writes a new file; EEXIST if the path exists.
pub(in crate::runtime) fn write_new(path: &CStr, text: &[u8]) -> Result<(), Errno> {
    write_new_in(AT_FDCWD, path, text)
}

fn write_new_in(directory: impl AsFd, path: &CStr, text: &[u8]) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(directory, path, flags, Mode::from_bits_truncate(0o644))?;
    let mut rest = text;
    while !rest.is_empty() {
        rest = &rest[write(&file, rest)?..];
    }
    Ok(())
}

/// Returns ENOTCONN if `directory` should be the root of a served environment (`served`) and is not. The root
/// of such a mount has inode number 1, which a directory used as a mount point never has: it lies below the
/// root of its own file system.
pub(super) fn check_served(directory: &OwnedFd, served: bool) -> Result<(), Errno> {
    if served && fstat(directory)?.st_ino != ROOT_INO { Err(Errno::ENOTCONN) } else { Ok(()) }
}

/// Returns a detached copy of the root. ENOTCONN, as for a dead mount, if the root must be served and nothing
/// is mounted there any more.
fn open_root(root: &CStr, served: bool) -> Result<OwnedFd, Errno> {
    let tree = sys::open_tree(root, true)?;
    check_served(&tree, served)?;
    Ok(tree)
}

/// Returns the overlay over `root`, where an environment must be mounted.
fn overlaid(overlay: &Overlay, root: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let lower = open(root, flags, Mode::empty())?;
    check_served(&lower, true)?;
    // Now: the overlay would take a file that comes later for one of the session's own.
    if let (Some(text), Ok(etc)) = (&overlay.resolv_conf, open_below(&lower, c"/etc", flags)) {
        keep(&etc, text).or_else(|errno| if errno == Errno::ESTALE { Ok(()) } else { Err(errno) })?;
    }
    overlay.over(&lower)
}

fn failure<'a>(action: &'static str, path: &'a CStr, errno: Errno) -> Failure<'a> {
    Failure { action, path: path.to_bytes(), errno }
}

/// Does one step of every mount, in order. Reports an optional mount that fails; stops at a required one, and
/// returns its number.
fn each(
    list: &mut [Mount],
    channel: &Channel,
    step: impl Fn(&mut Mount) -> Result<(), Errno>,
) -> Result<(), (usize, Errno)> {
    for (number, mount) in list.iter_mut().enumerate() {
        match step(mount) {
            Ok(()) => {}
            Err(errno) if mount.required => return Err((number, errno)),
            Err(errno) => skip(channel, mount, errno),
        }
    }
    Ok(())
}

/// Reports that a mount is left out, unless one side of it simply does not exist: a host without resolv.conf,
/// an environment without /etc or without a control directory.
fn skip(channel: &Channel, mount: &Mount, errno: Errno) {
    if errno != Errno::ENOENT {
        // If karapace no longer listens, this process is about to be killed.
        channel.report(&Report::Skipped(mount.failure(errno))).ok();
    }
}

/// Makes all mounts private: from now on no mount propagates to the host or from it.
pub(in crate::runtime) fn private() -> Result<(), Errno> {
    mount(None::<&CStr>, c"/", None::<&CStr>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&CStr>)
}

/// Attaches `root` over its own path `place` and makes it the root. The old root is stacked on top of the new
/// one, as pivot_root(2) allows, and detached, so that no directory is needed to hold it.
fn change_root(root: &OwnedFd, place: &CStr) -> Result<(), Errno> {
    sys::move_mount(root, place, true)?;
    fchdir(root)?;
    pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    chdir(c"/")
}
