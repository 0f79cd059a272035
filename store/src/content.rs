//! Content of regular files: its identity, and where its bytes are stored.
//!
//! The identity (docs/STORE-FORMAT.md) depends on the bytes alone. A *plain* file (at most [`SMALL_MAX`]
//! bytes and no block that is all zeros) is identified by the blake3 of its bytes, which is also the object
//! that holds it. Any other file is identified by its [`BlockList`], the list of its blocks' hashes, so that
//! updating it costs only what changed; its extents say where its bytes are.
//!
//! `ingest` and `adopt` store content, `update` changes it, `read` and `verified` read it, and `blocklist` is
//! the list of block hashes.

use crate::codec::{Decoder, put_id, put_varint};
use crate::error::Result;
use crate::id::ObjectId;

mod adopt;
mod blocklist;
mod ingest;
mod read;
mod update;
mod verified;

#[cfg(test)]
mod tests;

pub use adopt::{adopt, adopt_all};
pub use blocklist::BlockList;
pub use ingest::{host_ranges, ingest, ingest_ranges};
pub use read::read_at;
pub use update::update;
pub use verified::Verified;

/// Block size in bytes: the unit of hashing and of changes. A block of zeros is always a hole; other holes
/// are kept where the host's file has them.
pub const BLOCK: u64 = 64 << 10;

/// Up to this many bytes, a file without holes is one object, named by the hash of its bytes.
pub const SMALL_MAX: u64 = 1 << 20;

/// Maximum file size: `i64::MAX` bytes, as in the kernel.
pub const FILE_MAX: u64 = i64::MAX as u64;

/// A file with more extents than this is repacked: its record must stay small, because it shares a listing
/// with others. Reaching this number takes random writes of at least a gigabyte, so the copy pays off.
const EXTENTS_MAX: usize = 16 << 10;

/// blake3 of no bytes: the hash of the empty file, for which no object is stored.
pub(crate) const EMPTY_HASH: ObjectId = ObjectId::from_bytes([
    0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9, 0x49, 0x9b,
    0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f, 0x32, 0x62,
]);

/// A range of a file, and where its bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes; not 0.
    pub length: u64,
    /// The object that holds them.
    pub object: ObjectId,
    /// First byte in the object.
    pub object_offset: u64,
}

impl Extent {
    /// The offset after its last byte in the file.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Content of a regular file.
///
/// Invariants: extents are sorted, do not overlap and lie within the size. Ranges that no extent covers read
/// as zeros. Every block with a nonzero byte is touched by an extent, and no other block is. A plain file has
/// no extents in the list: its only one is implied (see [`FileContent::extents`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Size in bytes; at most [`FILE_MAX`].
    pub size: u64,
    /// The identity: the object with the bytes (plain), or the [`BlockList`] object.
    pub hash: ObjectId,
    /// Where the bytes are stored; empty for a plain file.
    pub extents: Vec<Extent>,
    /// Whether `hash` names the bytes themselves.
    plain: bool,
}

impl FileContent {
    /// The empty file; it is plain and has no object.
    pub const fn empty() -> Self {
        Self { size: 0, hash: EMPTY_HASH, extents: Vec::new(), plain: true }
    }

    /// A plain file of `size` bytes (at most [`SMALL_MAX`]), stored as the object `hash`.
    pub const fn plain(size: u64, hash: ObjectId) -> Self {
        Self { size, hash, extents: Vec::new(), plain: true }
    }

    /// A file identified by the block list `hash`.
    pub const fn listed(size: u64, hash: ObjectId, extents: Vec<Extent>) -> Self {
        Self { size, hash, extents, plain: false }
    }

    /// Whether the hash names the bytes themselves, not a block list.
    pub const fn is_plain(&self) -> bool {
        self.plain
    }

