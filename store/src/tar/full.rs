//! The full tar: written by `export`, for other programs to read.
//!
//! It has the entries of [`super::layer`], with modification times and content. Its bytes depend only on the
//! trees and the content.
//! - A file with holes (blocks of 64 KiB that are all zero, whatever the disk says) is a sparse member of PAX
//!   format 1.0, in the form that GNU tar gives it.
//! - POSIX ACLs are written twice: as the kernel's xattr, which is exact, and as `SCHILY.acl.*` text, which
//!   GNU tar and bsdtar restore.
//! - If a name in a record is not UTF-8, `hdrcharset=BINARY` marks that.
//! - Sockets are left out: tar has no entry for them.
//!
//! Layers of OCI images ([`Dialect::Layer`]) have no sparse members, which the image specification advises
//! against and some readers do not support, and no names that begin with `.wh.`, which would mean deletions.

use std::io::Write;
use std::path::Path;

use super::acl;
use super::encode::{EntryHeader, Records};
use super::identity::write_identity;
use super::layer::{Form, LayerTar, Names, Output, other_names};
use super::sparse::{MAX_RANGES, Ranges};
use crate::content::{BLOCK, FileContent, Verified};
use crate::error::{Result, StoreError};
use crate::inode::{FileKind, InodeRecord, Timestamp};
use crate::progress::Progress;
use crate::root::Root;
use crate::tree::Trees;

/// The readers for which the tar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Programs that support PAX: nothing is lost.
    Pax,
    /// Readers of OCI image layers.
    Layer,
}

/// What was written to a full tar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Entries, including the root and the directories above what changed; not counting whiteouts.
    pub entries: u64,
    /// Sockets that were left out, as `/a/b`, in path order.
    pub sockets: Vec<Vec<u8>>,
    /// The files whose holes were written as zeros, with the size of these in bytes, in path order. Only with
    /// [`Dialect::Layer`], and only files with at least [`Written::NOTED_HOLES`].
    pub filled: Vec<(Vec<u8>, u64)>,
    /// The newest modification time among the entries.
    pub newest: Option<Timestamp>,
}

impl Written {
    /// A file with at least this many bytes of holes is listed in [`Written::filled`].
    pub const NOTED_HOLES: u64 = 1 << 30;
}

/// Whether a path (`/` for the root, else `/a/b`) is wanted.
pub type Chosen<'a> = &'a dyn Fn(&[u8]) -> bool;

/// Writes full tars of the trees of one store.
pub struct FullTar<'a> {
    /// The trees.
    pub trees: &'a Trees,
    /// The readers it is written for.
    pub dialect: Dialect,
    /// Is told the bytes of content and the entries written.
    pub progress: &'a dyn Progress,
    /// The output's name in errors.
    pub name: &'a Path,
}

impl FullTar<'_> {
    /// Writes the whole tree, or the `chosen` part of it: if a path is chosen, the directories above it must
    /// be too.
    ///
    /// # Errors
    /// [`StoreError::Io`] with [`FullTar::name`] when `out` fails, [`StoreError::Corrupt`] when content does
    /// not match its hash, [`StoreError::Invalid`] for a name that the dialect does not allow.
    pub fn tree(&self, root: &Root, chosen: Option<Chosen<'_>>, out: &mut dyn Write) -> Result<Written> {
        self.write(&self.layer(None, root), &Names::new(), chosen, out)
    }

    /// Writes the changes from `old` to `new`, with whiteouts for what was removed.
    ///
    /// # Errors
    /// Those of [`FullTar::tree`].
    pub fn changes(&self, old: &Root, new: &Root, out: &mut dyn Write) -> Result<Written> {
        let layer = self.layer(Some(old), new);
        // Which hard links have unchanged names is known only at the end, so a first pass without content
        // finds them.
        let partial = write_identity(self.trees, Some(old), new, &Names::new(), &mut std::io::sink())?;
        let extra = if partial.is_empty() { Names::new() } else { other_names(self.trees, new, &partial)? };
        self.write(&layer, &extra, None, out)
    }

    fn layer<'b>(&'b self, old: Option<&'b Root>, new: &'b Root) -> LayerTar<'b> {
        LayerTar { trees: self.trees, old, new, directory_times: true }
    }

    fn write(
        &self,
        layer: &LayerTar<'_>,
        extra: &Names,
        chosen: Option<Chosen<'_>>,
        out: &mut dyn Write,
    ) -> Result<Written> {
        let mut full = Full { tar: self, chosen, path: Vec::new(), written: Written::default() };
        layer.write(extra, &mut full, out, self.name)?;
        Ok(full.written)
    }
}

struct Full<'a> {
    tar: &'a FullTar<'a>,
    chosen: Option<Chosen<'a>>,
    /// The path of the current entry.
    path: Vec<u8>,
    written: Written,
}

