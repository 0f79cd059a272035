//! Entries of the inode table: what the view keeps in memory about an inode.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use karapace_store::content::{BLOCK, Extent, FileContent};
use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, Timestamp, Xattrs};

use crate::attr::Attr;
use crate::upper::blocks::BlockSet;
use crate::upper::boot::Boot;
use crate::upper::data::DataFile;
use crate::upper::record::{DataState, Place};

/// The fixed-size part of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Number of names; 0 for an inode that is only held open.
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// `dev_t` of a device node.
    pub rdev: u64,
    /// Size in bytes; 0 for directories and special files.
    pub size: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

impl Meta {
    pub fn kind(&self) -> FileKind {
        // Every mode in the table was decoded or built with a valid type.
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }

    /// Replaces the permission bits (07777) and keeps the type.
    pub fn set_permissions(&mut self, bits: u32) {
        self.mode = (self.mode & libc::S_IFMT) | (bits & 0o7777);
    }
}

/// A directory: a lower listing plus changes.
#[derive(Debug, Default)]
pub(crate) struct DirBody {
    /// The lower listing that `changes` applies to; `None` is an empty one.
    pub tree: Option<ObjectId>,
    /// Whether the lower listing holds linked inodes at or below it.
    pub links: bool,
    /// Names that differ from the lower listing: `None` hides the name; `Some` is a dirty inode in the table.
    pub changes: BTreeMap<Box<[u8]>, Option<Ino>>,
}

/// A large file of which some blocks have been rewritten.
#[derive(Clone, Debug)]
pub(crate) struct BlockBody {
    /// Sparse file with the rewritten blocks at their file offsets; as long as the file.
    pub data: Arc<DataFile>,
    pub base: Arc<FileContent>,
    /// How many bytes of `base` are still valid: the smallest size the file had since copy-up.
    pub limit: u64,
    pub dirty: BlockSet,
    /// The blocks of `dirty` that may not be on disk yet. Each lies entirely below `limit`, so the base still
    /// has its bytes if it is lost.
    pub fresh: BlockSet,
    /// The boot in which the data file was created, while that file may not be on disk yet. If set, the file
    /// was never truncated.
    pub fresh_since: Option<Boot>,
}

impl BlockBody {
    /// Whether a sync would make anything durable.
    pub fn has_fresh(&self) -> bool {
        self.fresh_since.is_some() || !self.fresh.is_empty()
    }

    /// Bytes that the file occupies, in the store and on the host together.
    pub fn occupied(&self) -> u64 {
        let below = |end: u64| end.min(self.limit);
        let of = |extent: Extent| below(extent.end()).saturating_sub(extent.offset);
        let stored: u64 = self.base.extents().map(of).sum();
        let (mut replaced, mut runs) = (0, self.dirty.runs().into_iter().peekable());
        for extent in self.base.extents() {
            while runs.next_if(|(first, count)| (first + count) * BLOCK <= extent.offset).is_some() {}
            // The last run may extend into the next extent.
            while let Some((first, count)) = runs.peek().copied().filter(|run| run.0 * BLOCK < extent.end()) {
                let run =
                    (first * BLOCK).max(extent.offset)..below((first + count) * BLOCK).min(extent.end());
                replaced += run.end.saturating_sub(run.start);
                if (first + count) * BLOCK > extent.end() {
                    break;
                }
                runs.next();
            }
        }
        stored - replaced + self.data.allocated(self.dirty.len() * BLOCK)
    }

    /// The data state for a `Put` item; the file has `size` bytes.
    pub fn data_state(&self, size: u64) -> DataState {
        match self.fresh_since {
            None => self.safe_state(size),
            Some(boot) => {
                DataState::FreshBlocks { generation: self.data.generation, size, limit: self.limit, boot }
            }
        }
    }

    /// Like `data_state`, once the data file is on disk.
    pub fn safe_state(&self, size: u64) -> DataState {
        DataState::Blocks { generation: self.data.generation, size, limit: self.limit }
    }

    /// Drops the blocks beyond `size` bytes after a truncation.
    pub fn cut_blocks(&mut self, size: u64) {
        let first = size.div_ceil(BLOCK);
        self.dirty.truncate(first);
        self.fresh.truncate(first);
    }
}

/// Where a regular file's bytes are stored.
#[derive(Clone, Debug)]
pub(crate) enum FileBody {
    /// In the store.
    Lower(Arc<FileContent>),
    /// All in one data file in the upper.
    Whole(Arc<DataFile>),
    /// Rewritten blocks in the upper, the others in the store.
    Blocks(Box<BlockBody>),
}

impl FileBody {
    pub fn data(&self) -> Option<&Arc<DataFile>> {
        match self {
            FileBody::Lower(_) => None,
            FileBody::Whole(data) => Some(data),
            FileBody::Blocks(b) => Some(&b.data),
        }
    }
}

/// The part of an inode that depends on its kind.
#[derive(Debug)]
pub(crate) enum NodeBody {
    Dir(Box<DirBody>),
    File(FileBody),
    Symlink(Box<[u8]>),
    Special,
}

