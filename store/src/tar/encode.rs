//! Writes a tar stream: ustar headers, with PAX records only where a header cannot hold a value.
//!
//! Each entry has exactly one encoding: no field depends on the time, the machine or the order of records.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::BLOCK;
use super::header::flag;
use super::pax::percent_encode;
use crate::inode::{FileKind, Timestamp, Xattrs};

/// The largest values that octal fields of 8 and 12 bytes can hold.
const MAX_SHORT: u64 = 0o777_7777;
const MAX_LONG: u64 = 0o777_7777_7777;

/// The fields of an entry's header.
#[derive(Debug, Clone)]
pub struct EntryHeader<'a> {
    /// The name as written to the archive; by convention a directory's ends in a slash.
    pub path: &'a [u8],
    /// The target of a hard or symbolic link; otherwise empty.
    pub link: &'a [u8],
    /// One of tar's type flags; see [`EntryHeader::type_flag`].
    pub type_flag: u8,
    /// Permission bits, 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of the body that follows, in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Timestamp,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

impl EntryHeader<'_> {
    /// The type flag of a kind of file. Tar has none for sockets: they are written as FIFOs, and the caller
    /// marks them by a record.
    pub fn type_flag(kind: FileKind) -> u8 {
        match kind {
            FileKind::Regular => flag::REGULAR,
            FileKind::Directory => flag::DIRECTORY,
            FileKind::Symlink => flag::SYMLINK,
            FileKind::CharDevice => flag::CHAR,
            FileKind::BlockDevice => flag::BLOCK,
            FileKind::Fifo | FileKind::Socket => flag::FIFO,
        }
    }

    /// The type flag of a hard link to an earlier entry.
    pub const HARD_LINK: u8 = flag::HARD_LINK;
}

/// PAX records by key.
pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Adds the records for extended attributes.
pub(super) fn xattr_records(xattrs: &Xattrs, records: &mut Records) {
    for (name, value) in xattrs.iter() {
        let key = [b"SCHILY.xattr.", percent_encode(name).as_slice()].concat();
        records.insert(key, value.to_vec());
    }
}

/// Writes entries to `out`. After [`Encoder::entry`] the caller must pass exactly the announced number of
/// bytes to [`Encoder::body`], in any pieces.
pub struct Encoder<W> {
    out: W,
    /// The number of bytes written, for padding.
    written: u64,
}

impl<W: Write> Encoder<W> {
    /// A writer at the start of an archive.
    pub fn new(out: W) -> Self {
        Self { out, written: 0 }
    }

    /// Writes an entry's header, after padding the previous body. `records` are written in addition to those
    /// that the header itself requires.
    pub fn entry(&mut self, header: &EntryHeader<'_>, mut records: Records) -> io::Result<()> {
        self.pad()?;
        let mut need = |key: &str, needed: bool, value: Vec<u8>| {
            if needed {
                records.insert(key.as_bytes().to_vec(), value);
            }
        };
        let digits = |n: u64| n.to_string().into_bytes();
        need("path", header.path.len() > 100, header.path.to_vec());
        need("linkpath", header.link.len() > 100, header.link.to_vec());
        need("uid", u64::from(header.uid) > MAX_SHORT, digits(header.uid.into()));
        need("gid", u64::from(header.gid) > MAX_SHORT, digits(header.gid.into()));
        need("size", header.size > MAX_LONG, digits(header.size));
        let time = header.mtime;
        let plain_time = time.nanos == 0 && u64::try_from(time.secs).is_ok_and(|secs| secs <= MAX_LONG);
        need("mtime", !plain_time, time_text(time).into_bytes());
        let (major, minor) = (u64::from(header.device.0), u64::from(header.device.1));
        need("SCHILY.devmajor", major > MAX_SHORT, digits(major));
        need("SCHILY.devminor", minor > MAX_SHORT, digits(minor));
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let meta = EntryHeader {
                path: b"././@PaxHeader",
                link: b"",
                type_flag: flag::PAX,
                mode: 0,
                uid: 0,
                gid: 0,
                size: body.len() as u64,
                mtime: Timestamp::default(),
                device: (0, 0),
            };
            self.write(&block(&meta))?;
            self.write(&body)?;
            self.pad()?;
        }
        self.write(&block(header))
    }

    /// Writes a piece of the body.
    pub fn body(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)
    }

    /// Writes the end marker and returns the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.pad()?;
        self.write(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(BLOCK as u64) - self.written;
        self.write(&[0; BLOCK][..missing as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// A record `<length> <key>=<value>\n`, in which the length includes its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Seconds and, if not zero, the fraction without trailing zeros. Before 1970 the fraction counts backwards,
/// as in `-0.5`.
fn time_text(time: Timestamp) -> String {
    let (sign, secs, nanos) = match (time.secs < 0, time.nanos) {
        (true, 0) => ("-", time.secs.unsigned_abs(), 0),
        (true, nanos) => ("-", time.secs.unsigned_abs() - 1, 1_000_000_000 - nanos),
        (false, nanos) => ("", time.secs.unsigned_abs(), nanos),
    };
    if nanos == 0 {
        return format!("{sign}{secs}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{secs}.{}", fraction.trim_end_matches('0'))
}

fn block(header: &EntryHeader<'_>) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block, 0, 100, header.path);
    octal(&mut block, 100, 8, u64::from(header.mode & 0o7777), MAX_SHORT);
    octal(&mut block, 108, 8, header.uid.into(), MAX_SHORT);
    octal(&mut block, 116, 8, header.gid.into(), MAX_SHORT);
    octal(&mut block, 124, 12, header.size, MAX_LONG);
    octal(&mut block, 136, 12, u64::try_from(header.mtime.secs).unwrap_or(0), MAX_LONG);
    block[156] = header.type_flag;
    put(&mut block, 157, 100, header.link);
    put(&mut block, 257, 8, b"ustar\x0000");
    octal(&mut block, 329, 8, header.device.0.into(), MAX_SHORT);
    octal(&mut block, 337, 8, header.device.1.into(), MAX_SHORT);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    octal(&mut block, 148, 7, sum, MAX_SHORT);
    block
}

/// Writes a text field. A value that is too long is truncated; a PAX record then holds all of it.
fn put(block: &mut [u8; BLOCK], at: usize, len: usize, value: &[u8]) {
    let len = value.len().min(len);
    block[at..at + len].copy_from_slice(&value[..len]);
}

/// Writes an octal field. A number above `max` is written as 0, beside its PAX record.
fn octal(block: &mut [u8; BLOCK], at: usize, len: usize, value: u64, max: u64) {
    let value = if value > max { 0 } else { value };
    let text = format!("{value:0width$o}\0", width = len - 1);
    block[at..at + len].copy_from_slice(text.as_bytes());
}
