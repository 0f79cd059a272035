//! Stores content from a stream or a file.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{BLOCK, BlockList, EXTENTS_MAX, Extent, FILE_MAX, FileContent, SMALL_MAX, block_length, is_zero};
use crate::batch::{Batch, ObjectWriter};
use crate::error::{IoContext as _, Result, StoreError};
use crate::id::ObjectId;
use crate::object::read_full_at;

/// The path in error messages for a stream or an unnamed file.
const INPUT: &str = "(input)";

/// Stores everything that `reader` returns, using at most about 2 MiB of memory.
///
/// If the file is not plain, its blocks that are not holes are packed into one object.
pub fn ingest(reader: &mut dyn Read, batch: &mut Batch) -> Result<FileContent> {
    let mut head = Vec::new();
    (&mut *reader).take(SMALL_MAX).read_to_end(&mut head).at("read", Path::new(INPUT))?;
    let mut buffer = vec![0; if head.len() as u64 == SMALL_MAX { BLOCK as usize } else { 0 }];
    let mut length = read_full(reader, &mut buffer)?;
    if length == 0 {
        return ingest_small(&head, batch);
    }
    let mut packer = Packer::new(BlockList::new(0));
    for (block, bytes) in (0..).zip(head.chunks(BLOCK as usize)) {
        packer.push(block, bytes, batch)?;
    }
    let mut size = head.len() as u64;
    drop(head);
    while length > 0 {
        packer.push(size / BLOCK, &buffer[..length], batch)?;
        size += length as u64;
        // A short block is the last.
        length = if length == buffer.len() { read_full(reader, &mut buffer)? } else { 0 };
    }
    packer.list.resize(size);
    packer.finish(Vec::new(), batch)
}

/// Stores the first `size` bytes of `file`. `data` lists the ranges, as (offset, length) and sorted, that may
/// hold anything but zeros. Only the blocks that these touch are read; bytes beyond the file's end read as
/// zeros.
///
/// # Errors
/// [`StoreError::Invalid`] when `size` is larger than [`FILE_MAX`].
pub fn ingest_ranges(file: &File, size: u64, data: &[(u64, u64)], batch: &mut Batch) -> Result<FileContent> {
    if size > FILE_MAX {
        return Err(StoreError::invalid(format!("{size} bytes exceed the largest file size")));
    }
    if size <= SMALL_MAX {
        let mut bytes = vec![0; size as usize];
        for block in blocks_of(data, size) {
            read_block(file, block, &mut bytes[range_in_memory(block, size)])?;
        }
        return ingest_small(&bytes, batch);
    }
    let mut packer = Packer::new(BlockList::new(size));
    let mut buffer = vec![0; BLOCK as usize];
    for block in blocks_of(data, size) {
        let bytes = &mut buffer[..block_length(block, size) as usize];
        read_block(file, block, bytes)?;
        packer.push_parts(block, bytes, &parts_of(data, block, size), batch)?;
    }
    packer.finish(Vec::new(), batch)
}

/// The parts of a block that `ranges` cover, as offset in the block and length. With very many ranges the
/// whole block is one part, because each part becomes an extent.
fn parts_of(ranges: &[(u64, u64)], block: u64, size: u64) -> Vec<(usize, usize)> {
    let (start, end) = (block * BLOCK, block * BLOCK + block_length(block, size));
    if ranges.len() > EXTENTS_MAX {
        return vec![(0, (end - start) as usize)];
    }
    let first = ranges.partition_point(|(offset, length)| offset + length <= start);
    let inside = ranges[first..].iter().take_while(|(offset, _)| *offset < end);
    let parts = inside.map(|(offset, length)| {
        let (from, to) = ((*offset).max(start), (offset + length).min(end));
        ((from - start) as usize, (to - from) as usize)
    });
    parts.filter(|(_, length)| *length > 0).collect()
}

/// The ranges of the first `size` bytes of `file` in which the file system has data, as (offset, length); the
/// rest reads as zeros. If the file system does not support the query, one range covers everything. Moves the
/// file's offset.
pub fn host_ranges(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    host_ranges_in(file, 0, size)
}

/// Like [`host_ranges`], for the bytes from `from` to `size`.
fn host_ranges_in(file: &File, from: u64, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut offset = from;
    while offset < size {
        let start = match lseek(file.as_fd(), offset as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            // No data from here on.
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => return Ok(vec![(from, size - from)]),
            Err(errno) => return Err(errno).at("seek in", Path::new(INPUT)),
        };
        if start >= size {
            break;
        }
        let end = lseek(file.as_fd(), start as i64, Whence::SeekHole).at("seek in", Path::new(INPUT))? as u64;
        ranges.push((start, end.min(size) - start));
        offset = end;
    }
    Ok(ranges)
}

