//! The identity tar: the deterministic stream whose blake3 is a layer's `tar_hash` (SPEC §5). It is hashed, never stored.
//!
//! An archive in the encoding of [`super::Encoder`], of what differs between two trees:
//! - Entries stand in path order, by components (`/` sorts before any other byte), parents before children. Names are relative, a
//!   directory's ends in a slash, the root is `./`. The directories above an entry are entries too.
//! - mtime 0, no user or group names, mode bits 07777, a device's numbers, PAX records only where needed, sorted by key.
//! - A regular file's body is its content hash, 64 hex digits. `KARAPACE.size` is the file's size;
//!   `KARAPACE.extents` lists offset and length of its data, `0,65536,131072,5`, unless data is all of it.
//! - Extended attributes are `SCHILY.xattr.<name>` records. A socket is a FIFO with `KARAPACE.kind=socket`.
//! - The first name of an inode in the layer carries it; each further one is a hard link to the first. A layer that has one
//!   name of an inode has all of them: else `ln a b` and `cp a b` would be one layer.
//! - What is gone is an empty regular file `.wh.<name>` in the place of its name: one for each hidden child, none for what
//!   lies below it, none where something else has taken the name. A name that begins with `.wh.` itself carries `KARAPACE.literal=1`.

use std::cmp::Ordering;
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
    let partial = write_identity(trees, old, new, &[], &mut hasher)?;
    if !partial.is_empty() {
        // Hard links whose other names did not change are rare: they alone cost a second pass.
        let extra = other_names(trees, new, &partial)?;
        hasher.reset();
        write_identity(trees, old, new, &extra, &mut hasher)?;
    }
    Ok(TarHash::from_bytes(*hasher.finalize().as_bytes()))
}

/// What pins an image (SPEC §3.1): covers every path, kind, mode, owner, xattr, link target and content, but no times. The tar hash of the
/// whole tree.
pub fn content_digest(trees: &Trees, root: &Root) -> Result<ObjectId> {
    identity_hash(trees, None, root).map(|hash| ObjectId::from_bytes(*hash.as_bytes()))
}

/// Unchanged names of inodes that the layer has, in path order.
type Names = Vec<(Vec<u8>, InodeRecord)>;

/// The order of paths by their components.
fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    a.split(|&c| c == b'/').cmp(b.split(|&c| c == b'/'))
}

/// Writes the identity tar, with `extra` names beside what differs. Gives the inodes of which it did not write all names, with
/// those that it did.
fn write_identity(
    trees: &Trees,
    old: Option<&Root>,
    new: &Root,
    extra: &[(Vec<u8>, InodeRecord)],
    out: &mut dyn io::Write,
) -> Result<HashMap<Ino, Linked>> {
    let mut identity = Identity {
        trees,
        root: new,
        tar: Encoder::new(out),
        above: Vec::new(),
        linked: HashMap::new(),
        removed: None,
    };
    let mut extra = extra.iter().peekable();
    diff(trees, old, new, &mut |path, change| {
        while let Some((other, record)) = extra.next_if(|(other, _)| path_order(other, path).is_lt()) {
            identity.present(other, record)?;
        }
        match change {
            Change::Removed(_) => identity.removed(path),
            Change::Added(record) | Change::Modified { new: record, .. } => identity.present(path, record),
        }
    })?;
    for (other, record) in extra {
        identity.present(other, record)?;
    }
    identity.flush_removed()?;
    identity.tar.finish().map_err(written)?;
    let mut linked = identity.linked;
    linked.retain(|_, linked| linked.paths.len() < linked.record.nlink as usize);
    Ok(linked)
}

/// Names of these inodes that have not been written. Opens only directories with hard links below them.
fn other_names(trees: &Trees, root: &Root, partial: &HashMap<Ino, Linked>) -> Result<Names> {
    let mut names = Names::new();
    let mut todo: Vec<(ObjectId, Vec<u8>)> =
        root.tree().map(|tree| (*tree, Vec::new())).into_iter().collect();
    while let Some((tree, path)) = todo.pop() {
        trees.for_each(&tree, &mut |entry| {
            if !entry.has_links() {
                return Ok(());
            }
            let below = [&path, &b"/"[..], entry.name()].concat();
            if let Some(linked) = partial.get(&entry.ino()) {
                if !linked.paths.contains(&below) {
                    names.push((below, linked.record.clone()));
                }
            } else if let Target::Inode(InodeRecord {
                body: Body::Directory { tree: Some(tree), .. }, ..
            }) = entry.to_target()?
            {
                todo.push((tree, below));
            }
            Ok(())
        })?;
    }
    names.sort_by(|a, b| path_order(&a.0, &b.0));
    Ok(names)
}

/// An inode of several names, with those in the archive.
struct Linked {
    record: InodeRecord,
    /// As in the tree, `/a/b`, in order.
    paths: Vec<Vec<u8>>,
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
    /// Inodes of several names.
    linked: HashMap<Ino, Linked>,
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
            if let Some(linked) = self.linked.get_mut(&record.ino) {
                linked.paths.push(path.to_vec());
                let link = &linked.paths[0][1..];
                let header = EntryHeader { link, type_flag: EntryHeader::HARD_LINK, ..header };
                return self.tar.entry(&header, records).map_err(written);
            }
            let linked = Linked { record: record.clone(), paths: vec![path.to_vec()] };
            self.linked.insert(record.ino, linked);
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

#[cfg(test)]
mod tests;
