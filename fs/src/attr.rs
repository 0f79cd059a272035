//! The types that operations on a view take and give.

use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{FileKind, Ino, Timestamp};
use serde::{Deserialize, Serialize};

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// What `stat` tells of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Number of the inode in its view.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Number of names; of a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Owner, as stored in the tree.
    pub uid: u32,
    /// Group, as stored in the tree.
    pub gid: u32,
    /// Linux `dev_t` (as `makedev` gives) of a device node, else 0.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Time of the last access that was recorded.
    pub atime: Timestamp,
    /// Time of the last change of the content.
    pub mtime: Timestamp,
    /// Time of the last change of the content or the metadata.
    pub ctime: Timestamp,
}

/// Who asks: ids as the tree has them, that is after the mount's id map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id that new inodes get.
    pub uid: u32,
    /// Group id that new inodes get, unless the directory is setgid.
    pub gid: u32,
    /// Bits that creation takes away where the directory has no default ACL.
    pub umask: u32,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the call.
    Now,
    /// This one.
    At(Timestamp),
}

/// What `setattr` is to change; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits (type bits are ignored).
    pub mode: Option<u32>,
    /// Permission bits to take away, where they are.
    pub without: u32,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes, of regular files only.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time (the kernel gives one only where it keeps times itself).
    pub ctime: Option<Timestamp>,
    /// Drop set-user-id, set-group-id (where group execute is set) and file capabilities, as a change of
    /// owner or of size by an ordinary user does. By itself: the same as a chown to who owns it.
    pub kill_priv: bool,
}

/// What `rename` does about an existing target.
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
    /// Name in the directory; any bytes.
    pub name: &'a [u8],
    /// The inode it names.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Where a later listing goes on after this entry; never 0, below 2^62.
    pub cookie: u64,
    /// With attributes asked for: always `Some` but for `.` and `..`; counts one reference when the sink
    /// takes the entry.
    pub attr: Option<Attr>,
}

/// What `statfs` tells, in units of `frsize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// All inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of a transfer in bytes.
    pub bsize: u32,
    /// Size of a block in bytes.
    pub frsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
}

/// What the kernel has to forget after the view changed under it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invalidation {
    /// The name has to be looked up again, whether the kernel holds an inode or an absence for it.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name in it.
        name: Box<[u8]>,
    },
    /// Attributes, content and listing of the inode have to be read again.
    Inode {
        /// The inode.
        ino: Ino,
    },
}

/// What a name has become by a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It is there now, or is of this kind now.
    Come(FileKind),
    /// It is there no more; it was of this kind.
    Gone(FileKind),
    /// It has another content.
    Content,
    /// Something else of it differs; of a directory, its names may.
    Other,
}

/// What those who watch a directory are to hear of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The path from the root of the view, beginning with `/`; empty for the root itself.
    pub path: Vec<u8>,
    /// The directory that it is in (of the root, itself).
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

/// What a restore did.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// What the kernel has to forget, to be sent with no lock held.
    pub stale: Vec<Invalidation>,
    /// What those who watch are to hear once that is sent. Bounded: of many names only their directories.
    pub told: Vec<Told>,
}

/// Where a view stands: the layer that its lower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRef {
    /// Identity of the layer.
    pub layer: LayerHash,
    /// The layer's record.
    pub record: RecordId,
    /// The root object that the upper lies over. It is the layer's, or differs from it: in inode numbers
    /// after a restore, and in whatever the layer left out.
    pub root: ObjectId,
}

/// How a path differs from the head. In JSON it is its letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiffKind {
    /// New.
    #[serde(rename = "A")]
    Added,
    /// Other content or metadata.
    #[serde(rename = "M")]
    Modified,
    /// Gone.
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
    /// The path from the root of the view, beginning with `/`; any bytes.
    pub path: Vec<u8>,
}

/// Figures of a view for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewStats {
    /// Inodes that differ from the head.
    pub dirty_inodes: u64,
    /// Bytes of file data in the upper.
    pub dirty_bytes: u64,
    /// Grows with every change of the view; equal numbers mean that nothing changed between.
    pub generation: u64,
    /// Inodes in memory.
    pub cached_inodes: u64,
}
