//! Converts between the view's types and fuser's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use karapace_store::inode::{FileKind, Timestamp};

use super::idmap::IdMap;
use super::nodes::{LIVE, node_id};
use crate::attr::{Attr, RenameMode, SetTime};
use crate::error::{Error, Result};

/// Names and attributes change only through the kernel, so it may cache them for ever: ten years.
pub(crate) const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For what must not be cached: control files change with each look-up.
pub(crate) const NEVER: Duration = Duration::ZERO;

/// `st_blksize` of every file, in bytes.
const BLOCK_SIZE: u32 = 4096;

/// Converts attributes for the kernel: node id, shown ids, and the kernel's encoding of devices.
pub(crate) fn file_attr(attr: &Attr, index: u16, ids: Option<&IdMap>) -> FileAttr {
    let kind = FileKind::from_mode(attr.mode).unwrap_or(FileKind::Regular);
    // tar takes a file with zero blocks to be one hole, without asking for its data, but there may be some in
    // the kernel's pages.
    let may_hold = index == LIVE && kind == FileKind::Regular && attr.size > 0;
    FileAttr {
        ino: INodeNo(node_id(index, attr.ino)),
        size: attr.size,
        blocks: attr.blocks.max(u64::from(may_hold)),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: ids.map_or(attr.uid, |ids| ids.shown_uid(attr.uid)),
        gid: ids.map_or(attr.gid, |ids| ids.shown_gid(attr.gid)),
        rdev: encode_dev(attr.rdev),
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// A negative entry that the kernel may cache.
pub(crate) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Attributes for a `READDIRPLUS` entry that the kernel should list but not cache. fuser uses the node id as
/// the listed inode number, so the id cannot be 0; a size that no file can have makes the kernel (5.5 and
/// later) reject the attributes and send a FORGET for the one reference.
pub(crate) fn listed_only(node: u64, kind: FileKind) -> FileAttr {
    FileAttr { ino: INodeNo(node), size: u64::MAX, kind: file_type(kind), ..absent() }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// `nanos` counts forward from `secs`, even before 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    // Exceeds SystemTime's range only for the largest second, where the nanoseconds do not matter.
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

/// A time decoded by fuser. For times before 1970, fuser 0.18 decodes (secs, nanos) as EPOCH − (|secs| +
/// nanos), where the protocol means EPOCH − |secs| + nanos; both parts can be recovered from its result.
fn decoded_time(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp {
            secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp { secs: 0i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

/// Converts an access or modification time of `setattr`.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(decoded_time(time)),
    }
}

/// Converts a change time of `setattr`.
pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    decoded_time(time)
}

/// The mode of a `renameat2`.
///
/// # Errors
/// `Invalid` for flags that no kernel sends.
pub(crate) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.contains(RenameFlags::RENAME_EXCHANGE) {
        return Ok(RenameMode::Exchange);
    }
    // With WHITEOUT, the kernel has already checked NOREPLACE itself, holding both directories' locks.
    if flags.contains(RenameFlags::RENAME_WHITEOUT) {
        return Ok(RenameMode::Whiteout);
    }
    if flags.contains(RenameFlags::RENAME_NOREPLACE) {
        return Ok(RenameMode::NoReplace);
    }
    if flags.is_empty() { Ok(RenameMode::Replace) } else { Err(Error::Invalid("unknown rename flags")) }
}

/// Encodes a `dev_t` in the protocol's 32 bits (the kernel's `new_encode_dev`): 12 bits of major, 20 of
/// minor.
fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Decodes the `dev_t` of a `MKNOD` (the kernel's `new_decode_dev`).
pub(crate) fn decode_dev(dev: u32) -> u64 {
    libc::makedev((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        for (major, minor) in [(1, 3), (8, 0), (259, 1), (10, 229), (0xfff, 0xf_ffff), (0, 0x1234)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
        assert_eq!(encode_dev(libc::makedev(8, 1)), 0x801);
        assert_eq!(encode_dev(libc::makedev(259, 0x12345)), 0x1231_0345);
    }

    #[test]
    fn times_before_1970() {
        // fuser's encoding for the kernel: seconds rounded down, nanoseconds forward.
        let early = Timestamp { secs: -2, nanos: 800_000_000 };
        assert_eq!(UNIX_EPOCH - Duration::from_millis(1200), system_time(early));
        // How fuser decodes (-2, 800 ms) from the kernel.
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp(decoded), early);
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(5)), Timestamp { secs: -5, nanos: 0 });
        assert_eq!(timestamp(UNIX_EPOCH + Duration::new(5, 6)), Timestamp { secs: 5, nanos: 6 });
    }

    #[test]
    fn rename_flags() {
        let both = RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(both).ok(), Some(RenameMode::Whiteout));
        assert_eq!(rename_mode(RenameFlags::empty()).ok(), Some(RenameMode::Replace));
        assert!(rename_mode(RenameFlags::from_bits_retain(64)).is_err());
    }
}
