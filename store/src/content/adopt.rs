//! Giving a finished file to the store.

use std::fs::File;
use std::path::Path;

use super::ingest::{blocks_of, has_no_hole, host_ranges, ingest_ranges, ingest_small, read_block};
use super::{BLOCK, BlockList, Extent, FileContent, SMALL_MAX, block_count, block_length, is_zero};
use crate::error::{IoContext as _, Result};
use crate::id::ObjectId;
use crate::object::{Batch, read_full_at};

/// Takes in `file`, open for reading at `path`, which nobody writes to any more. Where it is plain or has no hole it
/// becomes the object itself, without a copy (see [`Batch::adopt`]); else its data is packed. Moves the file's offset.
pub fn adopt(path: &Path, file: &File, batch: &mut Batch) -> Result<FileContent> {
    let size = file.metadata().at("stat", path)?.len();
    if size <= SMALL_MAX {
        let mut bytes = vec![0; size as usize];
        let read = read_full_at(file, &mut bytes, 0).at("read", path)?;
        if read > 0 && read == bytes.len() && has_no_hole(&bytes) {
            let id = ObjectId::of(&bytes);
            batch.adopt(path, id)?;
            return Ok(FileContent::plain(size, id));
        }
        return ingest_small(&bytes, batch);
    }
    let ranges = host_ranges(file, size)?;
    if blocks_of(&ranges, size).count() as u64 == block_count(size)
        && let Some(content) = adopt_whole(path, file, size, batch)?
    {
        return Ok(content);
    }
    ingest_ranges(file, size, &ranges, batch)
}

/// Adopts a file above [`SMALL_MAX`]; None as soon as a block turns out to be a hole.
fn adopt_whole(path: &Path, file: &File, size: u64, batch: &mut Batch) -> Result<Option<FileContent>> {
    let mut list = BlockList::new(size);
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BLOCK as usize];
    for block in 0..block_count(size) {
        let bytes = &mut buffer[..block_length(block, size) as usize];
        read_block(file, block, bytes)?;
        if is_zero(bytes) {
            return Ok(None);
        }
        hasher.update(bytes);
        list.set(block, Some(ObjectId::of(bytes)));
    }
    let object = ObjectId::from(hasher.finalize());
    batch.adopt(path, object)?;
    let hash = batch.put(&list.encode())?;
    let extents = vec![Extent { offset: 0, length: size, object, object_offset: 0 }];
    Ok(Some(FileContent::listed(size, hash, extents)))
}