    /// Its extents in order; for a plain file the implied one.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        let implied = (self.plain && self.size > 0).then_some(Extent {
            offset: 0,
            length: self.size,
            object: self.hash,
            object_offset: 0,
        });
        implied.into_iter().chain(self.extents.iter().copied())
    }

    /// The regions that hold data, as (offset, length): whole blocks (the last one ends with the file),
    /// adjacent ones merged. They depend on the bytes alone, not on where these are stored.
    pub fn data_ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for extent in self.extents() {
            let start = extent.offset / BLOCK * BLOCK;
            let end = extent.end().next_multiple_of(BLOCK).min(self.size);
            match ranges.last_mut() {
                Some((offset, length)) if *offset + *length >= start => {
                    *length = (*length).max(end - *offset);
                }
                _ => ranges.push((start, end - start)),
            }
        }
        ranges
    }

    /// Every object that this content needs: a plain file's own, or the block list and the objects with the
    /// bytes (an object may occur more than once). None for the empty file.
    pub fn objects(&self) -> impl Iterator<Item = ObjectId> {
        let own = (self.size > 0).then_some(self.hash);
        own.into_iter().chain(self.extents.iter().map(|extent| extent.object))
    }

    /// Appends the encoding, which follows the record's `plain` flag.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.size);
        if self.plain && self.size == 0 {
            return;
        }
        put_id(out, &self.hash);
        if !self.plain {
            encode_extents(out, &self.extents);
        }
    }

    pub(crate) fn decode(decoder: &mut Decoder<'_>, plain: bool) -> Result<Self> {
        let size = decoder.varint()?;
        if plain && size == 0 {
            return Ok(Self::empty());
        }
        if size == 0 || size > if plain { SMALL_MAX } else { FILE_MAX } {
            return Err(decoder.error(format!("content of this kind cannot have {size} bytes")));
        }
        let hash = decoder.id()?;
        let extents = if plain { Vec::new() } else { decode_extents(decoder, size)? };
        Ok(Self { size, hash, extents, plain })
    }
}

/// Encodes the objects in the order of their first use, then the extents: gap, length, index of the object,
/// offset in it.
fn encode_extents(out: &mut Vec<u8>, extents: &[Extent]) {
    let mut indices = std::collections::HashMap::new();
    let mut objects = Vec::new();
    for extent in extents {
        indices.entry(extent.object).or_insert_with(|| {
            objects.push(extent.object);
            objects.len() as u64 - 1
        });
    }
    put_varint(out, objects.len() as u64);
    for object in &objects {
        put_id(out, object);
    }
    put_varint(out, extents.len() as u64);
    let mut end = 0;
    for extent in extents {
        put_varint(out, extent.offset - end);
        put_varint(out, extent.length);
        put_varint(out, indices[&extent.object]);
        put_varint(out, extent.object_offset);
        end = extent.end();
    }
}

fn decode_extents(decoder: &mut Decoder<'_>, size: u64) -> Result<Vec<Extent>> {
    let object_count = decoder.count(ObjectId::LEN)?;
    let mut objects = Vec::with_capacity(object_count);
    for _ in 0..object_count {
        objects.push(decoder.id()?);
    }
    let mut unused = 0;
    let count = decoder.count(4)?;
    // An extent in memory is up to 14 times as large as its encoding; the size limit of a tree bounds it.
    let mut extents = Vec::with_capacity(count);
    let mut end = 0u64;
    for _ in 0..count {
        let gap = decoder.varint()?;
        let length = decoder.varint()?;
        let index = decoder.varint()?;
        let object_offset = decoder.varint()?;
        let offset = end.checked_add(gap);
        let Some(next) = offset.and_then(|offset| offset.checked_add(length)).filter(|end| *end <= size)
        else {
            return Err(decoder.error("an extent lies beyond the end of its file"));
        };
        if length == 0 || object_offset.checked_add(length).is_none_or(|end| end > FILE_MAX) {
            return Err(decoder.error("an extent is empty or ends beyond the largest possible object"));
        }
        // Objects must be listed in the order of their first use.
        match usize::try_from(index).ok().filter(|index| *index <= unused && *index < objects.len()) {
            Some(index) => {
                unused = unused.max(index + 1);
                extents.push(Extent { offset: next - length, length, object: objects[index], object_offset });
            }
            None => return Err(decoder.error("an extent names an object out of order")),
        }
        end = next;
    }
    if unused != objects.len() {
        return Err(decoder.error("it lists objects that no extent names"));
    }
    Ok(extents)
}

/// The number of blocks in a file of `size` bytes.
pub(crate) fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// The length in bytes of block `block` in a file of `size` bytes: [`BLOCK`], except for the last.
pub(crate) fn block_length(block: u64, size: u64) -> u64 {
    BLOCK.min(size.saturating_sub(block * BLOCK))
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In chunks, so that the comparison is vectorised and stops early.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}
