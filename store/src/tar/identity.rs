//! The identity tar: the deterministic stream whose blake3 is a layer's `tar_hash` (SPEC §5). It is hashed, never stored.
//!
//! An archive in the encoding of [`super::Encoder`], of what differs between two trees:
//! - Entries stand in path order, by components (`/` sorts before any other byte), parents before children. Names are relative, a
//!   directory's ends in a slash, the root is `./`. The directories above an entry are entries too.
//! - mtime 0, no user or group names, mode bits 07777, a device's numbers, PAX records only where needed, sorted by key.
//! - A regular file's body is its content hash, 64 hex digits. `KARAPACE.size` is the file's size;
//!   `KARAPACE.extents` lists offset and length of its data, `0,65536,131072,5`, unless data is all of it.
//! - Extended attributes are `SCHILY.xattr.<name>` records. A socket is a FIFO with `KARAPACE.kind=socket`.
//! - The first name of an inode in the layer carries it; each further one is a hard link to the first.
//! - What is gone is an empty regular file `.wh.<name>` in the place of its name: one for each hidden child, none for what
//!   lies below it, none where something else has taken the name. A name that begins with `.wh.` itself carries `KARAPACE.literal=1`.

use std::collections::HashMap;
use std::io;

use super::encode::{Encoder, EntryHeader, Records, xattr_records};
use crate::error::{Result, StoreError};
use crate::id::{ObjectId, hex_id};
use crate::inode::{Body, FileKind, Ino, InodeRecord, Timestamp};
use crate::root::Root;
use crate::tree::{Change, Target, Trees, diff};

hex_id!(
    /// The blake3 of a layer's identity tar.
    TarHash, 32, "a tar hash"
);

/// The hash of what `new` changes against `old`; with no `old`, of the whole tree. Reads only what differs.
pub fn identity_hash(trees: &Trees, old: Option<&Root>, new: &Root) -> Result<TarHash> {
    let mut hasher = blake3::Hasher::new();
    write_identity(trees, old, new, &mut hasher)?;
    Ok(TarHash::from_bytes(*hasher.finalize().as_bytes()))
}

/// What pins an image (SPEC §3.1): covers every path, kind, mode, owner, xattr, link target and content, but no times. The tar hash of the
/// whole tree.
pub fn content_digest(trees: &Trees, root: &Root) -> Result<ObjectId> {
    identity_hash(trees, None, root).map(|hash| ObjectId::from_bytes(*hash.as_bytes()))
}

/// Writes the identity tar itself.
pub(super) fn write_identity(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    out: &mut dyn io::Write,
) -> Result<()> {
    let mut identity = Identity {
        trees,
        root: new,
        tar: Encoder::new(out),
        above: Vec::new(),
        first_names: HashMap::new(),
        removed: None,
    };
    diff(trees, old, new, &mut |path, change| match change {
        Change::Removed(_) => identity.removed(path),
        Change::Added(record) | Change::Modified { new: record, .. } => identity.present(path, record),
    })?;
    identity.flush_removed()?;
    identity.tar.finish().map(|_| ()).map_err(written)
}

/// A directory whose entry stands in the archive already.
struct Above {
    path: Vec<u8>,
    tree: Option<ObjectId>,
}

struct Identity<'a> {
    trees: &'a Trees,
    root: &'a Root,
    tar: Encoder<&'a mut dyn io::Write>,
    /// From the root down to the directory of the latest entry.
    above: Vec<Above>,
    /// Of inodes with several names, the first in this layer.
    first_names: HashMap<Ino, Vec<u8>>,
    /// The latest path that is gone, until it is known whether something takes its place.
    removed: Option<Vec<u8>>,
}

