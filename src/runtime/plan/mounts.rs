//! Which mounts a session gets, and in which order.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::path::PathBuf;

use super::session::Overlay;
use super::strings::c_string;
use crate::runtime::RuntimeError;
use crate::runtime::inside::mounts::{Mount, Mounts, Source};
use crate::runtime::inside::overlay;
use crate::runtime::inside::points::{Point, Points};
use crate::runtime::policy::{RUNTIME_DIR, Share, ShareKind};

const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const DATA_ONLY: u64 = NO_SUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
/// Attributes of a share: set-user-id programs have no effect, nor do devices, unless the share is one.
const SHARED: u64 = NO_SUID | libc::MOUNT_ATTR_NODEV;
const READ_ONLY: u64 = DATA_ONLY | libc::MOUNT_ATTR_RDONLY;

/// Devices of the host that every session has.
const DEVICES: [&CStr; 6] =
    [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"];

/// What the mounts of a session depend on.
pub(super) struct Wanted<'a> {
    /// The environment: an absolute path of the host.
    pub root: CString,
    /// Whether the root must be a FUSE mount.
    pub served: bool,
    /// Where the changes go; `None`: into the root.
    pub overlay: Option<&'a Overlay>,
    /// Whether the root is mounted in a user namespace with a range of ids.
    pub ranged: bool,
    /// The terminal of the session: an absolute path of the host.
    pub console: Option<CString>,
    /// Whether group 5, which owns terminals on every distribution, exists inside.
    pub terminal_group: bool,
    /// Hide `/.karapace`.
    pub mask_control: bool,
    /// What of the host is shown; parents come before what lies in them.
    pub shares: &'a [Share],
    /// Paths inside the shares that are covered.
    pub covered: &'a [PathBuf],
    /// The text of `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// The host's `/etc/resolv.conf`; `None` if it has none.
    pub resolv_conf: Option<Vec<u8>>,
    /// Owner and group of the runtime directory, as ids inside.
    pub owner: (u32, u32),
}

impl Mounts {
    /// All mounts, in the order in which they are attached. Shares come before the session's own `/proc`,
    /// `/sys` and `/dev`, so that no symlink of the environment can lead a share over those.
    pub(super) fn plan(wanted: Wanted<'_>) -> Result<Mounts, RuntimeError> {
        let Wanted {
            root,
            served,
            overlay,
            ranged,
            console,
            terminal_group,
            mask_control,
            shares,
            covered,
            hosts,
            resolv_conf,
            owner,
        } = wanted;
        let mut pts = vec![(c"mode", c"0620".into()), (c"ptmxmode", c"0666".into())];
        if terminal_group {
            pts.push((c"gid", c"5".into()));
        }
        let (on_dev, in_tree): (Vec<_>, Vec<_>) =
            shares.iter().partition(|share| share.inside.starts_with("/dev"));
        let mut list = in_tree.into_iter().map(shared).collect::<Result<Vec<_>, _>>()?;
        for place in covered {
            let target = Cow::Owned(c_string("path inside", place.clone().into())?);
            list.push(Mount { target, point: Point::Existing, ..cover(c"") });
        }
        list.extend([
            new(c"/proc", c"proc", vec![], DATA_ONLY),
            host(c"/sys", c"/sys".into(), Point::Directory, READ_ONLY),
            new(c"/dev", c"tmpfs", vec![(c"mode", c"0755".into()), (c"size", c"64m".into())], NO_SUID),
            new(c"/dev/pts", c"devpts", pts, NO_SUID | libc::MOUNT_ATTR_NOEXEC),
            new(c"/dev/shm", c"tmpfs", vec![(c"mode", c"1777".into())], SHARED),
            runtime_dir(owner)?,
        ]);
        list.extend(DEVICES.map(|path| host(path, path.into(), Point::File, 0)));
        if let Some(console) = console {
            list.push(Mount { required: false, ..host(c"/dev/console", console, Point::File, 0) });
        }
        for share in on_dev {
            list.push(shared(share)?);
        }
        let resolv = host(c"/etc/resolv.conf", c"/etc/resolv.conf".into(), Point::File, READ_ONLY);
        let (own, resolv_conf) = if overlay.is_some() { (resolv_conf, None) } else { (None, resolv_conf) };
        let source = match (served, resolv_conf) {
            (true, Some(text)) => Some(Source::Kept(text)),
            (true, None) => None,
            // Read-only: root inside could otherwise write to the host's own file.
            (false, _) => Some(resolv.source),
        };
        list.extend(source.map(|source| Mount { source, required: false, tree: None, ..resolv }));
        list.push(Mount {
            source: Source::Text(hosts),
            required: false,
            ..host(c"/etc/hosts", CString::default(), Point::File, 0)
        });
        if mask_control {
            list.push(Mount { point: Point::Existing, required: false, ..cover(c"/.karapace") });
        }
        let overlay = overlay.map(|wanted| over(wanted, ranged, own)).transpose()?;
        // What the overlay's lower has, no layer gets.
        let points = overlay.is_some().then(|| Points { root: root.clone(), list: points_of(&list) });
        Ok(Mounts { root: Some(root), served, overlay, list, points })
    }

