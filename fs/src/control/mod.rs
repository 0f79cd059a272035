//! The control directory `/.karapace` of a mount.
//!
//! A file is created when it is looked up, which the kernel does each time. The kernel never sends an open,
//! so a node stands for one open, with its own text and, for a `ctl`, its own reply. The engine implements
//! [`ControlPlane`] and decides what commands do.
//!
//! `nodes` numbers and holds the files, `dirs` looks up and lists, `files` generates their texts; `command`
//! has what can be asked and parses what is written to `ctl`, `run` executes it, `jobs` holds background
//! commands; `plane` is the interface to the engine. `fuse` is the caller. From the view, this module reads
//! the diff, the head and the statistics.

pub mod command;
mod dirs;
mod files;
mod jobs;
mod nodes;
mod plane;
mod run;

use std::path::PathBuf;
use std::sync::Arc;

use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino, Timestamp};
use parking_lot::Mutex;

pub use command::{Command, Times, parse_commands};
pub use plane::{CommandError, ControlId, ControlPlane, SnapshotInfo};
pub use run::contained;

use self::dirs::Stamps;
use self::files::DiffCache;
use self::jobs::Jobs;
use self::nodes::Nodes;
pub(crate) use self::nodes::TOP;
use crate::attr::Attr;
use crate::error::Result;
use crate::locks::LockScope;
use crate::pid_namespace;
use crate::view::View;

/// Name of the control directory in the root of a mount.
pub const DIR_NAME: &[u8] = b".karapace";

/// Result of a look-up in the control directory.
pub(crate) enum Found {
    /// A node of the control directory.
    Node(Attr),
    /// The root of a snapshot's view, and its name in `snapshots/`.
    Snapshot {
        /// The name: a hash or a snapshot's name.
        name: Box<[u8]>,
        /// Its root object.
        root: ObjectId,
    },
}

/// One entry of a listing.
pub(crate) struct Listed<'a> {
    pub name: &'a [u8],
    pub ino: Ino,
    pub kind: FileKind,
    /// Where to continue the listing after this entry.
    pub cookie: u64,
}

/// The control directory of one mount.
pub(crate) struct ControlDir {
    plane: Arc<dyn ControlPlane>,
    view: Arc<View>,
    mountpoint: PathBuf,
    /// User and group id of the mounting user as the kernel sees them. This user and root have access.
    owner: (u32, u32),
    locks: LockScope,
    nodes: Nodes,
    jobs: Arc<Jobs>,
    stamps: Stamps,
    diff: DiffCache,
    /// The mount's last outcome line, without the newline.
    last: Mutex<String>,
}

impl ControlDir {
    /// The control directory of `view`, mounted at `mountpoint` by `owner` (user and group id), where `locks`
    /// exclude each other.
    pub fn new(
        plane: Arc<dyn ControlPlane>,
        view: Arc<View>,
        mountpoint: PathBuf,
        owner: (u32, u32),
        locks: LockScope,
    ) -> ControlDir {
        ControlDir {
            plane,
            view,
            mountpoint,
            owner,
            locks,
            nodes: Nodes::default(),
            jobs: Arc::default(),
            stamps: Stamps::default(),
            diff: DiffCache::default(),
            last: Mutex::default(),
        }
    }

    /// Whether a process may use the directory: it must run as the mounting user or as root, and live in the
    /// server's process namespace or in one that the engine admits.
    pub fn admits(&self, uid: u32, process: u32) -> bool {
        let knows_user = uid == 0 || uid == self.owner.0;
        knows_user && (pid_namespace::is_ours(process) || self.plane.admits(process))
    }

    /// See [`ControlPlane::keep_snapshots`].
    pub fn keep_snapshots(&self, roots: &[ObjectId]) -> Result<()> {
        self.plane.keep_snapshots(roots)
    }

    fn attr(&self, ino: Ino, mode: u32, size: u64, time: Timestamp) -> Attr {
        let nlink = if FileKind::from_mode(mode) == Some(FileKind::Directory) { 2 } else { 1 };
        Attr {
            ino,
            mode,
            nlink,
            linked: false,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
        }
    }
}
