//! The checkpoint: the whole upper at one moment, replaced atomically.
//!
//! Format: magic `KAC1`, epoch u64, the head (layer hash, record id, root object: 32 bytes each), number of
//! items u64, the items (see `record`), blake3 of all preceding bytes. It names the lower view, so replacing
//! this one file is what makes a commit or a restore take effect.

use std::io::{self, Read as _};
use std::path::Path;

use karapace_store::codec::Decoder;
use karapace_store::files::Files;
use karapace_store::id::{LayerHash, ObjectId, RecordId};

use crate::attr::HeadRef;
use crate::error::{Error, Result};
use crate::upper::record::{Item, encode_all};

const MAGIC: &[u8; 4] = b"KAC1";

/// A checkpoint in memory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub epoch: u64,
    pub head: HeadRef,
    pub items: Vec<Item>,
}

impl Checkpoint {
    /// Writes the checkpoint durably, replacing the one at `path`.
    pub fn write(&self, files: &Files, path: &Path) -> Result<()> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(self.head.layer.as_bytes());
        out.extend_from_slice(self.head.record.as_bytes());
        out.extend_from_slice(self.head.root.as_bytes());
        out.extend_from_slice(&(self.items.len() as u64).to_le_bytes());
        encode_all(&self.items, &mut out);
        let sum = ObjectId::of(&out);
        out.extend_from_slice(sum.as_bytes());
        Ok(files.write(path, &out)?)
    }

    /// Reads the checkpoint at `path`; `None` if there is none.
    pub fn read(files: &Files, path: &Path) -> Result<Option<Checkpoint>> {
        let bytes = match files.read(path, u64::MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::host("read checkpoint", path, e)),
        };
        Self::decode(&bytes, path).map(Some)
    }

    /// The epoch of the checkpoint at `path`, without verifying it; `None` if it cannot be read.
    pub fn epoch_at(files: &Files, path: &Path) -> Option<u64> {
        let mut head = [0; 12];
        files.open(path).and_then(|mut file| file.read_exact(&mut head)).ok()?;
        let epoch = u64::from_le_bytes(head[4..].try_into().ok()?);
        (head[..4] == *MAGIC).then_some(epoch)
    }

    /// Decodes a checkpoint and verifies its checksum. `path` is only used in errors.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Checkpoint> {
        let corrupt = |why: &str| Error::Corrupt(format!("checkpoint {}: {why}", path.display()));
        if bytes.get(..4) != Some(MAGIC.as_slice()) {
            return Err(corrupt("unknown format; a newer karapace may have written it"));
        }
        let body_len = bytes.len().checked_sub(32).ok_or_else(|| corrupt("too short"))?;
        let (body, sum) = bytes.split_at(body_len);
        if ObjectId::of(body).as_bytes() != sum {
            return Err(corrupt("its checksum does not match"));
        }
        let mut d = Decoder::new("checkpoint", &body[4..]);
        let epoch = u64::from_le_bytes(d.array()?);
        let head = HeadRef {
            layer: LayerHash::from_bytes(d.array()?),
            record: RecordId::from_bytes(d.array()?),
            root: ObjectId::from_bytes(d.array()?),
        };
        let count = u64::from_le_bytes(d.array()?);
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(Item::decode(&mut d)?);
        }
        if d.remaining() > 0 {
            return Err(corrupt("bytes after the last item"));
        }
        Ok(Checkpoint { epoch, head, items })
    }
}
