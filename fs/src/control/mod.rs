//! The control directory `/.karapace` of a mount.
//!
//! Files are made when they are looked up, which the kernel does each time: there is no open to serve (it
//! never asks), so a node stands for an open, with a text and, for a `ctl`, a reply of its own. What commands
//! do is not decided here: the engine implements [`ControlPlane`].
//!
//! `nodes` numbers the files and keeps them, `dirs` looks up and lists, `files` writes their texts; `command`
//! reads what is written to `ctl`, `run` has it done, `jobs` keeps what goes on in the background; `plane` is
//! the engine as seen from here. `fuse` is the caller. Of the view it asks what differs, its head and its
//! figures.

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

pub use command::{Command, parse_commands};
pub use plane::{CommandError, ControlId, ControlPlane, SnapshotInfo};

use self::dirs::Stamps;
use self::files::DiffCache;
use self::jobs::Jobs;
use self::nodes::Nodes;
pub(crate) use self::nodes::TOP;
use crate::attr::Attr;
use crate::error::Result;
use crate::pid_namespace;
use crate::view::View;

/// Name of the control directory in the root of a mount.
pub const DIR_NAME: &[u8] = b".karapace";

/// What a look-up in the control directory found.
pub(crate) enum Found {
    /// A node of the control directory.
    Node(Attr),
    /// The root of a snapshot's view, under this name of `snapshots/`.
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
    /// Where a listing goes on after this entry.
    pub cookie: u64,
}

/// The control directory of one mount.
pub(crate) struct ControlDir {
    plane: Arc<dyn ControlPlane>,
    view: Arc<View>,
    mountpoint: PathBuf,
    /// Who mounted, as the kernel knows them: their ids and root's are let in.
    owner: (u32, u32),
    nodes: Nodes,
    jobs: Arc<Jobs>,
    stamps: Stamps,
    diff: DiffCache,
    /// The last outcome line of the mount, without the newline.
    last: Mutex<String>,
}

impl ControlDir {
    /// The control directory of `view`, mounted at `mountpoint` by `owner` (user and group id).
    pub fn new(
        plane: Arc<dyn ControlPlane>,
        view: Arc<View>,
        mountpoint: PathBuf,
        owner: (u32, u32),
    ) -> ControlDir {
        ControlDir {
            plane,
            view,
            mountpoint,
            owner,
            nodes: Nodes::default(),
            jobs: Arc::default(),
            stamps: Stamps::default(),
            diff: DiffCache::default(),
            last: Mutex::default(),
        }
    }

    /// Whether a process may use the directory: it runs as the mounting user or as root, and lives in the
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
