//! Inodes: the attributes and content of a file, without its names.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::codec::{Decoder, put_bytes, put_id, put_signed, put_varint};
use crate::content::FileContent;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;

mod xattrs;

pub use xattrs::Xattrs;

/// Number of an inode within one environment: 1 to [`MAX_INO`].
pub type Ino = u64;

/// The root directory's number.
pub const ROOT_INO: Ino = 1;

/// The largest number; the 16 bits above it are free for the front end.
pub const MAX_INO: Ino = (1 << 48) - 1;

/// A time since 1970-01-01 00:00 UTC. Ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds, rounded down (negative before 1970).
    pub secs: i64,
    /// Nanoseconds to add, below 1,000,000,000.
    pub nanos: u32,
}

impl Timestamp {
    /// The current time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// A time of whole seconds.
    pub const fn from_secs(secs: i64) -> Self {
        Self { secs, nanos: 0 }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
            Err(error) => {
                let before = error.duration();
                let secs = -(before.as_secs() as i64);
                match before.subsec_nanos() {
                    0 => Self { secs, nanos: 0 },
                    nanos => Self { secs: secs - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

/// Type bits of a mode.
const S_IFMT: u32 = 0o170_000;

/// The kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl FileKind {
    /// The kind for the type bits (`S_IFMT`) of a mode; `None` if they are invalid.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & S_IFMT {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            _ => return None,
        })
    }

    /// The type bits of a mode.
    pub const fn to_mode(self) -> u32 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
        }
    }

    /// Whether it is a character or block device.
    pub const fn is_device(self) -> bool {
        matches!(self, Self::CharDevice | Self::BlockDevice)
    }
}

/// The kind-specific part of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A directory.
    Directory {
        /// Its listing; `None` when it is empty.
        tree: Option<ObjectId>,
        /// Whether a name in it, at any depth, refers to an inode in the link table.
        links: bool,
    },
    /// A regular file.
    Regular(FileContent),
    /// A symbolic link: its target.
    Symlink(Box<[u8]>),
    /// A FIFO, socket or device, which has nothing more.
    Special,
}

/// One inode: everything that `stat`, `listxattr` and `readlink` return, and where the content is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeRecord {
    /// Its number.
    pub ino: Ino,
    /// Type bits (`S_IFMT`) and permissions (07777).
    pub mode: u32,
    /// Number of names; for a directory 2 + the number of its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number in Linux's `dev_t` format (`makedev`); 0 if it is not a device.
    pub rdev: u64,
    /// Last access (not maintained: the mount is noatime).
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// The kind-specific part; must match the type bits of `mode`.
    pub body: Body,
}

/// Bits of an encoded record's first byte.
mod flag {
    pub const XATTRS: u8 = 1;
    /// atime differs from mtime.
    pub const ATIME: u8 = 2;
    /// ctime differs from mtime.
    pub const CTIME: u8 = 4;
    /// Directory: it has a tree.
    pub const TREE: u8 = 8;
    /// Directory: `links`.
    pub const LINKS: u8 = 16;
    /// Regular file: plain.
    pub const PLAIN: u8 = 8;
}

/// The head of an encoded record, which is decoded without allocating.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHead {
    flags: u8,
    pub ino: Ino,
    mode: u32,
    pub kind: FileKind,
}

impl RecordHead {
    pub(crate) fn decode(decoder: &mut Decoder<'_>) -> Result<Self> {
        let flags = decoder.u8()?;
        let ino = decode_ino(decoder)?;
        let mode = decoder.varint32()?;
        let Some(kind) = FileKind::from_mode(mode).filter(|_| mode & !(S_IFMT | 0o7777) == 0) else {
            return Err(decoder.error(format!("mode {mode:o} is not valid")));
        };
        let mut allowed = flag::XATTRS | flag::ATIME | flag::CTIME;
        match kind {
            FileKind::Directory => allowed |= flag::TREE | flag::LINKS,
            FileKind::Regular => allowed |= flag::PLAIN,
            _ => {}
        }
        let links_without_tree =
            kind == FileKind::Directory && flags & (flag::TREE | flag::LINKS) == flag::LINKS;
        if flags & !allowed != 0 || links_without_tree {
            return Err(decoder.error(format!("flags {flags:#x} do not suit a {kind:?}")));
        }
        Ok(Self { flags, ino, mode, kind })
    }

    /// Whether this is a directory with a name of a linked inode at any depth.
    pub(crate) fn links(&self) -> bool {
        self.kind == FileKind::Directory && self.flags & flag::LINKS != 0
    }
}

/// Decodes an inode number and checks its range.
pub(crate) fn decode_ino(decoder: &mut Decoder<'_>) -> Result<Ino> {
    match decoder.varint()? {
        ino @ ROOT_INO..=MAX_INO => Ok(ino),
        ino => Err(decoder.error(format!("inode number {ino} is out of range"))),
    }
}

impl InodeRecord {
    /// The kind given by `mode`. A record with invalid type bits, which cannot be decoded, counts as regular.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }

