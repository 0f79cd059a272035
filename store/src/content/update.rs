//! Bringing content up to date in the time of what changed.

use std::fs::File;

use super::FileContent;
use crate::error::Result;
use crate::object::Batch;

/// `base` (not plain) with the blocks `dirty` replaced by those of `data`, where they lie at their natural offsets,
/// and cut or extended with zeros to `size`. The base's bytes at or beyond `base_limit` read as zeros.
///
/// Costs the dirty blocks and the block list. The hash is what any other way to the same bytes gives.
pub fn update(
    _base: &FileContent,
    _base_limit: u64,
    _size: u64,
    _dirty: &mut dyn Iterator<Item = u64>,
    _data: &File,
    _batch: &mut Batch,
) -> Result<FileContent> {
    todo!()
}
