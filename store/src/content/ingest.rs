//! Taking content in from a stream or a file.

use std::fs::File;
use std::io::Read;

use super::FileContent;
use crate::error::Result;
use crate::object::Batch;

/// Takes in what `reader` gives until its end, in at most about 2 MiB of memory.
///
/// A file that is not plain has its blocks that are not holes packed into one object.
pub fn ingest(_reader: &mut dyn Read, _batch: &mut Batch) -> Result<FileContent> {
    todo!()
}

/// Takes in the first `size` bytes of `file` as if it held zeros but for the ranges `data`, given as (offset, length),
/// sorted. Only the blocks that these touch are read.
pub fn ingest_ranges(
    _file: &File,
    _size: u64,
    _data: &[(u64, u64)],
    _batch: &mut Batch,
) -> Result<FileContent> {
    todo!()
}
