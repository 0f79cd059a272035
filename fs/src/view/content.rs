//! Reads file content from the store; caches open descriptors and verifies bytes when they are first read.
//!
//! Damaged bytes are never returned. Damaged blocks are remembered, and content known to be damaged is not
//! committed.
//!
//! A plain file is one object of at most 1 MiB and is verified whole; any other content is verified in 64 KiB
//! blocks, so that no read stalls. Verification results are kept as long as the descriptor.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use karapace_store::Store;
use karapace_store::StoreError;
use karapace_store::content::{BLOCK, BlockList, FileContent, SMALL_MAX};
use karapace_store::id::ObjectId;
use lru::LruCache;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use parking_lot::Mutex;

use crate::error::{Damage, Error, Result};
use crate::upper::blocks::BlockSet;

/// Number of object descriptors kept open.
const OPEN_OBJECTS: usize = 512;
/// Bytes read at a time to verify a whole object.
const VERIFIED_AT_ONCE: usize = 1 << 20;
/// Number of block lists kept in memory.
const BLOCK_LISTS: usize = 64;

struct OpenObject {
    file: File,
    /// The whole object has been hashed, and the hash matches its name.
    verified: AtomicBool,
}

struct CheckedBlocks {
    list: BlockList,
    verified: Mutex<BlockSet>,
}

/// A cache of open objects and verified blocks over the store.
pub(crate) struct ContentReader {
    store: Arc<Store>,
    objects: Mutex<LruCache<ObjectId, Arc<OpenObject>>>,
    lists: Mutex<LruCache<ObjectId, Arc<CheckedBlocks>>>,
    known: Mutex<KnownDamage>,
}

/// Damage found so far.
#[derive(Default)]
struct KnownDamage {
    /// Damaged blocks by the content's hash and block number.
    blocks: HashMap<ObjectId, HashMap<u64, Damage>>,
    /// Objects whose damage has been logged.
    told: HashSet<ObjectId>,
}

impl ContentReader {
    /// The most bytes of one file that [`ContentReader::read_ahead`] reads.
    pub const MOST_AHEAD: u64 = SMALL_MAX;

    pub fn new(store: Arc<Store>) -> ContentReader {
        let cache = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        ContentReader {
            store,
            objects: Mutex::new(LruCache::new(cache(OPEN_OBJECTS))),
            lists: Mutex::new(LruCache::new(cache(BLOCK_LISTS))),
            known: Mutex::default(),
        }
    }

    /// Whether damage to this object has not been logged yet; true only once per object.
    pub fn is_news(&self, object: &ObjectId) -> bool {
        self.known.lock().told.insert(*object)
    }

    /// Known damage in a block of `content` for which `needed` returns true.
    pub fn damage_in(&self, content: &FileContent, needed: &dyn Fn(u64) -> bool) -> Option<Damage> {
        let known = self.known.lock();
        let (_, damage) = known.blocks.get(&content.hash)?.iter().find(|(block, _)| needed(**block))?;
        Some(damage.clone())
    }

    /// Appends up to `size` bytes from `offset` to `buf`; stops at the end of the file.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the store no longer has these bytes. The caller adds the file's path.
    pub fn read(&self, content: &FileContent, offset: u64, size: usize, buf: &mut Vec<u8>) -> Result<()> {
        if offset >= content.size || size == 0 {
            return Ok(());
        }
        let size = usize::try_from(content.size - offset).map_or(size, |left| left.min(size));
        if content.is_plain() {
            return self.read_plain(content, offset, size, buf);
        }
        let start = buf.len();
        buf.resize(start + size, 0);
        let read = self.read_blocks(content, offset, &mut buf[start..]);
        if read.is_err() {
            buf.truncate(start);
        }
        read
    }

    /// Whether the object with the content's first bytes is open.
    pub fn is_open(&self, content: &FileContent) -> bool {
        first_object(content).is_none_or(|(id, _)| self.objects.lock().contains(&id))
    }

