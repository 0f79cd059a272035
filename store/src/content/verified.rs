//! Reads content that leaves the store, verifying every byte.

use super::{BLOCK, BlockList, FileContent, is_zero, read_at};
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::open::Store;

/// How many bytes are read at once: whole blocks.
const PIECE: u64 = 16 * BLOCK;

/// A file's content, verified against its hash on reading.
pub struct Verified<'a> {
    store: &'a Store,
    content: &'a FileContent,
    source: Source,
}

enum Source {
    Plain(Vec<u8>),
    Listed { list: BlockList, buffer: Vec<u8> },
}

impl<'a> Verified<'a> {
    /// Loads what is needed to verify the bytes: for a plain file the bytes themselves (at most
    /// [`super::SMALL_MAX`]), for any other its block list.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the object does not match its hash or the file's size.
    pub fn open(store: &'a Store, content: &'a FileContent) -> Result<Self> {
        let corrupt = |reason: String| StoreError::corrupt("content", content.hash, reason);
        let source = if content.size == 0 {
            Source::Plain(Vec::new())
        } else if content.is_plain() {
            let bytes = store.objects().read(&content.hash, content.size)?;
            if bytes.len() as u64 != content.size {
                return Err(corrupt(format!(
                    "it has {} bytes, but a file needs {}",
                    bytes.len(),
                    content.size
                )));
            }
            Source::Plain(bytes)
        } else {
            let bytes = store.objects().read(&content.hash, BlockList::max_bytes(content.size))?;
            let list = BlockList::decode(&bytes).map_err(|error| error.named(content.hash))?;
            if list.size() != content.size {
                let reason = format!("its block list describes a file of {} bytes", list.size());
                return Err(corrupt(reason));
            }
            Source::Listed { list, buffer: Vec::new() }
        };
        Ok(Self { store, content, source })
    }

    /// Passes `length` bytes from `offset`, which must be a block boundary, to `sink` in pieces. The range
    /// must end at a block boundary or with the file. Holes are not read.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes do not match the hash; also any error of `sink`.
    pub fn copy(
        &mut self,
        offset: u64,
        length: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let end = offset + length;
        match &mut self.source {
            Source::Plain(bytes) => sink(&bytes[offset as usize..end as usize]),
            Source::Listed { list, buffer } => {
                let mut at = offset;
                while at < end {
                    let length = PIECE.min(end - at);
                    buffer.resize(length as usize, 0);
                    read_checked(self.store, self.content, list, at, buffer)?;
                    sink(buffer)?;
                    at += length;
                }
                Ok(())
            }
        }
    }
}

/// Fills `piece` with the verified bytes at `offset`, a block boundary.
fn read_checked(
    store: &Store,
    content: &FileContent,
    list: &BlockList,
    offset: u64,
    piece: &mut [u8],
) -> Result<()> {
    let first = offset / BLOCK;
    if list.range(first..first + (piece.len() as u64).div_ceil(BLOCK)).next().is_none() {
        piece.fill(0);
        return Ok(());
    }
    read_at(store, content, offset, piece)?;
    for (number, block) in (first..).zip(piece.chunks(BLOCK as usize)) {
        let good = match list.get(number) {
            Some(hash) => ObjectId::of(block) == hash,
            None => is_zero(block),
        };
        if !good {
            let reason = format!("its block {number} does not match its block list");
            return Err(StoreError::corrupt("content", content.hash, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::batch::Batch;
    use crate::content::ingest;

    fn ingested(bytes: &[u8]) -> (tempfile::TempDir, Arc<Store>, FileContent) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut batch = Batch::new(&store).unwrap();
        let content = ingest(&mut &*bytes, &mut batch).unwrap();
        batch.commit().unwrap();
        (dir, store, content)
    }

    fn copied(store: &Store, content: &FileContent, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        Verified::open(store, content)?.copy(offset, length, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    #[test]
    fn bytes_come_back_whole_and_in_ranges() {
        let mut large = vec![0; 3 << 20];
        for at in [0, 70_000, 2_500_000] {
            large[at..at + 1000].fill(7);
        }
        for bytes in [&b""[..], b"small", &vec![9; 1 << 20], &large, &vec![0; 200_000]] {
            let (_dir, store, content) = ingested(bytes);
            let size = content.size;
            assert_eq!(copied(&store, &content, 0, size).unwrap(), bytes);
            if size > BLOCK {
                assert_eq!(copied(&store, &content, BLOCK, size - BLOCK).unwrap(), bytes[BLOCK as usize..]);
                assert_eq!(copied(&store, &content, 0, BLOCK).unwrap(), bytes[..BLOCK as usize]);
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let mut large = vec![1; 2 << 20];
        large[BLOCK as usize..2 * BLOCK as usize].fill(0);
        for bytes in [&b"small"[..], &large] {
            let (_dir, store, content) = ingested(bytes);
            let object = content.extents().last().unwrap().object;
            let path = store.objects().path(&object);
            let mut damaged = fs::read(&path).unwrap();
            *damaged.last_mut().unwrap() ^= 1;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, damaged).unwrap();
            let error = copied(&store, &content, 0, content.size).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        }
    }
}
