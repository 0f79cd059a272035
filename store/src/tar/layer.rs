//! The entries of a layer in path order, as shared by the identity tar ([`super::identity`]) and the exported
//! tar ([`super::full`]).
//!
//! The archive is encoded by [`super::Encoder`] and contains what differs between two trees:
//! - Entries are in path order, compared by component (`/` sorts before any other byte), parents before
//!   children. Names are relative; a directory's ends in a slash; the root is `./`. The directories above an
//!   entry are entries too.
//! - No user or group names; mode bits 07777; a device's numbers; PAX records only where needed, sorted by
//!   key.
//! - Extended attributes are `SCHILY.xattr.<name>` records.
//! - The first name of an inode in the layer carries the inode; each further name is a hard link to the
//!   first. A layer that has one name of an inode has all of them: otherwise `ln a b` and `cp a b` would be
//!   the same layer, and a reader that has only the layer could not make the link.
//! - A removed name becomes an empty regular file `.wh.<name>`: one for each hidden child, none for anything
//!   below it, none if something else has taken the name. A file whose own name begins with `.wh.` carries
//!   `KARAPACE.literal=1`.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use super::encode::{Encoder, EntryHeader, Records, xattr_records};
use crate::content::FileContent;
use crate::error::{IoContext as _, Result, StoreError};
use crate::id::ObjectId;
use crate::inode::{Body, FileKind, Ino, InodeRecord, Timestamp};
use crate::root::Root;
use crate::tree::{Change, Target, Trees, diff, diff_with_times};

/// What differs between the kinds of tar made from a layer.
pub(super) trait Form {
    /// Whether the archive gets an entry for this path.
    fn takes(&mut self, path: &[u8], record: &InodeRecord) -> Result<bool>;

    /// The modification time to write into the header.
    fn mtime(&mut self, record: &InodeRecord) -> Timestamp;

    /// Writes a regular file: the header, with size and records completed, and the body.
    fn regular(
        &mut self,
        out: &mut Output<'_>,
        header: EntryHeader<'_>,
        records: Records,
        content: &FileContent,
    ) -> Result<()>;

    /// Adds records to an entry that is not a hard link.
    fn attributes(&mut self, record: &InodeRecord, records: &mut Records);

    /// Adds the records that an entry's name and link target require.
    fn names(&mut self, _header: &EntryHeader<'_>, _records: &mut Records) {}
}

/// The encoder; its errors name what it writes to.
pub(super) struct Output<'a> {
    tar: Encoder<&'a mut dyn Write>,
    name: &'a Path,
}

impl Output<'_> {
    pub fn entry(&mut self, header: &EntryHeader<'_>, records: Records) -> Result<()> {
        self.tar.entry(header, records).at("write", self.name)
    }

    pub fn body(&mut self, bytes: &[u8]) -> Result<()> {
        self.tar.body(bytes).at("write", self.name)
    }
}

/// Inodes of which a tar does not have all names, each with the names it has.
pub(super) type Partial = HashMap<Ino, Linked>;

/// Unchanged names of inodes that the layer contains, in path order.
pub(super) type Names = Vec<(Vec<u8>, InodeRecord)>;

/// Compares paths component by component.
fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    a.split(|&c| c == b'/').cmp(b.split(|&c| c == b'/'))
}

/// A layer: the changes from `old` to `new`, or without `old` the whole tree.
pub(super) struct LayerTar<'a> {
    pub trees: &'a Trees,
    pub old: Option<&'a Root>,
    pub new: &'a Root,
    /// Whether a directory of which only the modification time differs is an entry too.
    pub directory_times: bool,
}