/// Stores bytes that may make a plain file: at most [`SMALL_MAX`].
pub(super) fn ingest_small(bytes: &[u8], batch: &mut Batch) -> Result<FileContent> {
    let size = bytes.len() as u64;
    if size == 0 {
        return Ok(FileContent::empty());
    }
    if has_no_hole(bytes) {
        return Ok(FileContent::plain(size, batch.put(bytes)?));
    }
    let mut packer = Packer::new(BlockList::new(size));
    for (block, bytes) in (0..).zip(bytes.chunks(BLOCK as usize)) {
        packer.push(block, bytes, batch)?;
    }
    packer.finish(Vec::new(), batch)
}

/// Whether no block of these bytes is all zeros.
pub(super) fn has_no_hole(bytes: &[u8]) -> bool {
    !bytes.chunks(BLOCK as usize).any(is_zero)
}

/// Packs blocks that are not holes densely into one object, and maintains the block list.
pub(super) struct Packer {
    pub list: BlockList,
    writer: Option<ObjectWriter>,
    /// Offset in the file, length, offset in the object; adjacent pieces are merged.
    pieces: Vec<(u64, u64, u64)>,
}

impl Packer {
    /// Starts with `list`, whose blocks need no packing; its size is that of the file.
    pub fn new(list: BlockList) -> Self {
        Self { list, writer: None, pieces: Vec::new() }
    }

    /// Adds a block, which must be whole unless it is the file's last; blocks must come in order.
    pub fn push(&mut self, block: u64, bytes: &[u8], batch: &mut Batch) -> Result<()> {
        self.push_parts(block, bytes, &[(0, bytes.len())], batch)
    }

    /// Adds a block read from `file`, leaving out holes that the host's file has within it.
    pub fn push_from(&mut self, block: u64, bytes: &[u8], file: &File, batch: &mut Batch) -> Result<()> {
        let start = block * BLOCK;
        let end = start + bytes.len() as u64;
        let parts = parts_of(&host_ranges_in(file, start, end)?, block, end);
        self.push_parts(block, bytes, &parts, batch)
    }

    /// Adds a block of which only `parts` are stored: the rest is zeros.
    fn push_parts(
        &mut self,
        block: u64,
        bytes: &[u8],
        parts: &[(usize, usize)],
        batch: &mut Batch,
    ) -> Result<()> {
        if is_zero(bytes) {
            self.list.set(block, None);
            return Ok(());
        }
        self.list.set(block, Some(ObjectId::of(bytes)));
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => batch.writer()?,
        };
        for &(at, length) in parts {
            let offset = block * BLOCK + at as u64;
            match self.pieces.last_mut() {
                Some(last) if last.0 + last.1 == offset => last.1 += length as u64,
                _ => self.pieces.push((offset, length as u64, writer.position())),
            }
            let part = &bytes[at..at + length];
            writer.write_all(part).at("write", &batch.store().layout().staging())?;
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Adds the objects to the batch. `kept` are extents besides the packed ones, sorted and not overlapping
    /// them.
    pub fn finish(self, kept: Vec<Extent>, batch: &mut Batch) -> Result<FileContent> {
        let mut extents = kept;
        if let Some(writer) = self.writer {
            let object = writer.finish(batch)?;
            let new = self.pieces.into_iter();
            extents.extend(new.map(|(offset, length, at)| Extent {
                offset,
                length,
                object,
                object_offset: at,
            }));
            extents.sort_unstable_by_key(|extent| extent.offset);
        }
        let hash = batch.put(&self.list.encode())?;
        Ok(FileContent::listed(self.list.size(), hash, coalesce(extents)))
    }
}

/// Merges extents that are contiguous both in the file and in the object.
fn coalesce(extents: Vec<Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match joined.last_mut() {
            Some(last)
                if last.end() == extent.offset
                    && last.object == extent.object
                    && last.object_offset + last.length == extent.object_offset =>
            {
                last.length += extent.length;
            }
            _ => joined.push(extent),
        }
    }
    joined.shrink_to_fit();
    joined
}

/// The blocks that the ranges touch, each once, in order.
pub(super) fn blocks_of(ranges: &[(u64, u64)], size: u64) -> impl Iterator<Item = u64> {
    let mut next = 0;
    ranges.iter().filter(|(_, length)| *length > 0).flat_map(move |(offset, length)| {
        let start = (offset / BLOCK).max(next);
        let end = offset.saturating_add(*length).min(size).div_ceil(BLOCK);
        next = next.max(end);
        start..end
    })
}

/// The position of a block in a buffer that holds the whole file.
pub(super) fn range_in_memory(block: u64, size: u64) -> std::ops::Range<usize> {
    let start = block * BLOCK;
    start as usize..(start + block_length(block, size)) as usize
}

/// Reads a block at its natural offset; bytes beyond the file's end become zeros.
pub(super) fn read_block(file: &File, block: u64, bytes: &mut [u8]) -> Result<()> {
    let read = read_full_at(file, bytes, block * BLOCK).at("read", Path::new(INPUT))?;
    bytes[read..].fill(0);
    Ok(())
}

/// Reads until `buffer` is full or the stream ends.
fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("read", Path::new(INPUT)),
        }
    }
    Ok(length)
}
