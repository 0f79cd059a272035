//! A root: the object that a layer's `tree` names, for one whole file tree.

use crate::batch::Batch;
use crate::codec::{Decoder, put_id, put_varint};
use crate::error::{Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{Body, FileKind, Ino, InodeRecord, MAX_INO, ROOT_INO};

const MAGIC: &[u8; 4] = b"KRT3";

/// Size limit of a root in bytes; only attributes can make it large.
pub(crate) const ROOT_MAX: u64 = 16 << 20;

/// The root directory, and what belongs to the tree as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The root directory: inode number 1, [`Body::Directory`].
    pub inode: InodeRecord,
    /// The link table: inodes with several names, keyed by number. `None` if there are none.
    pub links: Option<ObjectId>,
    /// The next inode number to assign: greater than that of any inode in the tree.
    pub next_ino: Ino,
}

impl Root {
    /// The root directory's listing; `None` when it is empty.
    pub fn tree(&self) -> Option<&ObjectId> {
        match &self.inode.body {
            Body::Directory { tree, .. } => tree.as_ref(),
            _ => None,
        }
    }

    /// The encoding: each value has exactly one.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_varint(&mut out, self.next_ino);
        match &self.links {
            Some(links) => {
                out.push(1);
                put_id(&mut out, links);
            }
            None => out.push(0),
        }
        self.inode.encode(&mut out);
        out
    }

    /// Decodes a root.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the bytes are not the encoding of a root.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut decoder = Decoder::new("root", bytes);
        if decoder.array::<4>()? != *MAGIC {
            return Err(decoder.error("it does not start with the header of a root of format 3"));
        }
        let next_ino = decoder.varint()?;
        if next_ino <= ROOT_INO || next_ino > MAX_INO + 1 {
            return Err(decoder.error(format!("next inode number {next_ino} is out of range")));
        }
        let links = match decoder.u8()? {
            0 => None,
            1 => Some(decoder.id()?),
            other => return Err(decoder.error(format!("link table marker {other} is unknown"))),
        };
        let inode = InodeRecord::decode(&mut decoder)?;
        decoder.finish()?;
        if inode.ino != ROOT_INO || inode.kind() != FileKind::Directory {
            return Err(decoder.error("its inode is not a directory numbered 1"));
        }
        Ok(Self { inode, links, next_ino })
    }

    /// Adds the root to `batch`.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] when the inode is not a directory numbered 1, or could not be decoded.
    pub fn write(&self, batch: &mut Batch) -> Result<ObjectId> {
        self.inode.check()?;
        if self.inode.ino != ROOT_INO || !matches!(self.inode.body, Body::Directory { .. }) {
            return Err(StoreError::invalid("a root must be a directory numbered 1"));
        }
        batch.put(&self.encode())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn roots_round_trip_and_damage_is_refused_or_canonical(
            record in crate::inode::tests::record(),
            links in proptest::option::of(any::<[u8; 32]>()),
            next_ino in 2..=MAX_INO + 1,
            at in any::<proptest::sample::Index>(),
            byte: u8,
        ) {
            let body = Body::Directory { tree: None, links: false };
            let inode = InodeRecord { ino: 1, mode: 0o040_755, rdev: 0, body, ..record };
            let root = Root { inode, links: links.map(ObjectId::from_bytes), next_ino };
            let mut bytes = root.encode();
            prop_assert_eq!(Root::decode(&bytes).unwrap(), root);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(root) = Root::decode(&bytes) {
                prop_assert_eq!(root.encode(), bytes);
            }
        }
    }
}
