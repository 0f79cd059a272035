//! The file systems of a session: the environment as root, and what a running system needs on top of it.
//!
//! Every mount is made detached first, while the host's paths can still be seen, and attached after the root
//! has changed. So the place it is attached to is looked up inside: no symlink of the environment can lead a
//! mount to the outside.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, fchdir, mkdir, pivot_root, symlinkat};

use super::channel::{Channel, Failure, Report};
use super::sys;

const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const DATA_ONLY: u64 = NO_SUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
const READ_ONLY: u64 = DATA_ONLY | libc::MOUNT_ATTR_RDONLY;

/// Devices of the host that every session has.
const DEVICES: [&CStr; 6] =
    [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"];

/// Symlinks of a usual /dev: (path, what it points at).
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/dev/ptmx", c"pts/ptmx"),
    (c"/dev/fd", c"/proc/self/fd"),
    (c"/dev/stdin", c"/proc/self/fd/0"),
    (c"/dev/stdout", c"/proc/self/fd/1"),
    (c"/dev/stderr", c"/proc/self/fd/2"),
];

/// What a mount shows.
enum Source {
    /// What is at this path on the host.
    Host { path: CString, recursive: bool },
    /// A new file system of this type, with these options.
    New { kind: &'static CStr, options: Vec<(&'static CStr, &'static CStr)> },
}

/// What a mount is attached to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Point {
    /// A directory, made when it is missing; a symlink to one is followed.
    Directory,
    /// A file, made (empty) when it is missing; a symlink is covered itself, so it may as well dangle.
    File,
    /// A directory that is covered if it is there.
    Existing,
}

struct Mount {
    source: Source,
    target: &'static CStr,
    point: Point,
    attributes: u64,
    required: bool,
    /// The mount while it is detached.
    tree: Option<OwnedFd>,
}

/// All mounts of a session.
pub(super) struct Mounts {
    root: CString,
    /// Parents before what lies below them.
    list: Vec<Mount>,
}

impl Mounts {
    /// `root` and `console` (the terminal of the session) are absolute paths of the host. `terminal_group`: the group
    /// 5, which owns terminals on every distribution, exists inside. `mask_control`: hide `/.karapace`.
    pub fn plan(root: CString, console: Option<CString>, terminal_group: bool, mask_control: bool) -> Mounts {
        let mut pts = vec![(c"mode", c"0620"), (c"ptmxmode", c"0666")];
        if terminal_group {
            pts.push((c"gid", c"5"));
        }
        let mut list = vec![
            new(c"/proc", c"proc", vec![], DATA_ONLY),
            host(c"/sys", c"/sys".into(), Point::Directory, READ_ONLY),
            new(c"/dev", c"tmpfs", vec![(c"mode", c"0755"), (c"size", c"64m")], NO_SUID),
            new(c"/dev/pts", c"devpts", pts, NO_SUID | libc::MOUNT_ATTR_NOEXEC),
            new(c"/dev/shm", c"tmpfs", vec![(c"mode", c"1777")], NO_SUID | libc::MOUNT_ATTR_NODEV),
        ];
        list.extend(DEVICES.map(|path| host(path, path.into(), Point::File, 0)));
        if let Some(console) = console {
            list.push(Mount { required: false, ..host(c"/dev/console", console, Point::File, 0) });
        }
        // Read-only, for whoever is root inside would otherwise write into the host's own file.
        let resolv = host(c"/etc/resolv.conf", c"/etc/resolv.conf".into(), Point::File, READ_ONLY);
        list.push(Mount { required: false, ..resolv });
        if mask_control {
            let options = vec![(c"mode", c"0555"), (c"size", c"4k")];
            let mask = new(c"/.karapace", c"tmpfs", options, READ_ONLY);
            list.push(Mount { point: Point::Existing, required: false, ..mask });
        }
        Mounts { root, list }
    }

    /// Makes the environment the root of this process's mount namespace, which must be its own, and mounts
    /// everything. What can be done without is reported and skipped. Runs after `clone`: allocates nothing.
    pub fn enter(&mut self, channel: &Channel) -> Result<(), Failure<'_>> {
        private().map_err(|errno| failure("make private", c"/", errno))?;
        let root = sys::open_tree(&self.root, true).map_err(|e| failure("bind", &self.root, e))?;
        for mount in &mut self.list {
            match mount.detached() {
                Ok(tree) => mount.tree = Some(tree),
                Err(errno) if mount.required => return Err(mount.failure(errno)),
                Err(errno) => skip(channel, mount, errno),
            }
        }
        change_root(&root, &self.root).map_err(|e| failure("change the root to", &self.root, e))?;
        let mask = umask(Mode::from_bits_truncate(0o022));
        for mount in &self.list {
            match mount.attach() {
                Ok(()) => {}
                Err(errno) if mount.required => return Err(mount.failure(errno)),
                Err(errno) => skip(channel, mount, errno),
            }
        }
        for (path, target) in LINKS {
            symlinkat(target, AT_FDCWD, path).map_err(|e| failure("make the symlink", path, e))?;
        }
        umask(mask);
        Ok(())
    }
}

fn new(
    target: &'static CStr,
    kind: &'static CStr,
    options: Vec<(&'static CStr, &'static CStr)>,
    attributes: u64,
) -> Mount {
    let source = Source::New { kind, options };
    Mount { source, target, point: Point::Directory, attributes, required: true, tree: None }
}

fn host(target: &'static CStr, path: CString, point: Point, attributes: u64) -> Mount {
    let source = Source::Host { path, recursive: point == Point::Directory };
    Mount { source, target, point, attributes, required: true, tree: None }
}

impl Mount {
    fn failure(&self, errno: Errno) -> Failure<'static> {
        failure("mount", self.target, errno)
    }

    fn detached(&self) -> Result<OwnedFd, Errno> {
        match &self.source {
            Source::New { kind, options } => sys::new_filesystem(kind, options, self.attributes),
            Source::Host { path, recursive } => {
                let tree = sys::open_tree(path, *recursive)?;
                if self.attributes != 0 {
                    sys::add_attributes(&tree, self.attributes, *recursive)?;
                }
                Ok(tree)
            }
        }
    }

    fn attach(&self) -> Result<(), Errno> {
        let Some(tree) = &self.tree else { return Ok(()) };
        let follow = self.point == Point::Directory;
        match sys::move_mount(tree, self.target, follow) {
            Err(Errno::ENOENT) if self.point != Point::Existing => {
                self.make_point()?;
                sys::move_mount(tree, self.target, follow)
            }
            other => other,
        }
    }

    fn make_point(&self) -> Result<(), Errno> {
        let made = if self.point == Point::Directory {
            mkdir(self.target, Mode::from_bits_truncate(0o755))
        } else {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            open(self.target, flags, Mode::from_bits_truncate(0o644)).map(drop)
        };
        match made {
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        }
    }
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
fn private() -> Result<(), Errno> {
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