    /// Prefetches what a read from the beginning needs: verifies a plain content; for any other, starts
    /// readahead on the host.
    ///
    /// # Errors
    /// If the content cannot be read or its block list is invalid. The error is not remembered.
    pub fn read_ahead(&self, content: &FileContent, scratch: &mut Vec<u8>) -> Result<()> {
        let Some((id, offset)) = first_object(content) else { return Ok(()) };
        let object = self.object(&id)?;
        if !content.is_plain() {
            let (from, most) = (offset as libc::off_t, Self::MOST_AHEAD as libc::off_t);
            posix_fadvise(&object.file, from, most, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
            return self.list(content).map(drop);
        }
        scratch.resize(content.size as usize, 0);
        object.file.read_exact_at(scratch, 0).map_err(|e| self.damaged(&id, &e))?;
        if ObjectId::of(scratch) == id {
            object.verified.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn read_plain(&self, content: &FileContent, offset: u64, size: usize, buf: &mut Vec<u8>) -> Result<()> {
        let object = self.object(&content.hash)?;
        let start = buf.len();
        if object.verified.load(Ordering::Acquire) {
            buf.resize(start + size, 0);
            let read = object.file.read_exact_at(&mut buf[start..], offset);
            return read.map_err(|e| self.damaged(&content.hash, &e));
        }
        let whole_file = offset == 0 && size as u64 == content.size;
        let mut scratch = Vec::new();
        let bytes = if whole_file {
            buf.resize(start + size, 0);
            &mut buf[start..]
        } else {
            scratch.resize(content.size as usize, 0);
            &mut scratch[..]
        };
        object.file.read_exact_at(bytes, 0).map_err(|e| self.damaged(&content.hash, &e))?;
        if ObjectId::of(bytes) != content.hash {
            buf.truncate(start);
            return Err(self.damaged(&content.hash, &"its bytes do not match its name"));
        }
        object.verified.store(true, Ordering::Release);
        if !whole_file {
            let offset = offset as usize;
            buf.extend_from_slice(&scratch[offset..offset + size]);
        }
        Ok(())
    }

    /// Fills `out` from `offset`, which the caller has clamped to the size. Reads the range of each extent at
    /// once, then verifies the blocks that are not verified yet.
    fn read_blocks(&self, content: &FileContent, offset: u64, out: &mut [u8]) -> Result<()> {
        let checked = self.list(content)?;
        let end = offset + out.len() as u64;
        let first = offset / BLOCK;
        let last = (end - 1) / BLOCK;
        let unverified: Vec<u64> = {
            let verified = checked.verified.lock();
            (first..=last).filter(|b| checked.list.get(*b).is_some() && !verified.contains(*b)).collect()
        };
        self.fill(content, offset, out)?;
        let mut scratch = Vec::new();
        for block in unverified {
            let from = block * BLOCK;
            let to = (from + BLOCK).min(content.size);
            let bytes: &[u8] = if from >= offset && to <= end {
                &out[(from - offset) as usize..(to - offset) as usize]
            } else {
                scratch.resize((to - from) as usize, 0);
                scratch.fill(0);
                self.fill(content, from, &mut scratch)?;
                &scratch
            };
            if checked.list.get(block) != Some(ObjectId::of(bytes)) {
                let reason = format!("block {block} of the content {} does not match its hash", content.hash);
                let object =
                    content.extents.iter().find(|e| e.end() > from).map_or(content.hash, |e| e.object);
                let damage = Damage { object, reason, path: None, environment: None };
                let mut known = self.known.lock();
                known.blocks.entry(content.hash).or_default().insert(block, damage.clone());
                return Err(Error::Damaged(Box::new(damage)));
            }
            checked.verified.lock().insert(block);
        }
        Ok(())
    }

    /// The object that makes up the whole content, and nothing else, after verifying every block. For
    /// contents that are verified in blocks.
    pub fn whole_object(&self, content: &FileContent) -> Result<Option<File>> {
        let [extent] = content.extents[..] else { return Ok(None) };
        if (extent.offset, extent.object_offset, extent.length) != (0, 0, content.size) {
            return Ok(None);
        }
        let object = self.object(&extent.object)?;
        if object.file.metadata()?.len() != content.size {
            return Ok(None);
        }
        let checked = self.list(content)?;
        let mut buf = vec![0; VERIFIED_AT_ONCE];
        for offset in (0..content.size).step_by(VERIFIED_AT_ONCE) {
            let len = (content.size - offset).min(VERIFIED_AT_ONCE as u64);
            let blocks = offset / BLOCK..(offset + len).div_ceil(BLOCK);
            let is_verified = {
                let verified = checked.verified.lock();
                blocks.into_iter().all(|block| verified.contains(block))
            };
            if !is_verified {
                self.read_blocks(content, offset, &mut buf[..len as usize])?;
            }
        }
        Ok(Some(object.file.try_clone()?))
    }

    /// Reads bytes without verifying them. `out` must be zeroed: ranges without an extent are left alone.
    fn fill(&self, content: &FileContent, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset + out.len() as u64;
        let first = content.extents.partition_point(|e| e.offset + e.length <= offset);
        for extent in &content.extents[first..] {
            if extent.offset >= end {
                break;
            }
            let from = extent.offset.max(offset);
            let to = (extent.offset + extent.length).min(end);
            let object = self.object(&extent.object)?;
            let part = &mut out[(from - offset) as usize..(to - offset) as usize];
            let at = extent.object_offset + (from - extent.offset);
            object.file.read_exact_at(part, at).map_err(|e| self.damaged(&extent.object, &e))?;
        }
        Ok(())
    }

    fn object(&self, id: &ObjectId) -> Result<Arc<OpenObject>> {
        if let Some(object) = self.objects.lock().get(id) {
            return Ok(object.clone());
        }
        let file = self.store.objects().open(id).map_err(|e| self.lost(id, e))?;
        let object = Arc::new(OpenObject { file, verified: AtomicBool::new(false) });
        self.objects.lock().put(*id, object.clone());
        Ok(object)
    }

    fn list(&self, content: &FileContent) -> Result<Arc<CheckedBlocks>> {
        let id = &content.hash;
        if let Some(list) = self.lists.lock().get(id) {
            return Ok(list.clone());
        }
        let read = self.store.objects().read(id, BlockList::max_bytes(content.size));
        let list = read.and_then(|bytes| BlockList::decode(&bytes)).map_err(|e| self.lost(id, e))?;
        let checked = Arc::new(CheckedBlocks { list, verified: Mutex::new(BlockSet::default()) });
        self.lists.lock().put(*id, checked.clone());
        Ok(checked)
    }

    fn damaged(&self, id: &ObjectId, reason: &dyn std::fmt::Display) -> Error {
        let damage = Damage { object: *id, reason: reason.to_string(), path: None, environment: None };
        Error::Damaged(Box::new(damage))
    }

    /// Converts a store error about an object: missing and corrupt objects become [`Error::Damaged`].
    pub fn lost(&self, id: &ObjectId, error: StoreError) -> Error {
        match error {
            StoreError::Missing { .. } => self.damaged(id, &"it is not in the store"),
            StoreError::Corrupt { reason, .. } => self.damaged(id, &reason),
            error => Error::Store(error),
        }
    }
}

/// The object that holds the first bytes of a content, and their offset in it.
fn first_object(content: &FileContent) -> Option<(ObjectId, u64)> {
    if content.is_plain() {
        return (content.size > 0).then_some((content.hash, 0));
    }
    content.extents.first().map(|extent| (extent.object, extent.object_offset))
}
