//! Sizes of objects, as the file system tells them.

use std::fs::File;

use rustix::fs::{AtFlags, statat};

use crate::id::ObjectId;
use crate::layout::Layout;

/// Asks for sizes. A table of them would grow with the store; the kernel has just seen every object's inode and answers from memory.
pub(super) struct Sizes {
    /// The directory of objects; nothing when it is missing.
    objects: Option<File>,
    /// What was asked last: files ask for each of their objects twice.
    last: Option<(ObjectId, u64)>,
}

impl Sizes {
    pub fn new(layout: &Layout) -> Sizes {
        Sizes { objects: File::open(layout.objects()).ok(), last: None }
    }

    /// The size of an object, in bytes; nothing when it is not there.
    pub fn of(&mut self, id: &ObjectId) -> Option<u64> {
        if let Some((last, size)) = self.last
            && last == *id
        {
            return Some(size);
        }
        let mut name = id.to_hex();
        name.insert(2, '/');
        let stat = statat(self.objects.as_ref()?, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let size = u64::try_from(stat.st_size).ok()?;
        self.last = Some((*id, size));
        Some(size)
    }
}