impl Identity<'_> {
    fn removed(&mut self, path: &[u8]) -> Result<()> {
        if self.removed.as_ref().is_some_and(|removed| is_above(removed, path)) {
            return Ok(());
        }
        self.flush_removed()?;
        self.removed = Some(path.to_vec());
        Ok(())
    }

    fn present(&mut self, path: &[u8], record: &InodeRecord) -> Result<()> {
        if self.removed.as_deref() == Some(path) {
            self.removed = None;
        }
        self.flush_removed()?;
        self.open_parents(path)?;
        self.entry(path, record)
    }

    fn flush_removed(&mut self) -> Result<()> {
        let Some(path) = self.removed.take() else { return Ok(()) };
        self.open_parents(&path)?;
        let name = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        let whiteout = [&path[1..name], b".wh.", &path[name..]].concat();
        let header = EntryHeader {
            path: &whiteout,
            link: b"",
            type_flag: EntryHeader::type_flag(FileKind::Regular),
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::default(),
            device: (0, 0),
        };
        self.tar.entry(&header, Records::new()).map_err(written)
    }

    /// Writes the entries of the directories above a path that do not stand there yet.
    fn open_parents(&mut self, path: &[u8]) -> Result<()> {
        while self.above.last().is_some_and(|above| !is_above(&above.path, path)) {
            self.above.pop();
        }
        if self.above.is_empty() && path != b"/" {
            let root = self.root;
            self.entry(b"/", &root.inode)?;
        }
        while let Some(above) = self.above.last() {
            let start = if above.path == b"/" { 1 } else { above.path.len() + 1 };
            let Some(length) = path[start..].iter().position(|&b| b == b'/') else { break };
            let (name, below) = (&path[start..start + length], &path[..start + length]);
            let target = match &above.tree {
                Some(tree) => self.trees.lookup(tree, name)?,
                None => None,
            };
            let Some(Target::Inode(record)) = target else {
                let shown = String::from_utf8_lossy(below);
                return Err(StoreError::Invalid(format!("{shown:?} should be a directory of the new tree")));
            };
            self.entry(below, &record)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], record: &InodeRecord) -> Result<()> {
        let kind = record.kind();
        let mut name = if path == b"/" { b".".to_vec() } else { path[1..].to_vec() };
        if kind == FileKind::Directory {
            name.push(b'/');
        }
        let mut header = EntryHeader {
            path: &name,
            link: b"",
            type_flag: EntryHeader::type_flag(kind),
            mode: record.mode & 0o7777,
            uid: record.uid,
            gid: record.gid,
            size: 0,
            mtime: Timestamp::default(),
            device: (0, 0),
        };
        let mut records = Records::new();
        let base = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if base.starts_with(b".wh.") {
            records.insert(b"KARAPACE.literal".to_vec(), b"1".to_vec());
        }
        if kind != FileKind::Directory && record.nlink > 1 {
            if let Some(first) = self.first_names.get(&record.ino) {
                let header = EntryHeader { link: first, type_flag: EntryHeader::HARD_LINK, ..header };
                return self.tar.entry(&header, records).map_err(written);
            }
            self.first_names.insert(record.ino, name.clone());
        }
        xattr_records(&record.xattrs, &mut records);
        let mut body = String::new();
        match &record.body {
            Body::Regular(content) => {
                body = content.hash.to_hex();
                records.insert(b"KARAPACE.size".to_vec(), content.size.to_string().into_bytes());
                let ranges = content.data_ranges();
                let whole = if content.size == 0 { vec![] } else { vec![(0, content.size)] };
                if ranges != whole {
                    let numbers: Vec<String> = ranges.iter().map(|(at, len)| format!("{at},{len}")).collect();
                    records.insert(b"KARAPACE.extents".to_vec(), numbers.join(",").into_bytes());
                }
            }
            Body::Symlink(target) => header.link = target,
            Body::Directory { tree, .. } => self.above.push(Above { path: path.to_vec(), tree: *tree }),
            Body::Special => {
                if kind == FileKind::Socket {
                    records.insert(b"KARAPACE.kind".to_vec(), b"socket".to_vec());
                }
                header.device = (rustix::fs::major(record.rdev), rustix::fs::minor(record.rdev));
            }
        }
        header.size = body.len() as u64;
        self.tar.entry(&header, records).map_err(written)?;
        self.tar.body(body.as_bytes()).map_err(written)
    }
}

/// Whether `above` is a directory on the way to `path`.
fn is_above(above: &[u8], path: &[u8]) -> bool {
    match above {
        b"/" => path != b"/",
        _ => path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/")),
    }
}

fn written(error: io::Error) -> StoreError {
    StoreError::Invalid(format!("writing the identity tar: {error}"))
}