    /// For a command that sets up a root itself: the host's own tree, with a `/proc` for the new process
    /// namespace and, over `scratch`, an empty file system that lasts as long as the inside. `hidden` is
    /// covered by an empty directory. `points`: what the command will mount on.
    pub fn beside(scratch: CString, hidden: Option<&'static CStr>, points: Points) -> Mounts {
        let own = new(c"/proc", c"tmpfs", vec![(c"mode", c"0700".into())], SHARED);
        let mut list =
            vec![new(c"/proc", c"proc", vec![], DATA_ONLY), Mount { target: Cow::Owned(scratch), ..own }];
        list.extend(hidden.map(|path| Mount { point: Point::Existing, required: false, ..cover(path) }));
        Mounts { root: None, served: false, overlay: None, list, points: Some(points) }
    }
}

/// The overlay of a session. `ranged` and `resolv_conf` are as in [`Wanted`].
///
/// Without an index a hard link of the root is broken by a change to one of its names, for all to see: an
/// index would not be among the changes. Without metacopy what is copied up no longer needs the root, in
/// which there are files of the session's own.
fn over(
    wanted: &Overlay,
    ranged: bool,
    resolv_conf: Option<Vec<u8>>,
) -> Result<overlay::Overlay, RuntimeError> {
    let set = |key, value: &'static CStr| (key, Cow::Borrowed(value));
    let mut options = vec![set(c"index", c"off")];
    let mut flags = vec![c"volatile"];
    if ranged {
        flags.push(c"userxattr");
    } else {
        options.extend([set(c"redirect_dir", c"on"), set(c"metacopy", c"off")]);
    }
    let path = |path: &PathBuf| c_string("directory of the overlay", path.clone().into());
    let (upper, work) = (path(&wanted.upper)?, path(&wanted.work)?);
    Ok(overlay::Overlay { upper, work, options, flags, resolv_conf })
}

/// The places of these mounts that the root must have.
fn points_of(list: &[Mount]) -> Vec<(CString, Point)> {
    let is_own =
        |mount: &&Mount| mount.point != Point::Existing && !mount.target.to_bytes().starts_with(b"/dev/");
    list.iter().filter(is_own).map(|mount| (mount.target.clone().into_owned(), mount.point)).collect()
}

fn new(
    target: &'static CStr,
    kind: &'static CStr,
    options: Vec<(&'static CStr, Cow<'static, CStr>)>,
    attributes: u64,
) -> Mount {
    let source = Source::New { kind, options };
    let target = Cow::Borrowed(target);
    Mount { source, target, point: Point::Directory, attributes, required: true, tree: None }
}

/// An empty directory that nobody can write to.
fn cover(target: &'static CStr) -> Mount {
    new(target, c"tmpfs", vec![(c"mode", c"0555".into()), (c"size", c"4k".into())], READ_ONLY)
}

fn host(target: &'static CStr, path: CString, point: Point, attributes: u64) -> Mount {
    let source = Source::Host { path, recursive: point == Point::Directory };
    let target = Cow::Borrowed(target);
    Mount { source, target, point, attributes, required: true, tree: None }
}

fn shared(share: &Share) -> Result<Mount, RuntimeError> {
    let (point, attributes) = match share.kind {
        ShareKind::Directory => (Point::Directory, SHARED),
        ShareKind::File => (Point::File, SHARED),
        ShareKind::Device { directory: true } => (Point::Directory, NO_SUID | libc::MOUNT_ATTR_NOEXEC),
        ShareKind::Device { directory: false } => (Point::File, NO_SUID | libc::MOUNT_ATTR_NOEXEC),
    };
    let attributes = attributes | if share.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let path = c_string("host path", share.host.clone().into())?;
    let target = Cow::Owned(c_string("path inside", share.inside.clone().into())?);
    let source = Source::Checked { path, recursive: point == Point::Directory };
    Ok(Mount { source, target, point, attributes, required: true, tree: None })
}

/// The directory that XDG_RUNTIME_DIR names: the session's own, accessible to its user only.
fn runtime_dir((uid, gid): (u32, u32)) -> Result<Mount, RuntimeError> {
    let id = |id: u32| c_string("id", id.to_string().into()).map(Cow::Owned);
    let options = vec![(c"mode", c"0700".into()), (c"uid", id(uid)?), (c"gid", id(gid)?)];
    let target = Cow::Owned(c_string("path inside", RUNTIME_DIR.into())?);
    Ok(Mount { target, ..new(c"", c"tmpfs", options, SHARED) })
}
