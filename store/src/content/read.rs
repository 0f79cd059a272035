//! Reading content for tools; the mount has its own reader.

use std::fs::File;
use std::path::Path;

use super::FileContent;
use crate::error::{IoContext as _, Result, StoreError};
use crate::id::ObjectId;
use crate::object::read_full_at;
use crate::open::Store;

/// Reads at `offset` until `buf` is full or the content ends; returns the number of bytes read. The bytes are
/// not verified.
///
/// # Errors
/// [`StoreError::Missing`] when an object is absent, [`StoreError::Corrupt`] when one is too short.
pub fn read_at(store: &Store, content: &FileContent, offset: u64, buf: &mut [u8]) -> Result<usize> {
    read_extents(&|id| store.objects().open(id), content, offset, buf)
}

/// [`read_at`], with objects opened by `open`.
pub(super) fn read_extents(
    open: &dyn Fn(&ObjectId) -> Result<File>,
    content: &FileContent,
    offset: u64,
    buf: &mut [u8],
) -> Result<usize> {
    let length = (buf.len() as u64).min(content.size.saturating_sub(offset));
    let end = offset + length;
    let buf = &mut buf[..length as usize];
    buf.fill(0);
    let skipped = content.extents.partition_point(|extent| extent.end() <= offset);
    // The implied extent of a plain file is the only one.
    for extent in content.extents().skip(skipped).take_while(|extent| extent.offset < end) {
        let from = extent.offset.max(offset);
        let to = extent.end().min(end);
        let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
        let at = extent.object_offset + (from - extent.offset);
        let name = extent.object.to_hex();
        let read = read_full_at(&open(&extent.object)?, part, at).at("read object", Path::new(&name))?;
        if read < part.len() {
            let reason = format!(
                "it ends at byte {}, but a file needs it up to {}",
                at + read as u64,
                at + part.len() as u64
            );
            return Err(StoreError::corrupt("object", extent.object, reason));
        }
    }
    Ok(length as usize)
}
