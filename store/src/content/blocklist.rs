//! The list of a file's block hashes: the identity of a file that is not plain.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

use super::{BLOCK, FILE_MAX, block_count};
use crate::batch::Batch;
use crate::codec::{Decoder, put_id, put_varint};
use crate::error::{Result, StoreError};
use crate::id::ObjectId;

const MAGIC: &[u8; 4] = b"KBL3";

/// A file's size in bytes, and the blake3 of each of its blocks that is not a hole.
///
/// The encoding is canonical: magic, size, number of runs, then for each run the number of blocks skipped
/// before it, its number of blocks, and their hashes. A block (including a partial last one) whose bytes are
/// all zero is a hole and absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockList {
    size: u64,
    blocks: BTreeMap<u64, ObjectId>,
}

impl BlockList {
    /// The list of a file of `size` bytes without data.
    pub fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new() }
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The hash of block `block`; `None` for a hole.
    pub fn get(&self, block: u64) -> Option<ObjectId> {
        self.blocks.get(&block).copied()
    }

    /// Sets the hash of `block`; `None` makes it a hole. A block beyond the end is ignored when encoding.
    pub fn set(&mut self, block: u64, hash: Option<ObjectId>) {
        match hash {
            Some(hash) => self.blocks.insert(block, hash),
            None => self.blocks.remove(&block),
        };
    }

    /// Changes the size in bytes; drops blocks beyond it. The caller must update the hash of a partial last
    /// block.
    pub fn resize(&mut self, size: u64) {
        self.size = size;
        drop(self.blocks.split_off(&block_count(size)));
    }

    /// The blocks that are not holes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, ObjectId)> {
        self.range(..)
    }

    /// Like [`BlockList::iter`], but only for these blocks.
    pub fn range(&self, blocks: impl RangeBounds<u64>) -> impl Iterator<Item = (u64, ObjectId)> {
        self.blocks.range(blocks).map(|(block, hash)| (*block, *hash))
    }

    /// The number of blocks that are not holes.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether all blocks are holes.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (block, _) in self.range(..block_count(self.size)) {
            match runs.last_mut() {
                Some((start, count)) if *start + *count == block => *count += 1,
                _ => runs.push((block, 1)),
            }
        }
        let mut out = Vec::with_capacity(24 + runs.len() * 8 + self.len() * ObjectId::LEN);
        out.extend_from_slice(MAGIC);
        put_varint(&mut out, self.size);
        put_varint(&mut out, runs.len() as u64);
        let mut end = 0;
        for (start, count) in runs {
            put_varint(&mut out, start - end);
            put_varint(&mut out, count);
            end = start + count;
            for (_, hash) in self.range(start..end) {
                put_id(&mut out, &hash);
            }
        }
        out
    }

    /// Decodes a list; memory use is at most a small multiple of the encoded size.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes are not the encoding of a list.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut decoder = Decoder::new("block list", bytes);
        if decoder.array::<4>()? != *MAGIC {
            return Err(decoder.error("it does not start with the header of a block list of format 3"));
        }
        let size = decoder.varint()?;
        if size > FILE_MAX {
            return Err(decoder.error(format!("{size} bytes exceed the largest file size")));
        }
        // Collected in order, so that the map is built at once: a large file has tens of thousands of blocks.
        let mut blocks = Vec::new();
        let mut end = 0u64;
        for run in 0..decoder.count(2 + ObjectId::LEN)? {
            let gap = decoder.varint()?;
            let count = decoder.count(ObjectId::LEN)? as u64;
            if count == 0 || (run > 0 && gap == 0) {
                return Err(decoder.error("a run is empty, or should be part of the one before"));
            }
            let start = end
                .checked_add(gap)
                .filter(|start| start.checked_add(count).is_some_and(|end| end <= block_count(size)));
            let Some(start) = start else {
                return Err(decoder.error("a run lies beyond the end of the file"));
            };
            end = start + count;
            blocks.reserve(count as usize);
            for block in start..end {
                blocks.push((block, decoder.id()?));
            }
        }
        decoder.finish()?;
        Ok(Self { size, blocks: blocks.into_iter().collect() })
    }

    /// Reads the list `id` of a file of `size` bytes, from the batch or its store.
    pub(crate) fn load(batch: &Batch, id: &ObjectId, size: u64) -> Result<Self> {
        let list = Self::decode(&batch.read(id, Self::max_bytes(size))?).map_err(|error| error.named(id))?;
        if list.size != size {
            let reason = format!("it describes a file of {} bytes, not {size}", list.size);
            return Err(StoreError::corrupt("block list", id, reason));
        }
        Ok(list)
    }

    /// Maximum size in bytes of the encoded list of a file of `size` bytes.
    pub fn max_bytes(size: u64) -> u64 {
        // A run of one block takes a hash and two numbers of up to ten bytes each.
        64 + size.div_ceil(BLOCK).saturating_mul(ObjectId::LEN as u64 + 20)
    }
}
