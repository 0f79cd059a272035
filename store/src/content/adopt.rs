//! Giving a finished file to the store.

use std::fs::File;
use std::path::Path;

use super::FileContent;
use crate::error::Result;
use crate::object::Batch;

/// Takes in `file`, open at `path`, which nobody writes to any more. Where it is plain or has no hole it becomes the
/// object itself, without a copy (see [`Batch::adopt`]); else its data is packed.
pub fn adopt(_path: &Path, _file: &File, _batch: &mut Batch) -> Result<FileContent> {
    todo!()
}
