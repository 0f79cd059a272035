//! Finding data and holes.

use std::fs::File;
use std::ops::Range;

use karapace_store::content::BLOCK;
use karapace_store::inode::Ino;

use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::{BlockBody, FileBody};
use crate::view::resize::file_body;

/// What SEEK_DATA or SEEK_HOLE finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The offset; `None` (ENXIO) when there is only a hole from there on, or nothing.
    pub at: Option<u64>,
    /// The hole that was skipped, or found; empty when the answer rests on none.
    pub hole: Range<u64>,
}

impl View {
    /// Finds the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or after `offset`. The end of a file is a hole.
    pub fn lseek(&self, ino: Ino, offset: u64, whence: i32) -> Result<u64> {
        self.seek(ino, offset, whence)?.at.ok_or(Error::NoSuchOffset)
    }

    /// The same, with the hole that the answer rests on.
    pub fn seek(&self, ino: Ino, offset: u64, whence: i32) -> Result<Sought> {
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return Err(Error::Invalid("only SEEK_DATA and SEEK_HOLE are asked of a file system"));
        }
        let state = self.state.read();
        let node = state.node(ino)?;
        let size = node.meta.size;
        let body = file_body(node)?;
        if offset >= size {
            return Ok(Sought { at: None, hole: 0..0 });
        }
        let data_at = |ranges: &[(u64, u64)], from: u64| {
            let next = ranges.iter().find(|(start, len)| start + len > from);
            next.map(|(start, len)| (*start).max(from)..(start + len).min(size))
        };
        let ranges = match body {
            FileBody::Whole(data) => {
                let file = self.data_for_reading(data)?;
                drop(state);
                return sought(offset, size, whence, |from| host_data(&file, from));
            }
            FileBody::Lower(content) => content.data_ranges(),
            FileBody::Blocks(b) => block_ranges(b, size),
        };
        sought(offset, size, whence, |from| Ok(data_at(&ranges, from)))
    }
}

/// `data` gives what data there is next, at or after an offset.
fn sought(
    offset: u64,
    size: u64,
    whence: i32,
    data: impl Fn(u64) -> Result<Option<Range<u64>>>,
) -> Result<Sought> {
    let first = data(offset)?;
    let start = |data: &Option<Range<u64>>| data.as_ref().map_or(size, |data| data.start.min(size));
    if whence == libc::SEEK_DATA {
        return Ok(Sought { hole: offset..start(&first), at: first.map(|data| data.start) });
    }
    let hole = first.filter(|data| data.start <= offset).map_or(offset, |data| data.end.min(size));
    // Where it ends at the end of the file, it is none.
    let end = if hole < size { start(&data(hole)?) } else { hole };
    Ok(Sought { at: Some(hole), hole: hole..end })
}

/// Data ranges of a file of blocks, ascending and coalesced.
fn block_ranges(body: &BlockBody, size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = body.dirty.runs().iter().map(|(f, n)| (f * BLOCK, n * BLOCK)).collect();
    for (start, len) in body.base.data_ranges() {
        let len = len.min(body.limit.saturating_sub(start));
        if len > 0 {
            ranges.push((start, len));
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, len) in ranges {
        let len = len.min(size.saturating_sub(start));
        match merged.last_mut() {
            Some((s, l)) if *s + *l >= start => *l = (*l).max(start + len - *s),
            _ if len > 0 => merged.push((start, len)),
            _ => {}
        }
    }
    merged
}

/// The data at or after `offset` in a file of the host.
fn host_data(file: &File, offset: u64) -> Result<Option<Range<u64>>> {
    let Some(start) = host_seek(file, offset, nix::unistd::Whence::SeekData)? else { return Ok(None) };
    let end = host_seek(file, start, nix::unistd::Whence::SeekHole)?;
    Ok(end.map(|end| start..end))
}

/// `None` behind the last data, and behind the end.
fn host_seek(file: &File, offset: u64, whence: nix::unistd::Whence) -> Result<Option<u64>> {
    let Ok(offset) = i64::try_from(offset) else { return Ok(None) };
    match nix::unistd::lseek64(file, offset, whence) {
        Ok(at) => Ok(Some(at as u64)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(e) => Err(Error::Io(e.into())),
    }
}