impl LayerTar<'_> {
    /// Writes the tar to `out`, which errors call `name`, with `extra` names in addition to what differs.
    /// Returns the inodes of which it did not write all names.
    pub fn write(
        &self,
        extra: &Names,
        form: &mut dyn Form,
        out: &mut dyn Write,
        name: &Path,
    ) -> Result<Partial> {
        let mut writer = Writer {
            trees: self.trees,
            root: self.new,
            form,
            out: Output { tar: Encoder::new(out), name },
            above: Vec::new(),
            linked: HashMap::new(),
            removed: None,
        };
        let mut extra = extra.iter().peekable();
        let compare = if self.directory_times { diff_with_times } else { diff };
        compare(self.trees, self.old, self.new, &mut |path, change| {
            while let Some((other, record)) = extra.next_if(|(other, _)| path_order(other, path).is_lt()) {
                writer.present(other, record)?;
            }
            match change {
                Change::Removed(_) => writer.removed(path),
                Change::Added(record) | Change::Modified { new: record, .. } => writer.present(path, record),
            }
        })?;
        for (other, record) in extra {
            writer.present(other, record)?;
        }
        writer.flush_removed()?;
        writer.out.tar.finish().at("write", name)?;
        let mut linked = writer.linked;
        linked.retain(|_, linked| linked.paths.len() < linked.record.nlink as usize);
        Ok(linked)
    }
}

/// The names of these inodes that have not been written. Opens only directories with hard links below them.
pub(super) fn other_names(trees: &Trees, root: &Root, partial: &Partial) -> Result<Names> {
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

/// An inode with several names, and those of its names that are in the archive.
pub(super) struct Linked {
    record: InodeRecord,
    /// Paths in the tree, `/a/b`, in order.
    paths: Vec<Vec<u8>>,
}

/// A directory whose entry has already been written.
struct Above {
    path: Vec<u8>,
    tree: Option<ObjectId>,
}

struct Writer<'a> {
    trees: &'a Trees,
    root: &'a Root,
    form: &'a mut dyn Form,
    out: Output<'a>,
    /// The path from the root down to the directory of the latest entry.
    above: Vec<Above>,
    /// Inodes with several names.
    linked: HashMap<Ino, Linked>,
    /// The latest removed path, until it is known whether something takes its place.
    removed: Option<Vec<u8>>,
}

impl Writer<'_> {
    fn removed(&mut self, path: &[u8]) -> Result<()> {
        if self.removed.as_ref().is_some_and(|removed| is_above(removed, path)) {
            return Ok(());
        }
        self.flush_removed()?;
        self.removed = Some(path.to_vec());
        Ok(())
    }

    fn present(&mut self, path: &[u8], record: &InodeRecord) -> Result<()> {
        // Checked first: something that is left out of the archive does not take the place of a removed path.
        if !self.form.takes(path, record)? {
            return Ok(());
        }
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
        self.out.entry(&header, Records::new())
    }

    /// Writes the entries of the directories above a path, unless they have been written.
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
            mtime: self.form.mtime(record),
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
                self.form.names(&header, &mut records);
                return self.out.entry(&header, records);
            }
            let linked = Linked { record: record.clone(), paths: vec![path.to_vec()] };
            self.linked.insert(record.ino, linked);
        }
        xattr_records(&record.xattrs, &mut records);
        self.form.attributes(record, &mut records);
        if let Body::Symlink(target) = &record.body {
            header.link = target;
        }
        self.form.names(&header, &mut records);
        match &record.body {
            Body::Regular(content) => return self.form.regular(&mut self.out, header, records, content),
            Body::Symlink(_) => {}
            Body::Directory { tree, .. } => self.above.push(Above { path: path.to_vec(), tree: *tree }),
            Body::Special => {
                header.device = (rustix::fs::major(record.rdev), rustix::fs::minor(record.rdev));
            }
        }
        self.out.entry(&header, records)
    }
}

/// Whether `above` is a directory on the path to `path`.
fn is_above(above: &[u8], path: &[u8]) -> bool {
    match above {
        b"/" => path != b"/",
        _ => path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/")),
    }
}

#[cfg(test)]
mod tests;
