//! Writes listings, split into chunks when they are long.
//!
//! Where a chunk begins depends on the names alone: at each name whose hash says so, and in a long run
//! without such a name at every [`CHUNK_MAX`]th entry. So equal listings have equal chunks whatever their
//! history, and a change affects few chunks.

use crate::batch::Batch;
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::InodeRecord;

use super::codec::{LeafBuilder, encode_target, raw_entry};
use super::{Chunk, Entry, EntryRef, Index, Keys, TREE_MAX, Target, Tree, WrittenDir};

/// Listings with more entries than this are split.
pub(super) const SPLIT_ABOVE: u64 = 1024;

/// On average one name in this many begins a chunk.
const CHUNK_AVERAGE: u16 = 512;

/// Maximum number of entries in a chunk.
const CHUNK_MAX: u32 = 4096;

/// Writes a directory's listing. The entries must come in strictly increasing order of names.
///
/// # Errors
/// [`StoreError::Invalid`] when an entry cannot be encoded, is out of order, or the listing is too large.
pub fn write_dir(batch: &mut Batch, entries: &mut dyn Iterator<Item = Entry>) -> Result<WrittenDir> {
    let mut writer = Writer::new(Keys::Names);
    let mut target = Vec::new();
    for entry in entries {
        target.clear();
        encode_checked(&mut target, &entry.target)?;
        writer.push(&entry.name, &target, batch)?;
    }
    writer.finish(batch, &|id, _| Err(StoreError::missing("tree", id)))
}

/// Writes a link table of the inodes with several names, which must come in strictly increasing order of
/// numbers; `None` if there are none.
///
/// # Errors
/// As for [`write_dir`].
pub fn write_links(
    batch: &mut Batch,
    inodes: &mut dyn Iterator<Item = InodeRecord>,
) -> Result<Option<ObjectId>> {
    let mut writer = Writer::new(Keys::Inos);
    let mut target = Vec::new();
    for record in inodes {
        let key = record.ino.to_be_bytes();
        target.clear();
        encode_checked(&mut target, &Target::Inode(record))?;
        writer.push(&key, &target, batch)?;
    }
    Ok(writer.finish(batch, &|id, _| Err(StoreError::missing("tree", id)))?.tree)
}

/// Appends the encoded target; refuses a record that could not be decoded.
pub(super) fn encode_checked(out: &mut Vec<u8>, target: &Target) -> Result<()> {
    if let Target::Inode(record) = target {
        record.check()?;
    }
    encode_target(out, target);
    Ok(())
}

/// Whether a chunk begins at this name.
pub(super) fn is_border(name: &[u8]) -> bool {
    let hash = blake3::hash(name);
    let [low, high, ..] = *hash.as_bytes();
    u16::from_le_bytes([low, high]) % CHUNK_AVERAGE == 0
}

/// Writes one listing from sorted entries, and from whole chunks of an earlier listing.
pub(super) struct Writer {
    keys: Keys,
    parts: Vec<Part>,
    open: Option<LeafBuilder>,
    last: Vec<u8>,
    total: u64,
}

enum Part {
    /// Not stored yet: the listing may turn out short enough for one leaf.
    Built(LeafBuilder),
    Stored(Chunk),
}

impl Writer {
    pub fn new(keys: Keys) -> Self {
        Self { keys, parts: Vec::new(), open: None, last: Vec::new(), total: 0 }
    }

    /// Adds an entry.
    pub fn push(&mut self, name: &[u8], target: &[u8], batch: &mut Batch) -> Result<()> {
        if let Some(reason) = self.keys.reject(name) {
            return Err(StoreError::invalid(format!("`{}`: {reason}", name.escape_ascii())));
        }
        if self.total > 0 && *self.last >= *name {
            return Err(StoreError::invalid(format!(
                "`{}` is not in the order of names",
                name.escape_ascii()
            )));
        }
        self.last.clear();
        self.last.extend_from_slice(name);
        if self.open.as_ref().is_some_and(|open| open.count() >= CHUNK_MAX || is_border(name)) {
            self.close(batch)?;
        }
        self.open.get_or_insert_with(|| LeafBuilder::new(name)).push(raw_entry(name, target))?;
        self.total += 1;
        Ok(())
    }

