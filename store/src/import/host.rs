//! Reads inodes of the host.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::builder::Attributes;
use crate::inode::{Timestamp, Xattrs};
use crate::input::by_descriptor;
use crate::progress::Progress;

/// A file being read. Keeps a read error, to tell it apart from errors in the store.
pub(super) struct Source<'a> {
    pub file: &'a File,
    pub failed: Option<io::Error>,
    pub read: u64,
    pub progress: &'a dyn Progress,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other("stopped on request"));
        }
        match self.file.read(buf) {
            Ok(got) => {
                self.read += got as u64;
                Ok(got)
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(copy)
            }
        }
    }
}

pub(super) fn open(directory: &OwnedFd, name: &CStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// The data ranges of a file, as offset and length.
pub(super) fn data_ranges(file: &File, size: u64) -> rustix::io::Result<Vec<(u64, u64)>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            // The file was truncated meanwhile.
            Err(Errno::NXIO) => break,
            other => other?.min(size),
        };
        if start >= end {
            break;
        }
        ranges.push((start, end - start));
        at = end;
    }
    Ok(ranges)
}

pub(super) fn attributes(stat: &Stat, xattrs: Xattrs) -> Attributes {
    let mtime = Timestamp { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    let mode = stat.st_mode & 0o7777;
    Attributes { mode, uid: stat.st_uid, gid: stat.st_gid, mtime, other_times: None, xattrs }
}

pub(super) fn xattrs(file: &OwnedFd) -> io::Result<Xattrs> {
    collect_xattrs(&|buf| rustix::fs::flistxattr(file, buf), &|name, buf| {
        rustix::fs::fgetxattr(file, name, buf)
    })
}

/// The xattrs of an inode that must not be opened (device, FIFO, link): by name, through the directory's
/// descriptor.
pub(super) fn named_xattrs(directory: &OwnedFd, name: &CStr) -> io::Result<Xattrs> {
    let path = by_descriptor(directory).join(OsStr::from_bytes(name.to_bytes()));
    collect_xattrs(&|buf| rustix::fs::llistxattr(&path, buf), &|name, buf| {
        rustix::fs::lgetxattr(&path, name, buf)
    })
}

type List<'a> = &'a dyn Fn(&mut [u8]) -> rustix::io::Result<usize>;
type Get<'a> = &'a dyn Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>;

fn collect_xattrs(list: List<'_>, get: Get<'_>) -> io::Result<Xattrs> {
    let names = match grow(list) {
        Err(Errno::NOTSUP) => return Ok(Xattrs::default()),
        other => other?,
    };
    let mut all = Xattrs::new();
    for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let value = match grow(&|buf| get(OsStr::from_bytes(name), buf)) {
            // The xattr was removed between the two calls, or only the kernel may read it.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        all.set(name, &value);
    }
    Ok(all)
}

/// Calls with a larger buffer until the result fits; the kernel allows 64 KiB.
fn grow(call: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(length) => {
                buf.truncate(length);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}
