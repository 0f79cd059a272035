//! Reading content for tools; the mount has its own reader.

use super::FileContent;
use crate::error::Result;
use crate::open::Store;

/// Reads at `offset` until `buf` is full or the content ends; returns how much. The bytes are not verified.
pub fn read_at(_store: &Store, _content: &FileContent, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
    todo!()
}