    /// Adds a stored chunk unchanged. It must begin at a border or be the first of the listing.
    pub fn reuse(&mut self, chunk: &Chunk, batch: &mut Batch) -> Result<()> {
        self.close(batch)?;
        self.total += u64::from(chunk.count);
        self.last.clear();
        self.last.extend_from_slice(&chunk.first);
        self.parts.push(Part::Stored(chunk.clone()));
        Ok(())
    }

    /// Finishes the listing. `load` reads a reused chunk, if the listing is now short enough for one leaf.
    pub fn finish(
        mut self,
        batch: &mut Batch,
        load: &dyn Fn(&ObjectId, &Batch) -> Result<std::sync::Arc<Tree>>,
    ) -> Result<WrittenDir> {
        self.close(batch)?;
        if self.total == 0 {
            return Ok(WrittenDir::default());
        }
        if self.total <= SPLIT_ABOVE {
            return self.finish_leaf(batch, load);
        }
        self.store_parts(batch)?;
        let stored = self.parts.into_iter().filter_map(|part| match part {
            Part::Stored(chunk) => Some(chunk),
            Part::Built(_) => None,
        });
        let index = Index::new(self.keys, stored.collect());
        let links = index.chunks().iter().any(|chunk| chunk.links);
        Ok(WrittenDir { tree: Some(put(&index.encode(), batch)?), links })
    }

    fn finish_leaf(
        self,
        batch: &mut Batch,
        load: &dyn Fn(&ObjectId, &Batch) -> Result<std::sync::Arc<Tree>>,
    ) -> Result<WrittenDir> {
        let mut whole: Option<LeafBuilder> = None;
        let mut add =
            |entry: EntryRef<'_>| whole.get_or_insert_with(|| LeafBuilder::new(entry.name())).push(entry);
        for part in &self.parts {
            match part {
                Part::Built(leaf) => Tree::parse(leaf.encode(self.keys))?.iter().try_for_each(&mut add)?,
                Part::Stored(chunk) => load(&chunk.id, batch)?.iter().try_for_each(&mut add)?,
            }
        }
        match whole {
            Some(leaf) => {
                Ok(WrittenDir { tree: Some(put(&leaf.encode(self.keys), batch)?), links: leaf.links() })
            }
            None => Ok(WrittenDir::default()),
        }
    }

    /// Finishes the current chunk.
    fn close(&mut self, batch: &mut Batch) -> Result<()> {
        self.parts.extend(self.open.take().map(Part::Built));
        // Once the listing is known to be long, chunks need not be kept in memory.
        if self.total > SPLIT_ABOVE { self.store_parts(batch) } else { Ok(()) }
    }

    fn store_parts(&mut self, batch: &mut Batch) -> Result<()> {
        // Unstored parts are at the end, except when the listing has just become long.
        for part in self.parts.iter_mut().rev() {
            let Part::Built(leaf) = part else { continue };
            let id = put(&leaf.encode(self.keys), batch)?;
            let chunk = Chunk { first: leaf.first().into(), id, count: leaf.count(), links: leaf.links() };
            *part = Part::Stored(chunk);
        }
        Ok(())
    }
}

fn put(bytes: &[u8], batch: &mut Batch) -> Result<ObjectId> {
    if bytes.len() as u64 > TREE_MAX {
        return Err(StoreError::invalid(format!(
            "a directory's listing has {} MiB, the limit is {}: its files have too many or too large attributes",
            bytes.len() >> 20,
            TREE_MAX >> 20
        )));
    }
    batch.put(bytes)
}