/// An inode in the table.
///
/// Invariants: a dirty inode with a place has a dirty parent, so the dirty inodes form a tree from the root,
/// entirely in memory; every inode in a directory's `changes` is dirty; a linked inode has no place.
#[derive(Debug)]
pub(crate) struct Node {
    pub meta: Meta,
    pub xattrs: Xattrs,
    pub body: NodeBody,
    /// The name of an inode with exactly one name. `None` for the root, linked and removed inodes.
    pub place: Option<Place>,
    /// It has, or had, several names: its record is in the link table.
    pub linked: bool,
    /// It differs from the lower view, or is a directory above an inode that does.
    pub dirty: bool,
    /// A write(2) happened since `meta.mtime` was read off the data file.
    pub stale_times: bool,
    /// A `Touched` item since the last checkpoint tells recovery to read size and mtime from the data file.
    pub touched: bool,
    /// Data was written since the last fsync.
    pub unsynced: bool,
    /// The kernel may have mapped pages of this file: it has read or written back pages. A file that only
    /// gets write(2) is rarely mapped.
    pub mapped: AtomicBool,
    /// References held by the kernel.
    pub lookups: u64,
    /// Inodes in the table whose `place` is in this directory.
    pub children: u32,
    /// Incremented with each change, so that a commit can tell what changed since its seal.
    pub version: u32,
}

impl Node {
    /// A clean node from a record of the lower view.
    pub fn from_record(record: InodeRecord, place: Option<Place>, linked: bool) -> Node {
        let (size, body) = match record.body {
            Body::Directory { tree, links } => {
                (0, NodeBody::Dir(Box::new(DirBody { tree, links, changes: BTreeMap::new() })))
            }
            Body::Regular(content) => (content.size, NodeBody::File(FileBody::Lower(Arc::new(content)))),
            Body::Symlink(target) => (target.len() as u64, NodeBody::Symlink(target)),
            Body::Special => (0, NodeBody::Special),
        };
        let meta = Meta {
            mode: record.mode,
            nlink: record.nlink,
            uid: record.uid,
            gid: record.gid,
            rdev: record.rdev,
            size,
            atime: record.atime,
            mtime: record.mtime,
            ctime: record.ctime,
        };
        Node {
            meta,
            xattrs: record.xattrs,
            body,
            place,
            linked,
            dirty: false,
            stale_times: false,
            touched: false,
            unsynced: false,
            mapped: AtomicBool::new(false),
            lookups: 0,
            children: 0,
            version: 0,
        }
    }

    pub fn kind(&self) -> FileKind {
        self.meta.kind()
    }

    /// Removed; only kernel references keep it.
    pub fn is_orphan(&self) -> bool {
        self.meta.nlink == 0
    }

    pub fn dir(&self) -> Option<&DirBody> {
        match &self.body {
            NodeBody::Dir(dir) => Some(dir),
            _ => None,
        }
    }

    pub fn file(&self) -> Option<&FileBody> {
        match &self.body {
            NodeBody::File(file) => Some(file),
            _ => None,
        }
    }

    /// The data file, if it holds all bytes of the file.
    pub fn whole(&self) -> Option<&Arc<DataFile>> {
        match self.file()? {
            FileBody::Whole(data) => Some(data),
            _ => None,
        }
    }

    /// Generation of the data file, if there is one.
    pub fn data_generation(&self) -> Option<u32> {
        Some(self.file()?.data()?.generation)
    }

    pub fn attr(&self, ino: Ino) -> Attr {
        let m = &self.meta;
        // A directory's size is not measured; 4096 is what ext4 shows for a small one.
        let size = if m.kind() == FileKind::Directory { 4096 } else { m.size };
        // Rounded to whole pages, as the host allocates them for a file in the upper, so that a commit does
        // not change the output of `du`.
        let occupied = match &self.body {
            NodeBody::File(FileBody::Lower(content)) => stored_bytes(content),
            NodeBody::File(FileBody::Whole(data)) => data.allocated(m.size),
            NodeBody::File(FileBody::Blocks(b)) => b.occupied().min(m.size),
            NodeBody::Dir(_) => size,
            _ => 0,
        };
        let mode = match m.kind() {
            // Trees of older stores hold symlinks with the modes found in archives; on Linux a symlink is
            // always 0777.
            FileKind::Symlink => FileKind::Symlink.to_mode() | 0o777,
            _ => m.mode,
        };
        Attr {
            ino,
            mode,
            nlink: m.nlink,
            linked: self.linked,
            uid: m.uid,
            gid: m.gid,
            rdev: m.rdev,
            size,
            blocks: occupied.div_ceil(4096) * 8,
            atime: m.atime,
            mtime: m.mtime,
            ctime: m.ctime,
        }
    }

    /// The inode's record for a tree, with `body` instead of the bytes in the upper.
    pub fn record_with(&self, ino: Ino, body: Body) -> InodeRecord {
        record_of(ino, &self.meta, self.xattrs.clone(), body)
    }
}

/// Bytes that a content occupies in the store, without holes.
fn stored_bytes(content: &FileContent) -> u64 {
    if content.is_plain() { content.size } else { content.extents().map(|e| e.length).sum() }
}

pub(crate) fn record_of(ino: Ino, meta: &Meta, xattrs: Xattrs, body: Body) -> InodeRecord {
    InodeRecord {
        ino,
        mode: meta.mode,
        nlink: meta.nlink,
        uid: meta.uid,
        gid: meta.gid,
        rdev: meta.rdev,
        atime: meta.atime,
        mtime: meta.mtime,
        ctime: meta.ctime,
        xattrs,
        body,
    }
}
