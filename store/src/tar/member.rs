//! One member of an archive, decoded from its header's fields.

use super::header::{Header, flag};
use super::pax::Pax;
use crate::inode::Timestamp;

/// The type of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A file with content.
    Regular,
    /// A hard link to the member that `link` names.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device with the number `device`.
    CharDevice,
    /// A block device with the number `device`.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One member's header, combined with its extended headers.
#[derive(Debug)]
pub struct Member {
    /// The name as stored in the archive: any bytes but NUL, not normalised.
    pub path: Vec<u8>,
    /// The target of a hard or symbolic link; otherwise empty.
    pub link: Vec<u8>,
    /// Its type.
    pub kind: MemberKind,
    /// Permission bits, 07777 at most.
    pub mode: u32,
    /// Owner, as a number; user names in the archive are ignored.
    pub uid: u32,
    /// Group, as a number.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes including ACLs, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file's size in bytes, including holes.
    pub size: u64,
    /// For a sparse file, the ranges (offset, length) that the body holds one after another.
    pub ranges: Option<Vec<(u64, u64)>>,
    /// Whether a name that looks like a whiteout is an ordinary name; our own writer marks these with a
    /// record.
    pub literal: bool,
    /// What could not be kept, for the user.
    pub notes: Vec<String>,
}

pub(super) fn kind(type_flag: u8, path: &[u8]) -> Option<MemberKind> {
    Some(match type_flag {
        // Before ustar, a directory was a file whose name ends in a slash.
        0 | flag::REGULAR if path.ends_with(b"/") => MemberKind::Directory,
        0 | flag::REGULAR | flag::CONTIGUOUS | flag::GNU_SPARSE => MemberKind::Regular,
        flag::HARD_LINK => MemberKind::HardLink,
        flag::SYMLINK => MemberKind::Symlink,
        flag::CHAR => MemberKind::CharDevice,
        flag::BLOCK => MemberKind::BlockDevice,
        flag::DIRECTORY | flag::GNU_DUMPDIR => MemberKind::Directory,
        flag::FIFO => MemberKind::Fifo,
        _ => return None,
    })
}

pub(super) fn id(pax: Option<u64>, header: Option<i64>) -> Result<u32, &'static str> {
    match pax {
        Some(id) => u32::try_from(id).ok(),
        None => header.and_then(|id| u32::try_from(id).ok()),
    }
    .ok_or("its owner's or group's number is out of range")
}

/// The device's major and minor number: 12 and 20 bits, since a kernel takes larger ones for another device.
pub(super) fn device(pax: &Pax, header: &Header) -> Result<(u32, u32), &'static str> {
    const UNKNOWN: &str = "its device number is not a number";
    let (major, minor) = header.device().ok_or(UNKNOWN)?;
    let number = |key, own: i64, limit: u32| {
        let number = pax.number(key)?.or(u64::try_from(own).ok());
        let number = number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n < limit);
        number.ok_or("its device number exceeds Linux's range")
    };
    Ok((number("SCHILY.devmajor", major, 1 << 12)?, number("SCHILY.devminor", minor, 1 << 20)?))
}
