//! Argument and result types of operations on a view.

use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{FileKind, Ino, Timestamp};
use serde::{Deserialize, Serialize};

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// What `stat` returns about an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Number of the inode in its view.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Number of names; for a directory, 2 plus the number of subdirectories.
    pub nlink: u32,
    /// Whether it has or had several names, which it does not know itself.
    pub linked: bool,
    /// Owner, as stored in the tree.
    pub uid: u32,
    /// Group, as stored in the tree.
    pub gid: u32,
    /// Linux `dev_t` (as returned by `makedev`) of a device node, otherwise 0.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Time of the last recorded access.
    pub atime: Timestamp,
    /// Time of the last change of the content.
    pub mtime: Timestamp,
    /// Time of the last change of the content or the metadata.
    pub ctime: Timestamp,
}

/// The caller's ids as in the tree, that is after applying the mount's id map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id that new inodes get.
    pub uid: u32,
    /// Group id that new inodes get, unless the directory is setgid.
    pub gid: u32,
    /// Permission bits removed on creation if the directory has no default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This time.
    At(Timestamp),
}

/// The changes for `setattr`; `None` leaves a field unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (type bits are ignored).
    pub mode: Option<u32>,
    /// Permission bits to remove if set.
    pub without: u32,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes; only for regular files.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time (the kernel sends one only if it maintains times itself).
    pub ctime: Option<Timestamp>,
    /// Drop set-user-id, set-group-id (if group execute is set) and file capabilities, as a change of owner
    /// or size by an ordinary user does. Without other changes: like a chown to the current owner.
    pub kill_priv: bool,
}

/// How `rename` treats an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces it (`rename(2)`).
    Replace,
    /// Fails with `EEXIST` (`RENAME_NOREPLACE`).
    NoReplace,
    /// Swaps the two (`RENAME_EXCHANGE`).
    Exchange,
    /// Replaces it and leaves a character device 0:0 at the old name (`RENAME_WHITEOUT`).
    Whiteout,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub struct DirItem<'a> {
    /// Name in the directory; arbitrary bytes.
    pub name: &'a [u8],
    /// The inode's number.
    pub ino: Ino,
    /// The inode's type.
    pub kind: FileKind,
    /// Where to continue the listing after this entry; never 0, below 2^62.
    pub cookie: u64,
    /// If attributes were requested: `Some` for all entries but `.` and `..`, and counts one reference if the
    /// sink accepts the entry.
    pub attr: Option<Attr>,
}

/// What `statfs` returns; block counts are in units of `frsize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Total blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred transfer size in bytes.
    pub bsize: u32,
    /// Block size in bytes.
    pub frsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// What the kernel must forget after the view has changed without its knowledge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalidation {
    /// The name must be looked up again, whether the kernel has an inode or an absence cached for it.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name in it.
        name: Box<[u8]>,
    },
    /// Attributes, content and listing of the inode must be read again.
    Inode {
        /// The inode.
        ino: Ino,
    },
}

/// What a restore did to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It exists now, or has this type now.
    Come(FileKind),
    /// It no longer exists; it had this type.
    Gone(FileKind),
    /// Its content changed.
    Content,
    /// Something else about it differs; for a directory, possibly its entries.
    Other,
}

/// An event to raise after a restore, for programs that watch a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The path from the root of the view, beginning with `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// Its parent directory (for the root: itself).
    pub parent: Ino,
    /// What happened.
    pub became: Became,
}

impl Told {
    /// Its name in the directory.
    pub fn name(&self) -> &[u8] {
        self.path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &self.path[at + 1..])
    }
}

/// Result of a restore.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// What the kernel must forget. Send it with no lock held.
    pub stale: Vec<Invalidation>,
    /// Events to raise for watchers after that. Bounded: if many names changed, only their directories.
    pub told: Vec<Told>,
}

/// What a view stands on: the layer, and the root of the lower view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRef {
    /// Identity of the layer.
    pub layer: LayerHash,
    /// The layer's record.
    pub record: RecordId,
    /// The root object that the upper is applied to. It is the layer's root or differs from it: in inode
    /// numbers after a restore, and in everything that the layer left out.
    pub root: ObjectId,
}

/// How a path differs from the head. Serialized as its letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiffKind {
    /// New path.
    #[serde(rename = "A")]
    Added,
    /// Content or metadata differ.
    #[serde(rename = "M")]
    Modified,
    /// Removed path.
    #[serde(rename = "D")]
    Deleted,
}

impl DiffKind {
    /// The letter that `diff` prints: `A`, `M` or `D`.
    pub fn letter(self) -> char {
        match self {
            DiffKind::Added => 'A',
            DiffKind::Modified => 'M',
            DiffKind::Deleted => 'D',
        }
    }
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffEntry {
    /// How it changed.
    pub kind: DiffKind,
    /// The path from the root of the view, beginning with `/`; arbitrary bytes.
    pub path: Vec<u8>,
}

/// Counters of a view for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewStats {
    /// Inodes that differ from the head.
    pub dirty_inodes: u64,
    /// Bytes of file data in the upper.
    pub dirty_bytes: u64,
    /// Incremented with every change of the view; equal values mean that nothing changed in between.
    pub generation: u64,
    /// Inodes in memory.
    pub cached_inodes: u64,
}
