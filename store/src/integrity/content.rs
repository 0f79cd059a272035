//! Checks whether a file's content matches its hash: extents, block list, blocks.

use super::Check;
use crate::content::{self, BLOCK, BlockList, FileContent};
use crate::error::{Result, StoreError};
use crate::id::ObjectId;

impl Check<'_> {
    /// Whether this content is seen for the first time.
    pub(super) fn is_first(&mut self, content: &FileContent) -> bool {
        let mut description = Vec::new();
        content.encode(&mut description);
        description.push(content.is_plain().into());
        self.contents.insert(ObjectId::of(&description))
    }

    /// What is wrong with a file's content; `None` if nothing is. Missing objects are reported elsewhere.
    pub(super) fn content(&mut self, content: &FileContent) -> Result<Option<String>> {
        for extent in content.extents() {
            let Some(size) = self.size(&extent.object) else { return Ok(None) };
            let whole = !content.is_plain() || size == content.size;
            if !whole || extent.object_offset.checked_add(extent.length).is_none_or(|end| end > size) {
                return Ok(Some(format!(
                    "object {} has {size} bytes, which is not the expected size",
                    extent.object
                )));
            }
        }
        if content.is_plain() {
            return Ok(None);
        }
        let objects = self.store.objects();
        // Promised objects are verified when they arrive.
        let elsewhere = |id: &ObjectId| objects.is_elsewhere(id);
        if elsewhere(&content.hash) || content.extents().any(|extent| elsewhere(&extent.object)) {
            return Ok(None);
        }
        let read = objects.read(&content.hash, BlockList::max_bytes(content.size));
        let list = match read.and_then(|bytes| BlockList::decode(&bytes)) {
            Ok(list) => list,
            Err(StoreError::Missing { .. }) => return Ok(None),
            Err(StoreError::Corrupt { reason, .. }) => return Ok(Some(format!("its block list: {reason}"))),
            Err(error) => return Err(error),
        };
        self.blocks(content, &list)
    }

    /// Compares a file's blocks, as read through its extents, with its block list.
    fn blocks(&self, content: &FileContent, list: &BlockList) -> Result<Option<String>> {
        if list.size() != content.size {
            return Ok(Some(format!("its block list describes a file of {} bytes", list.size())));
        }
        let mut listed = 0;
        let mut block = vec![0; BLOCK as usize];
        for (start, length) in content.data_ranges() {
            for offset in (start..start + length).step_by(BLOCK as usize) {
                let part = &mut block[..BLOCK.min(content.size - offset) as usize];
                let got = content::read_at(self.store, content, offset, part)?;
                let number = offset / BLOCK;
                if got != part.len() || list.get(number) != Some(ObjectId::of(part)) {
                    return Ok(Some(format!("block {number} does not match its block list")));
                }
                listed += 1;
            }
        }
        let holes = listed != list.len();
        Ok(holes.then(|| "its block list has data where the file has a hole".to_owned()))
    }
}
