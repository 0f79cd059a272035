//! Writing listings, split into chunks when they are long.

use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::InodeRecord;
use crate::object::Batch;

use super::{Entry, WrittenDir};

/// Writes a directory's listing. The entries must come in strictly increasing order of names.
pub fn write_dir(_batch: &mut Batch, _entries: &mut dyn Iterator<Item = Entry>) -> Result<WrittenDir> {
    todo!()
}

/// Writes a link table from the inodes with several names, in strictly increasing order of numbers; None if there
/// are none.
pub fn write_links(
    _batch: &mut Batch,
    _inodes: &mut dyn Iterator<Item = InodeRecord>,
) -> Result<Option<ObjectId>> {
    todo!()
}