impl Form for Full<'_> {
    fn takes(&mut self, path: &[u8], record: &InodeRecord) -> Result<bool> {
        if self.chosen.is_some_and(|chosen| !chosen(path)) {
            return Ok(false);
        }
        if record.kind() == FileKind::Socket {
            self.written.sockets.push(path.to_vec());
            return Ok(false);
        }
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
        if self.tar.dialect == Dialect::Layer && name.starts_with(b".wh.") {
            let shown = String::from_utf8_lossy(path);
            return Err(StoreError::Invalid(format!(
                "{shown:?} cannot be in an OCI image, where a name that begins with \".wh.\" marks a deleted file: rename it, \
                 or export a tar"
            )));
        }
        self.path.clear();
        self.path.extend_from_slice(path);
        Ok(true)
    }

    fn mtime(&mut self, record: &InodeRecord) -> Timestamp {
        self.written.entries += 1;
        self.written.newest = self.written.newest.max(Some(record.mtime));
        self.tar.progress.add(0, 1);
        record.mtime
    }

    fn regular(
        &mut self,
        out: &mut Output<'_>,
        header: EntryHeader<'_>,
        mut records: Records,
        content: &FileContent,
    ) -> Result<()> {
        let mut source = Verified::open(self.tar.trees.store(), content)?;
        let progress = self.tar.progress;
        let mut copy = |out: &mut Output<'_>, (offset, length)| {
            source.copy(offset, length, &mut |piece| {
                progress.add(piece.len() as u64, 0);
                out.body(piece)
            })
        };
        let ranges = bounded(content.data_ranges(), content.size, MAX_RANGES);
        let holes = content.size - ranges.iter().map(|range| range.1).sum::<u64>();
        if holes == 0 || self.tar.dialect == Dialect::Layer {
            if holes >= Written::NOTED_HOLES {
                self.written.filled.push((self.path.clone(), holes));
            }
            out.entry(&EntryHeader { size: content.size, ..header }, records)?;
            return copy(out, (0, content.size));
        }
        let map = sparse_map(&ranges, content.size);
        let name = sparse_records(header.path, content.size, &mut records);
        let size = map.len() as u64 + (content.size - holes);
        out.entry(&EntryHeader { path: &name, size, ..header }, records)?;
        out.body(&map)?;
        ranges.into_iter().try_for_each(|range| copy(out, range))
    }

    fn attributes(&mut self, record: &InodeRecord, records: &mut Records) {
        acl::to_records(&record.xattrs, records);
    }

    fn names(&mut self, header: &EntryHeader<'_>, records: &mut Records) {
        for name in [header.path, header.link] {
            // Shorter names go into the header unchanged.
            if name.len() > 100 {
                charset(name, records);
            }
        }
    }
}

/// Names in records are UTF-8 unless another record says otherwise; bsdtar refuses others without it.
fn charset(name: &[u8], records: &mut Records) {
    if std::str::from_utf8(name).is_err() {
        records.insert(b"hdrcharset".to_vec(), b"BINARY".to_vec());
    }
}

/// Adds the records of a sparse member in PAX format 1.0. Returns the name for its header, which is where a
/// reader that does not support the format extracts the packed file.
fn sparse_records(path: &[u8], size: u64, records: &mut Records) -> Vec<u8> {
    charset(path, records);
    let mut put = |key: &str, value: &[u8]| records.insert(key.as_bytes().to_vec(), value.to_vec());
    put("GNU.sparse.major", b"1");
    put("GNU.sparse.minor", b"0");
    put("GNU.sparse.name", path);
    put("GNU.sparse.realsize", size.to_string().as_bytes());
    // GNU tar puts its process id in place of the 0, and the directory before it, which takes another record
    // for a long name.
    let base = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let mut name = [b"GNUSparseFile.0/", base].concat();
    name.truncate(100);
    name
}

/// The map before the data: decimal lines with a count, then offset and length of each range. GNU tar takes
/// the file's length from the last range, so a hole at the end is followed by an empty range.
fn sparse_map(ranges: &[(u64, u64)], size: u64) -> Vec<u8> {
    let end = ranges.last().map_or(0, |(offset, length)| offset + length);
    let last = (end != size).then_some((size, 0));
    let mut map = format!("{}\n", ranges.len() + usize::from(last.is_some())).into_bytes();
    for (offset, length) in ranges.iter().copied().chain(last) {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(super::BLOCK), 0);
    map
}

/// Merges ranges across their smallest holes until there are fewer than `most`, the limit of readers
/// including ours. The holes in between become data.
fn bounded(mut ranges: Ranges, size: u64, most: usize) -> Ranges {
    let mut grain = BLOCK;
    while ranges.len() >= most {
        grain *= 2;
        let mut joined = Ranges::new();
        for (offset, length) in ranges {
            let start = offset / grain * grain;
            let end = (offset + length).next_multiple_of(grain).min(size);
            match joined.last_mut() {
                Some((first, length)) if *first + *length >= start => *length = end - *first,
                _ => joined.push((start, end - start)),
            }
        }
        ranges = joined;
    }
    ranges
}

#[cfg(test)]
mod tests;
