//! Reads a listing entry by entry, and chunk by chunk.

use std::sync::Arc;

use crate::error::Result;
use crate::id::ObjectId;

use super::{EntryRef, Index, Keys, Node, Target, Tree, Trees};

/// A position in a listing. Chunks are read when they are reached, so skipped ones cost nothing.
pub(super) struct Cursor {
    /// The listing; `None` when it is empty.
    id: Option<ObjectId>,
    keys: Keys,
    /// The chunks of a split listing.
    index: Option<Arc<Index>>,
    /// Number of the current chunk; a listing that is not split counts as one chunk.
    chunk: usize,
    /// The current chunk, once it has been read.
    leaf: Option<Arc<Tree>>,
    /// Number of the entry in the chunk.
    entry: usize,
    opened: bool,
}

impl Cursor {
    pub fn new(id: Option<&ObjectId>, keys: Keys) -> Self {
        Self { id: id.copied(), keys, index: None, chunk: 0, leaf: None, entry: 0, opened: false }
    }

    /// The entry at the cursor; `None` at the end.
    pub fn peek(&mut self, trees: &Trees) -> Result<Option<EntryRef<'_>>> {
        self.open(trees)?;
        if self.leaf.is_none()
            && let Some(index) = &self.index
            && self.chunk < index.chunks().len()
        {
            self.leaf = Some(trees.chunk(index, self.chunk)?);
        }
        Ok(self.leaf.as_ref().map(|leaf| leaf.entry(self.entry)))
    }

    /// The entry at the cursor, decoded. Call it only after [`Cursor::peek`] returned an entry.
    pub fn target(&self) -> Result<Option<Target>> {
        let entry = self.leaf.as_ref().map(|leaf| leaf.entry(self.entry));
        let target = entry.map(|entry| entry.to_target()).transpose();
        target.map_err(|error| match &self.id {
            Some(id) => error.named(id),
            None => error,
        })
    }

    /// Moves to the next entry.
    pub fn advance(&mut self) {
        self.entry += 1;
        if self.leaf.as_ref().is_some_and(|leaf| self.entry >= leaf.len()) {
            self.skip_chunk();
        }
    }

    /// At the start of a chunk: its object, and whether it may have links. `None` elsewhere.
    pub fn chunk(&mut self, trees: &Trees) -> Result<Option<(ObjectId, bool)>> {
        if self.entry != 0 {
            return Ok(None);
        }
        self.open(trees)?;
        Ok(match &self.index {
            Some(index) => index.chunks().get(self.chunk).map(|chunk| (chunk.id, chunk.links)),
            None => self.id.filter(|_| self.leaf.is_some()).map(|id| (id, true)),
        })
    }

    /// Moves to the next chunk.
    pub fn skip_chunk(&mut self) {
        self.chunk += 1;
        self.entry = 0;
        self.leaf = None;
    }

    fn open(&mut self, trees: &Trees) -> Result<()> {
        if self.opened {
            return Ok(());
        }
        self.opened = true;
        match self.id.map(|id| trees.node(&id, self.keys)).transpose()? {
            Some(Node::Leaf(leaf)) => self.leaf = Some(leaf),
            Some(Node::Index(index)) => self.index = Some(index),
            Some(Node::Root(_)) | None => {}
        }
        Ok(())
    }
}
