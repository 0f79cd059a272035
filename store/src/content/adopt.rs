//! Turns finished files into objects.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::ingest::{blocks_of, has_no_hole, host_ranges, ingest_ranges, ingest_small, read_block};
use super::{
    BLOCK, BlockList, EXTENTS_MAX, Extent, FileContent, SMALL_MAX, block_count, block_length, is_zero,
};
use crate::batch::{Batch, protect};
use crate::error::{IoContext as _, Result};
use crate::id::ObjectId;
use crate::object::read_full_at;
use crate::parallel::in_pieces;

/// Adopts the finished files at `paths`, each like [`adopt`]; small ones are hashed on several threads.
/// Returns their contents in the same order.
pub fn adopt_all(paths: Vec<PathBuf>, batch: &mut Batch) -> Result<Vec<FileContent>> {
    let opener = &*batch;
    let found: Vec<Vec<Result<_>>> = in_pieces(&paths, |piece| {
        let mut bytes = Vec::new();
        let one = |path: &PathBuf| {
            let file = opener.open_staged(path)?;
            let size = file.metadata().at("stat", path)?.len();
            plain(path, &file, size, &mut bytes)
        };
        piece.iter().map(one).collect()
    });
    let mut contents = Vec::with_capacity(paths.len());
    for (path, found) in paths.into_iter().zip(found.into_iter().flatten()) {
        contents.push(match found? {
            Some(content) => {
                batch.adopt(path, content.size, content.hash)?;
                content
            }
            None => adopt(&path, &batch.open_staged(&path)?, batch)?,
        });
    }
    Ok(contents)
}

/// Adopts `file`, open for reading at `path`, which nobody may write to any more. If the file is plain or has
/// no hole, it becomes the object itself, without a copy (see [`Batch::adopt`]); otherwise its data is
/// packed. Moves the file's offset.
pub fn adopt(path: &Path, file: &File, batch: &mut Batch) -> Result<FileContent> {
    let size = file.metadata().at("stat", path)?.len();
    if size <= SMALL_MAX {
        let mut bytes = Vec::new();
        if let Some(content) = plain(path, file, size, &mut bytes)? {
            batch.adopt(path.to_owned(), size, content.hash)?;
            return Ok(content);
        }
        return ingest_small(&bytes, batch);
    }
    let ranges = host_ranges(file, size)?;
    if blocks_of(&ranges, size).count() as u64 == block_count(size)
        && let Some(content) = adopt_whole(path, file, size, &ranges, batch)?
    {
        return Ok(content);
    }
    ingest_ranges(file, size, &ranges, batch)
}

/// The content of a file that can become an object unchanged, which then gets the mode of an object; `None`
/// for any other file. `size` is its size in bytes. Afterwards `bytes` holds the content of a small file.
fn plain(path: &Path, file: &File, size: u64, bytes: &mut Vec<u8>) -> Result<Option<FileContent>> {
    if size > SMALL_MAX {
        return Ok(None);
    }
    bytes.clear();
    bytes.resize(size as usize, 0);
    let read = read_full_at(file, bytes, 0).at("read", path)?;
    if read == 0 || read < bytes.len() || !has_no_hole(bytes) {
        return Ok(None);
    }
    protect(file).at("set the mode of", path)?;
    Ok(Some(FileContent::plain(size, ObjectId::of(bytes))))
}

/// Adopts a file larger than [`SMALL_MAX`]; `None` as soon as a block turns out to be a hole.
fn adopt_whole(
    path: &Path,
    file: &File,
    size: u64,
    ranges: &[(u64, u64)],
    batch: &mut Batch,
) -> Result<Option<FileContent>> {
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
    protect(file).at("set the mode of", path)?;
    batch.adopt(path.to_owned(), size, object)?;
    let hash = batch.put(&list.encode())?;
    // The object keeps the holes within a block, too.
    let ranges = if ranges.len() > EXTENTS_MAX { &[(0, size)] } else { ranges };
    let extent = |&(offset, length): &(u64, u64)| Extent { offset, length, object, object_offset: offset };
    let extents = ranges.iter().map(extent).collect();
    Ok(Some(FileContent::listed(size, hash, extents)))
}
