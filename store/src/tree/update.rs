//! Changing listings.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::{Ino, InodeRecord};
use crate::object::Batch;

use super::{Target, Trees, WrittenDir};

/// Writes the listing that `base` (None: empty) becomes by `changes`: new targets by name, None to remove (a name
/// that is not there is no error). Chunks that no change touches are reused unread.
pub fn update_dir(
    _trees: &Trees,
    _batch: &mut Batch,
    _base: Option<&ObjectId>,
    _changes: &BTreeMap<Box<[u8]>, Option<Target>>,
) -> Result<WrittenDir> {
    todo!()
}

/// [`update_dir`] for a link table.
pub fn update_links(
    _trees: &Trees,
    _batch: &mut Batch,
    _base: Option<&ObjectId>,
    _changes: &BTreeMap<Ino, Option<InodeRecord>>,
) -> Result<Option<ObjectId>> {
    todo!()
}
