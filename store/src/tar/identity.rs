//! The identity tar: the deterministic stream whose blake3 is a layer's `tar_hash` (docs/STORE-FORMAT.md). It
//! is hashed, but never stored.
//!
//! It has the entries of [`super::layer`], in a reduced form:
//! - Modification times are 0.
//! - The body of a regular file is its content hash, 64 hex digits. `KARAPACE.size` is the file's size in
//!   bytes; `KARAPACE.extents` lists offset and length of its data, `0,65536,131072,5`, unless all of it is
//!   data.
//! - A socket is a FIFO with `KARAPACE.kind=socket`.

use std::io::Write;
use std::path::Path;

use super::encode::{EntryHeader, Records};
use super::layer::{Form, LayerTar, Names, Output, Partial, other_names};
use crate::content::FileContent;
use crate::error::Result;
use crate::id::{ObjectId, hex_id};
use crate::inode::{FileKind, InodeRecord, Timestamp};
use crate::root::Root;
use crate::tree::Trees;

hex_id!(
    /// The blake3 of a layer's identity tar.
    TarHash, 32, "a tar hash"
);

/// The hash of the changes from `old` to `new`; without `old`, of the whole tree. Reads only what differs.
///
/// # Errors
/// When a tree cannot be read.
pub fn identity_hash(trees: &Trees, old: Option<&Root>, new: &Root) -> Result<TarHash> {
    let mut hasher = blake3::Hasher::new();
    let partial = write_identity(trees, old, new, &Names::new(), &mut hasher)?;
    if !partial.is_empty() {
        // Hard links with unchanged other names are rare: only they cost a second pass.
        let extra = other_names(trees, new, &partial)?;
        hasher.reset();
        write_identity(trees, old, new, &extra, &mut hasher)?;
    }
    Ok(TarHash::from_bytes(*hasher.finalize().as_bytes()))
}

/// The digest that pins an image (docs/MANIFEST.md): the tar hash of the whole tree. It covers every path,
/// kind, mode, owner, xattr, link target and content, but no times.
pub fn content_digest(trees: &Trees, root: &Root) -> Result<ObjectId> {
    identity_hash(trees, None, root).map(|hash| ObjectId::from_bytes(*hash.as_bytes()))
}

/// Writes the identity tar, with `extra` names in addition to what differs. Returns the inodes of which it
/// did not write all names.
pub(super) fn write_identity(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    extra: &Names,
    out: &mut dyn Write,
) -> Result<Partial> {
    let layer = LayerTar { trees, old, new, directory_times: false };
    layer.write(extra, &mut Thin, out, Path::new("the identity tar"))
}

struct Thin;

impl Form for Thin {
    fn takes(&mut self, _path: &[u8], _record: &InodeRecord) -> Result<bool> {
        Ok(true)
    }

    fn mtime(&mut self, _record: &InodeRecord) -> Timestamp {
        Timestamp::default()
    }

    fn regular(
        &mut self,
        out: &mut Output<'_>,
        mut header: EntryHeader<'_>,
        mut records: Records,
        content: &FileContent,
    ) -> Result<()> {
        records.insert(b"KARAPACE.size".to_vec(), content.size.to_string().into_bytes());
        let ranges = content.data_ranges();
        let whole = if content.size == 0 { vec![] } else { vec![(0, content.size)] };
        if ranges != whole {
            let numbers: Vec<String> = ranges.iter().map(|(at, len)| format!("{at},{len}")).collect();
            records.insert(b"KARAPACE.extents".to_vec(), numbers.join(",").into_bytes());
        }
        let body = content.hash.to_hex();
        header.size = body.len() as u64;
        out.entry(&header, records)?;
        out.body(body.as_bytes())
    }

    fn attributes(&mut self, record: &InodeRecord, records: &mut Records) {
        if record.kind() == FileKind::Socket {
            records.insert(b"KARAPACE.kind".to_vec(), b"socket".to_vec());
        }
    }
}
