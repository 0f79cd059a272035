//! Sizes of objects, from the file system.

use std::fs::File;

use rustix::fs::{AtFlags, statat};

use crate::id::ObjectId;
use crate::layout::object_name;
use crate::object::Objects;

/// How many sizes are cached: less than 1 MiB.
const SLOTS: usize = 1 << 14;

/// Looks up sizes. A table of all would grow with the store; the kernel has just read every object's inode
/// and answers from memory.
pub(super) struct Sizes {
    /// The directory of objects; `None` when it is missing.
    objects: Option<File>,
    /// A cache for contents that many files share: each slot holds the last object that fell into it.
    slots: Vec<Option<(ObjectId, u64)>>,
}

impl Sizes {
    pub fn new(objects: &Objects) -> Sizes {
        Sizes { objects: File::open(objects.dir()).ok(), slots: vec![None; SLOTS] }
    }

    /// The size of an object in bytes; `None` when it is absent.
    pub fn of(&mut self, id: &ObjectId) -> Option<u64> {
        // Names of objects are hashes, so any two of their bytes will do.
        let [low, high, ..] = *id.as_bytes();
        let slot = &mut self.slots[usize::from(u16::from_le_bytes([low, high])) % SLOTS];
        if let Some((known, size)) = *slot
            && known == *id
        {
            return Some(size);
        }
        let stat = statat(self.objects.as_ref()?, object_name(id), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let size = u64::try_from(stat.st_size).ok()?;
        *slot = Some((*id, size));
        Some(size)
    }
}