    /// For a directory: its listing (`None` when empty), and whether it has a name of a linked inode at any
    /// depth. For any other kind `(None, false)`.
    pub fn listing(&self) -> (Option<ObjectId>, bool) {
        match self.body {
            Body::Directory { tree, links } => (tree, links),
            _ => (None, false),
        }
    }

    /// Refuses a record that could not be decoded, or would be decoded differently.
    pub(crate) fn check(&self) -> Result<()> {
        let suits = match (FileKind::from_mode(self.mode), &self.body) {
            (Some(FileKind::Directory), Body::Directory { tree, links }) => tree.is_some() || !links,
            (Some(FileKind::Regular), Body::Regular(_)) | (Some(FileKind::Symlink), Body::Symlink(_)) => true,
            (None | Some(FileKind::Directory | FileKind::Regular | FileKind::Symlink), _) => false,
            (Some(_), body) => *body == Body::Special,
        };
        let times = [self.atime, self.mtime, self.ctime].iter().all(|time| time.nanos < 1_000_000_000);
        let reason = if !(ROOT_INO..=MAX_INO).contains(&self.ino) {
            "its number is out of range"
        } else if !suits || self.mode & !(S_IFMT | 0o7777) != 0 {
            "its mode does not match its content"
        } else if !times {
            "a time has too many nanoseconds"
        } else if !self.xattrs.iter().all(|(name, _)| Xattrs::is_name(name)) {
            "an attribute's name is not valid"
        } else {
            return Ok(());
        };
        Err(StoreError::invalid(format!("inode {} cannot be stored: {reason}", self.ino)))
    }

    /// Appends the encoding; each record has exactly one.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut flags = 0;
        let mut set = |bit, on| flags |= if on { bit } else { 0 };
        set(flag::XATTRS, !self.xattrs.is_empty());
        set(flag::ATIME, self.atime != self.mtime);
        set(flag::CTIME, self.ctime != self.mtime);
        match &self.body {
            Body::Directory { tree, links } => {
                set(flag::TREE, tree.is_some());
                set(flag::LINKS, *links);
            }
            Body::Regular(content) => set(flag::PLAIN, content.is_plain()),
            Body::Symlink(_) | Body::Special => {}
        }
        out.push(flags);
        put_varint(out, self.ino);
        put_varint(out, self.mode.into());
        put_varint(out, self.nlink.into());
        put_varint(out, self.uid.into());
        put_varint(out, self.gid.into());
        if self.kind().is_device() {
            put_varint(out, self.rdev);
        }
        put_time(out, self.mtime);
        if self.atime != self.mtime {
            put_time(out, self.atime);
        }
        if self.ctime != self.mtime {
            put_time(out, self.ctime);
        }
        if !self.xattrs.is_empty() {
            self.xattrs.encode(out);
        }
        match &self.body {
            Body::Directory { tree: Some(tree), .. } => put_id(out, tree),
            Body::Regular(content) => content.encode(out),
            Body::Symlink(target) => put_bytes(out, target),
            Body::Directory { tree: None, .. } | Body::Special => {}
        }
    }

    /// Decodes a record. Corrupt input is an error, and uses no more memory than a small multiple of its
    /// size.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes are not the encoding of a record.
    pub fn decode(decoder: &mut Decoder<'_>) -> Result<Self> {
        let RecordHead { flags, ino, mode, kind } = RecordHead::decode(decoder)?;
        let has = |bit| flags & bit != 0;
        let nlink = decoder.varint32()?;
        let uid = decoder.varint32()?;
        let gid = decoder.varint32()?;
        let rdev = if kind.is_device() { decoder.varint()? } else { 0 };
        let mtime = decode_time(decoder)?;
        let mut other_time = |bit| {
            if !has(bit) {
                return Ok(mtime);
            }
            let time = decode_time(decoder)?;
            if time == mtime { Err(decoder.error("the same time is stored twice")) } else { Ok(time) }
        };
        let atime = other_time(flag::ATIME)?;
        let ctime = other_time(flag::CTIME)?;
        let xattrs = if has(flag::XATTRS) { Xattrs::decode(decoder)? } else { Xattrs::default() };
        let body = match kind {
            FileKind::Directory => {
                let tree = if has(flag::TREE) { Some(decoder.id()?) } else { None };
                Body::Directory { tree, links: has(flag::LINKS) }
            }
            FileKind::Regular => Body::Regular(FileContent::decode(decoder, has(flag::PLAIN))?),
            FileKind::Symlink => Body::Symlink(decoder.bytes()?.into()),
            FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => Body::Special,
        };
        Ok(Self { ino, mode, nlink, uid, gid, rdev, atime, mtime, ctime, xattrs, body })
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_signed(out, time.secs);
    put_varint(out, time.nanos.into());
}

fn decode_time(decoder: &mut Decoder<'_>) -> Result<Timestamp> {
    let secs = decoder.signed()?;
    match decoder.varint32()? {
        nanos @ ..1_000_000_000 => Ok(Timestamp { secs, nanos }),
        nanos => Err(decoder.error(format!("{nanos} nanoseconds are a second or more"))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
