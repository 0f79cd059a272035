//! Changes listings.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::batch::Batch;
use crate::error::Result;
use crate::id::ObjectId;
use crate::inode::{Ino, InodeRecord};

use super::split::{Writer, encode_checked, is_border};
use super::{Chunk, Index, Keys, Node, Target, Tree, Trees, WrittenDir, expect_leaf};

/// Writes the listing `base` (`None`: empty) with `changes` applied: new targets by name, `None` to remove a
/// name (which need not exist). The result is the same as that of [`super::write_dir`] for the same entries.
/// Chunks that no change touches are reused unread, and unchanged records are copied without decoding.
///
/// # Errors
/// [`StoreError::Invalid`](crate::StoreError::Invalid) when a changed entry cannot be encoded, or the listing
/// becomes too large; also when `base` cannot be read.
pub fn update_dir(
    trees: &Trees,
    batch: &mut Batch,
    base: Option<&ObjectId>,
    changes: &BTreeMap<Box<[u8]>, Option<Target>>,
) -> Result<WrittenDir> {
    let changes = changes.iter().map(|(name, target)| Edit::new(name.clone(), target.as_ref()));
    let changes = changes.collect::<Result<Vec<_>>>()?;
    update(trees, batch, Keys::Names, base, &changes)
}

/// [`update_dir`] for a link table; `None` if no entry is left.
///
/// # Errors
/// Those of [`update_dir`].
pub fn update_links(
    trees: &Trees,
    batch: &mut Batch,
    base: Option<&ObjectId>,
    changes: &BTreeMap<Ino, Option<InodeRecord>>,
) -> Result<Option<ObjectId>> {
    let changes = changes.iter().map(|(ino, record)| {
        let target = record.clone().map(Target::Inode);
        Edit::new(Box::new(ino.to_be_bytes()), target.as_ref())
    });
    let changes = changes.collect::<Result<Vec<_>>>()?;
    Ok(update(trees, batch, Keys::Inos, base, &changes)?.tree)
}

/// A change of one key: the encoded target, or `None` to remove it.
struct Edit {
    key: Box<[u8]>,
    target: Option<Vec<u8>>,
}

impl Edit {
    fn new(key: Box<[u8]>, target: Option<&Target>) -> Result<Self> {
        let encode = |target| {
            let mut out = Vec::new();
            encode_checked(&mut out, target).map(|()| out)
        };
        Ok(Self { key, target: target.map(encode).transpose()? })
    }
}

fn update(
    trees: &Trees,
    batch: &mut Batch,
    keys: Keys,
    base: Option<&ObjectId>,
    changes: &[Edit],
) -> Result<WrittenDir> {
    let mut writer = Writer::new(keys);
    match base.map(|id| trees.node_in(batch, id, keys)).transpose()? {
        None => merge(None, changes, &mut writer, batch)?,
        Some(Node::Index(index)) => update_index(trees, batch, &index, changes, &mut writer)?,
        Some(Node::Leaf(tree)) => merge(Some(&tree), changes, &mut writer, batch)?,
        Some(Node::Root(_)) => unreachable!("node_in() gives listings only"),
    }
    writer.finish(batch, &|id, batch| expect_leaf(id, trees.node_in(batch, id, keys)?))
}

fn update_index(
    trees: &Trees,
    batch: &mut Batch,
    index: &Index,
    changes: &[Edit],
    writer: &mut Writer,
) -> Result<()> {
    let chunks = index.chunks();
    // The index of the first change at or after this chunk. Changes before the first chunk belong to it.
    let start_of = |i: usize| match chunks.get(i) {
        Some(_) if i == 0 => 0,
        Some(chunk) => changes.partition_point(|change| *change.key < *chunk.first),
        None => changes.len(),
    };
    let mut i = 0;
    while i < chunks.len() {
        // A run of chunks from one border to the next. How it is split depends on its own names only.
        let mut end = i + 1;
        while end < chunks.len() && !is_border(&chunks[end].first) {
            end += 1;
        }
        // If the next run loses its first name, its remaining entries continue this one.
        let next_is_joined = chunks.get(end).is_some_and(|next| {
            let change = changes.get(start_of(end));
            change.is_some_and(|change| change.key == next.first && change.target.is_none())
        });
        if start_of(i) == start_of(end) && !next_is_joined {
            chunks[i..end].iter().try_for_each(|chunk| writer.reuse(chunk, batch))?;
        } else {
            for j in i..end {
                let leaf = load_chunk(trees, batch, index, j)?;
                merge(Some(&leaf), &changes[start_of(j)..start_of(j + 1)], writer, batch)?;
            }
        }
        i = end;
    }
    Ok(())
}

fn load_chunk(trees: &Trees, batch: &Batch, index: &Index, i: usize) -> Result<Arc<Tree>> {
    let Chunk { id, .. } = &index.chunks()[i];
    let leaf = expect_leaf(id, trees.node_in(batch, id, index.keys())?)?;
    index.check(i, &leaf)?;
    Ok(leaf)
}

/// Writes the entries of `leaf` with these changes applied.
fn merge(leaf: Option<&Tree>, changes: &[Edit], writer: &mut Writer, batch: &mut Batch) -> Result<()> {
    let mut changes = changes.iter().peekable();
    for entry in leaf.iter().flat_map(|leaf| leaf.iter()) {
        while let Some(new) = changes.next_if(|change| *change.key < *entry.name()) {
            write(new, writer, batch)?;
        }
        match changes.next_if(|change| *change.key == *entry.name()) {
            Some(change) => write(change, writer, batch)?,
            None => writer.push(entry.name(), entry.raw(), batch)?,
        }
    }
    changes.try_for_each(|new| write(new, writer, batch))
}

fn write(change: &Edit, writer: &mut Writer, batch: &mut Batch) -> Result<()> {
    match &change.target {
        Some(target) => writer.push(&change.key, target, batch),
        None => Ok(()),
    }
}
