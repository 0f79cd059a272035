//! Updates content at the cost of what changed.

use std::fs::File;

use super::ingest::{Packer, ingest_small, range_in_memory, read_block};
use super::read::read_extents;
use super::{
    BLOCK, BlockList, EXTENTS_MAX, Extent, FileContent, SMALL_MAX, block_count, block_length, is_zero,
};
use crate::batch::Batch;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;

/// Returns `base` with the blocks `dirty` (in any order) replaced by those of `data`, where they are at their
/// natural offsets, and truncated or extended with zeros to `size` bytes. Bytes of the base at or beyond
/// `base_limit` read as zeros, and so do those beyond the end of `data`.
///
/// The cost is that of the dirty blocks and the block list. The hash is the same as for any other way to the
/// same bytes. The base's objects may be in the store or in `batch`.
///
/// # Errors
/// [`StoreError::Invalid`] when `size` is larger than [`super::FILE_MAX`]; also when the base's bytes or its
/// block list cannot be read.
pub fn update(
    base: &FileContent,
    base_limit: u64,
    size: u64,
    dirty: &mut dyn Iterator<Item = u64>,
    data: &File,
    batch: &mut Batch,
) -> Result<FileContent> {
    if size > super::FILE_MAX {
        return Err(StoreError::invalid(format!("{size} bytes exceed the largest file size")));
    }
    let limit = base_limit.min(base.size).min(size);
    let mut dirty: Vec<u64> = dirty.filter(|block| *block < block_count(size)).collect();
    dirty.sort_unstable();
    dirty.dedup();
    if size <= SMALL_MAX {
        let mut bytes = vec![0; size as usize];
        read_base(base, 0, &mut bytes[..limit as usize], batch)?;
        for block in dirty {
            read_block(data, block, &mut bytes[range_in_memory(block, size)])?;
        }
        return ingest_small(&bytes, batch);
    }
    let mut list = load_list(base, batch)?;
    list.resize(limit);
    list.resize(size);
    if dirty.binary_search(&(limit / BLOCK)).is_err() {
        mend_border(&mut list, base, limit, size, batch)?;
    }
    let mut packer = Packer::new(list);
    let mut buffer = vec![0; BLOCK as usize];
    for &block in &dirty {
        let bytes = &mut buffer[..block_length(block, size) as usize];
        read_block(data, block, bytes)?;
        packer.push_from(block, bytes, data, batch)?;
    }
    let kept = kept_extents(base, limit, &dirty, &packer.list);
    let content = packer.finish(kept, batch)?;
    if content.extents.len() > EXTENTS_MAX { repack(&content, batch) } else { Ok(content) }
}

/// The base's block list: read from the store, or computed from a plain file's few blocks.
fn load_list(base: &FileContent, batch: &Batch) -> Result<BlockList> {
    if !base.is_plain() {
        return BlockList::load(batch, &base.hash, base.size);
    }
    let mut bytes = vec![0; base.size as usize];
    read_base(base, 0, &mut bytes, batch)?;
    let mut list = BlockList::new(base.size);
    for (block, bytes) in (0..).zip(bytes.chunks(BLOCK as usize)) {
        list.set(block, Some(ObjectId::of(bytes)));
    }
    Ok(list)
}

/// If the kept bytes end inside a block, that block now has zeros after them, or another length than before,
/// so its hash is computed anew. Its bytes stay where they are, since ranges without an extent read as zeros.
fn mend_border(list: &mut BlockList, base: &FileContent, limit: u64, size: u64, batch: &Batch) -> Result<()> {
    let block = limit / BLOCK;
    let kept = limit % BLOCK;
    let (old, new) = (block_length(block, base.size), block_length(block, size));
    if kept == 0 || list.get(block).is_none() || (kept == old && old == new) {
        return Ok(());
    }
    let mut bytes = vec![0; new as usize];
    read_base(base, block * BLOCK, &mut bytes[..kept as usize], batch)?;
    list.set(block, (!is_zero(&bytes)).then(|| ObjectId::of(&bytes)));
    Ok(())
}

/// The base's extents below `limit`, without the dirty blocks and without blocks that became holes.
fn kept_extents(base: &FileContent, limit: u64, dirty: &[u64], list: &BlockList) -> Vec<Extent> {
    let mut gone: Vec<u64> = dirty.to_vec();
    let border = limit / BLOCK;
    if !limit.is_multiple_of(BLOCK) && list.get(border).is_none() {
        // The blocks after it are all beyond the limit.
        gone.truncate(gone.partition_point(|block| *block < border));
        gone.push(border);
    }
    let mut gone = gone.into_iter().peekable();
    let mut kept = Vec::new();
    for extent in base.extents() {
        let end = extent.end().min(limit);
        let mut start = extent.offset;
        while start < end {
            while gone.next_if(|block| (block + 1) * BLOCK <= start).is_some() {}
            let hole = gone.peek().map_or(u64::MAX, |block| block * BLOCK);
            let stop = hole.max(start).min(end);
            if stop > start {
                let object_offset = extent.object_offset + (start - extent.offset);
                kept.push(Extent {
                    offset: start,
                    length: stop - start,
                    object: extent.object,
                    object_offset,
                });
            }
            // Continue after the removed block, or stop at the end.
            start = if stop < end { hole + BLOCK } else { end };
        }
    }
    kept
}

/// Copies all data of `content` into one new object.
fn repack(content: &FileContent, batch: &mut Batch) -> Result<FileContent> {
    let old = BlockList::load(batch, &content.hash, content.size)?;
    let mut packer = Packer::new(BlockList::new(content.size));
    let mut buffer = vec![0; BLOCK as usize];
    for (block, _) in old.iter() {
        let bytes = &mut buffer[..block_length(block, content.size) as usize];
        read_base(content, block * BLOCK, bytes, batch)?;
        packer.push(block, bytes, batch)?;
    }
    packer.finish(Vec::new(), batch)
}

/// Fills `bytes` from the base, starting at `offset`.
fn read_base(base: &FileContent, offset: u64, bytes: &mut [u8], batch: &Batch) -> Result<()> {
    read_extents(&|id| batch.open(id), base, offset, bytes)?;
    Ok(())
}
