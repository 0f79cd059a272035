//! Finding data and holes.

use std::fs::File;
use std::ops::Range;

use karapace_store::content::{BLOCK, FileContent};
use karapace_store::inode::Ino;

use crate::error::{Error, Result};
use crate::view::View;
use crate::view::node::{BlockBody, FileBody};
use crate::view::ops::resize::file_body;

/// Result of SEEK_DATA or SEEK_HOLE. Offsets are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// The offset found; `None` (ENXIO) beyond the end, or if only a hole follows.
    pub at: Option<u64>,
    /// The hole that was skipped or found; empty if there is none.
    pub hole: Range<u64>,
}

impl View {
    /// Finds the next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or after `offset`, in bytes. The end of the
    /// file counts as a hole.
    ///
    /// # Errors
    /// [`Error::NoSuchOffset`] if there is none; [`Error::Invalid`] for another `whence`.
    pub fn lseek(&self, ino: Ino, offset: u64, whence: i32) -> Result<u64> {
        self.seek(ino, offset, whence)?.at.ok_or(Error::NoSuchOffset)
    }

    /// Like [`View::lseek`], and also returns the hole that the answer depends on.
    pub fn seek(&self, ino: Ino, offset: u64, whence: i32) -> Result<Sought> {
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return Err(Error::Invalid("only SEEK_DATA and SEEK_HOLE are supported here"));
        }
        let state = self.state.read();
        let node = state.node(ino)?;
        let size = node.meta.size;
        let body = file_body(node)?;
        if offset >= size {
            return Ok(Sought { at: None, hole: 0..0 });
        }
        match body {
            FileBody::Lower(content) => {
                let content = content.clone();
                drop(state);
                sought(offset, size, whence, |from| Ok(stored(&content, from..size)))
            }
            FileBody::Whole(data) => {
                let file = self.data_for_reading(data)?;
                drop(state);
                sought(offset, size, whence, |from| host_data(&file, from))
            }
            FileBody::Blocks(b) => {
                let (body, file) = (b.clone(), self.data_for_reading(&b.data)?);
                drop(state);
                sought(offset, size, whence, |from| in_blocks(&body, &file, from, size))
            }
        }
    }
}

/// `piece` returns the next range of data at or after an offset.
fn sought(
    offset: u64,
    size: u64,
    whence: i32,
    piece: impl Fn(u64) -> Result<Option<Range<u64>>>,
) -> Result<Sought> {
    let start = |data: &Option<Range<u64>>| data.as_ref().map_or(size, |data| data.start.min(size));
    let first = piece(offset)?;
    if whence == libc::SEEK_DATA {
        return Ok(Sought { hole: offset..start(&first), at: first.map(|data| data.start) });
    }
    let (mut hole, mut next) = (offset, first);
    while hole < size && start(&next) <= hole {
        hole = next.map_or(size, |data| data.end.min(size));
        next = piece(hole)?;
    }
    // The implicit hole at the end of the file is an empty range.
    Ok(Sought { at: Some(hole), hole: hole..start(&next).max(hole) })
}

/// The first range of data of a content inside `within`.
fn stored(content: &FileContent, within: Range<u64>) -> Option<Range<u64>> {
    let clip = |piece: Range<u64>| piece.start.max(within.start)..piece.end.min(within.end);
    let piece = if content.is_plain() {
        clip(0..content.size)
    } else {
        let next = content.extents.partition_point(|extent| extent.end() <= within.start);
        content.extents.get(next).map(|extent| clip(extent.offset..extent.end()))?
    };
    (!piece.is_empty()).then_some(piece)
}

/// The next range of data in a file of blocks: dirty blocks have the holes of the data file, all others those
/// of the base.
fn in_blocks(body: &BlockBody, file: &File, from: u64, size: u64) -> Result<Option<Range<u64>>> {
    let mut at = from;
    while at < size {
        let ours = body.dirty.contains(at / BLOCK);
        let mut end = at / BLOCK + 1;
        while end * BLOCK < size && body.dirty.contains(end) == ours {
            end += 1;
        }
        let end = (end * BLOCK).min(size);
        let piece = if ours {
            host_data(file, at)?.filter(|data| data.start < end).map(|data| data.start..data.end.min(end))
        } else {
            stored(&body.base, at..end.min(body.limit).max(at))
        };
        if piece.is_some() {
            return Ok(piece);
        }
        at = end;
    }
    Ok(None)
}

/// The next range of data at or after `offset` in a host file.
fn host_data(file: &File, offset: u64) -> Result<Option<Range<u64>>> {
    let Some(start) = host_seek(file, offset, nix::unistd::Whence::SeekData)? else { return Ok(None) };
    let end = host_seek(file, start, nix::unistd::Whence::SeekHole)?;
    Ok(end.map(|end| start..end))
}

/// `None` after the last data, and beyond the end.
fn host_seek(file: &File, offset: u64, whence: nix::unistd::Whence) -> Result<Option<u64>> {
    let Ok(offset) = i64::try_from(offset) else { return Ok(None) };
    match nix::unistd::lseek64(file, offset, whence) {
        Ok(at) => Ok(Some(at as u64)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(e) => Err(Error::Io(e.into())),
    }
}
