//! Inspects an upper without opening it: what it refers to, and whether its files are intact.
//!
//! Nothing is changed and no lock is taken, so this works beside the process that serves the environment
//! while the upper changes. Checkpoint and journal are read as of one moment: the journal only grows, and if
//! the epochs of the two do not match they are read again. A data file may come or go between reading the
//! records and checking the file, so a fault counts only if it is still there after rereading the records.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karapace_store::content::BLOCK;
use karapace_store::files::Files;
use karapace_store::gc::UpperRoots;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{Body, Ino};

use crate::attr::HeadRef;
use crate::error::{Error, Result};
use crate::upper::blocks::BlockSet;
use crate::upper::checkpoint::Checkpoint;
use crate::upper::data::DataDir;
use crate::upper::record::{DataState, Item};
use crate::upper::{Loaded, Upper, journal};

/// How often checkpoint and journal are reread when a mount is replacing them.
const READINGS: u32 = 8;

/// How often a data file that seems damaged is checked, and the pause in between.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// What is wrong with a data file, or worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// It is missing or cannot be read: what was written to the file is lost. A power loss causes this for
    /// files that were never synced, for which nothing was promised.
    Missing,
    /// It is shorter than the records say, or they mention blocks that it cannot have. After a power loss
    /// that is data that was not synced.
    Short,
    /// No record names it: left by a crash; the next mount removes it.
    Leftover,
}

/// A damaged or unneeded data file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpperFault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// Path of the data file.
    pub file: PathBuf,
    /// Description of the fault.
    pub reason: String,
}

/// Result of checking an upper.
#[derive(Debug, Default)]
pub struct UpperCheck {
    /// Objects of the store that it refers to.
    pub roots: UpperRoots,
    /// Data files with faults.
    pub faults: Vec<UpperFault>,
}

/// What the upper at `upper` on disk refers to; empty if there is none.
///
/// # Errors
/// [`Error::Corrupt`] if any of its records cannot be read.
pub fn roots(files: &Files, upper: &Path) -> Result<UpperRoots> {
    Ok(read(files, upper)?.map_or_else(UpperRoots::default, roots_of))
}

/// Checks the upper at `upper` on disk, reading every data file. `served`: whether a process has it open;
/// leftover files are reported only if not.
///
/// # Errors
/// [`Error::Corrupt`] if checkpoint or journal cannot be read: then nothing is known about the data files.
pub fn check(files: &Files, upper: &Path, served: bool) -> Result<UpperCheck> {
    let Some(loaded) = read(files, upper)? else { return Ok(UpperCheck::default()) };
    let mut faults = Table::new(&loaded).check(&loaded.upper.data, !served)?;
    let roots = roots_of(loaded);
    for _ in 1..LOOKS {
        if faults.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        let Some(loaded) = read(files, upper)? else { return Ok(UpperCheck::default()) };
        let again = Table::new(&loaded).check(&loaded.upper.data, !served)?;
        faults
            .retain(|fault| again.iter().any(|other| (other.kind, &other.file) == (fault.kind, &fault.file)));
    }
    Ok(UpperCheck { roots, faults })
}

/// The offset in bytes at which the intact records of the journal of the upper at `upper` end, if a durable
/// record behind them is damaged; otherwise `None`.
pub fn journal_damage(files: &Files, upper: &Path) -> Result<Option<u64>> {
    match Checkpoint::read(files, &upper.join("checkpoint"))? {
        Some(checkpoint) => journal::damage(files, &upper.join("journal"), checkpoint.epoch),
        None => Ok(None),
    }
}

/// Whether these bytes are an intact checkpoint.
pub fn is_sound_checkpoint(bytes: &[u8]) -> bool {
    Checkpoint::decode(bytes, Path::new("checkpoint")).is_ok()
}

/// Checkpoint and journal as of one moment; `None` if there is no upper.
fn read(files: &Files, upper: &Path) -> Result<Option<Loaded>> {
    let none = HeadRef {
        layer: LayerHash::from_bytes([0; 32]),
        record: RecordId::from_bytes([0; 32]),
        root: ObjectId::from_bytes([0; 32]),
    };
    let mut attempts = 0;
    loop {
        if !super::is_there(files, &upper.join("checkpoint"))? && !super::has_changes(files, upper)? {
            return Ok(None);
        }
        match Upper::open(files, upper, none, false) {
            // A mount may have replaced the checkpoint and started a new journal between the two reads.
            Err(Error::Corrupt(_)) if attempts < READINGS => attempts += 1,
            other => return other.map(Some),
        }
        std::thread::sleep(Duration::from_millis(1 << attempts));
    }
}

fn roots_of(loaded: Loaded) -> UpperRoots {
    let mut roots = UpperRoots::default();
    roots.roots.push(loaded.head.root);
    for item in loaded.settled.into_iter().chain(loaded.replayed) {
        let put = match item {
            Item::Put(put) => put,
            // These items refer to no object.
            Item::Attr(_)
            | Item::Xattr { .. }
            | Item::Place { .. }
            | Item::Name { .. }
            | Item::Blocks { .. }
            | Item::Fresh { .. }
            | Item::Cut { .. }
            | Item::Touched { .. }
            | Item::Gone { .. }
            | Item::Next { .. } => continue,
        };
        match put.record.body {
            Body::Directory { tree, .. } => roots.trees.extend(tree),
            Body::Regular(content) if !matches!(put.data, DataState::Whole { .. }) => {
                roots.objects.extend(content.objects());
            }
            Body::Regular(_) | Body::Symlink(_) | Body::Special => {}
        }
    }
    roots
}

/// What the records say about one inode's data.
struct Row {
    data: DataState,
    nlink: u32,
    /// Size in bytes of the store's file that the blocks lie over.
    base: u64,
    blocks: BlockSet,
    /// Nothing was written since the checkpoint, so the data file must have at least the size in `data`.
    settled: bool,
}

/// The part of the inode table that concerns data files.
struct Table {
    rows: BTreeMap<Ino, Row>,
}

impl Table {
    fn new(loaded: &Loaded) -> Table {
        let mut table = Table { rows: BTreeMap::new() };
        loaded.settled.iter().for_each(|item| table.apply(item, true));
        loaded.replayed.iter().for_each(|item| table.apply(item, false));
        table
    }

    fn apply(&mut self, item: &Item, settled: bool) {
        match item {
            Item::Put(put) => {
                let old = self.rows.remove(&put.record.ino);
                let base = match &put.record.body {
                    Body::Regular(content) => content.size,
                    _ => 0,
                };
                // A put that keeps the file one of blocks keeps its blocks.
                let blocks = match (&put.data, old) {
                    (new, Some(row)) if new.is_blocks() && row.data.is_blocks() => row.blocks,
                    _ => BlockSet::default(),
                };
                let row = Row { data: put.data.clone(), nlink: put.record.nlink, base, blocks, settled };
                self.rows.insert(put.record.ino, row);
            }
            Item::Attr(attr) => {
                if let Some(row) = self.rows.get_mut(&attr.ino) {
                    row.nlink = attr.nlink;
                }
            }
            Item::Blocks { ino, first, count } | Item::Fresh { ino, first, count, .. } => {
                if let Some(row) = self.rows.get_mut(ino) {
                    (*first..first + count).for_each(|block| row.blocks.insert(block));
                    row.settled &= settled;
                }
            }
            Item::Cut { ino, size } => {
                if let Some(row) = self.rows.get_mut(ino) {
                    row.blocks.truncate(size.div_ceil(BLOCK));
                    row.settled = false;
                }
            }
            Item::Touched { ino } => {
                if let Some(row) = self.rows.get_mut(ino) {
                    row.settled = false;
                }
            }
            Item::Gone { ino, .. } => {
                self.rows.remove(ino);
            }
            Item::Xattr { .. } | Item::Place { .. } | Item::Name { .. } | Item::Next { .. } => {}
        }
    }

    /// Checks every data file that the records name; with `leftovers`, also reports files that no record
    /// names.
    fn check(&self, data: &DataDir, leftovers: bool) -> Result<Vec<UpperFault>> {
        let mut faults = Vec::new();
        for (ino, row) in &self.rows {
            let Some(generation) = row.data.generation() else { continue };
            // A removed file that is still open need not be kept; and if a fresh data file is lost, the base
            // counts.
            if row.nlink > 0 && !matches!(row.data, DataState::FreshBlocks { .. }) {
                let file = data.path_of(*ino, generation);
                let fault = row.fault(*ino, data.files(), &file);
                faults.extend(fault.map(|(kind, reason)| UpperFault { kind, file, reason }));
            }
        }
        if leftovers {
            let named = |ino: Ino, found: u32| {
                self.rows.get(&ino).is_some_and(|row| row.data.generation() == Some(found))
            };
            faults.extend(data.strangers(&named)?.into_iter().map(|file| UpperFault {
                kind: FaultKind::Leftover,
                file,
                reason: "no record names it; the next mount removes it".to_owned(),
            }));
        }
        Ok(faults)
    }
}

impl Row {
    /// Checks the data file; returns what is wrong with it.
    fn fault(&self, ino: Ino, files: &Files, file: &Path) -> Option<(FaultKind, String)> {
        let length = match read_through(files, file) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Some((
                    FaultKind::Missing,
                    format!(
                        "the data of inode {ino} is missing (a power loss can do that to data that was never synced)"
                    ),
                ));
            }
            Err(error) => {
                return Some((
                    FaultKind::Missing,
                    format!("the data of inode {ino} cannot be read: {error}"),
                ));
            }
        };
        if !self.settled {
            return None;
        }
        let short = |what: String| Some((FaultKind::Short, format!("the data of inode {ino} {what}")));
        match self.data {
            DataState::Whole { size, .. }
            | DataState::Blocks { size, .. }
            | DataState::FreshBlocks { size, .. }
                if length < size =>
            {
                short(format!(
                    "has {length} of {size} bytes (a power loss can do that to data that was not synced)"
                ))
            }
            DataState::Blocks { size, limit, .. } | DataState::FreshBlocks { size, limit, .. } => {
                let beyond = self.blocks.iter().find(|block| block.saturating_mul(BLOCK) >= size);
                match beyond {
                    Some(block) => short(format!("should have block {block}, which is beyond its end")),
                    None if limit > self.base => {
                        short(format!("covers {limit} bytes of a file that has {}", self.base))
                    }
                    None => None,
                }
            }
            _ => None,
        }
    }
}

/// Reads a file to its end, to find read errors. Returns its length in bytes.
fn read_through(files: &Files, path: &Path) -> io::Result<u64> {
    let mut file = files.open(path)?;
    let metadata = file.metadata()?;
    // Sparse files are skipped: holes need no reading, and a sparse file of a terabyte must not take hours.
    if metadata.blocks() * 512 >= metadata.size() {
        io::copy(&mut file, &mut io::sink())?;
    }
    Ok(metadata.size())
}

/// Whether any subdirectory of a directory contains a file.
pub(super) fn holds_files(files: &Files, dir: &Path) -> io::Result<bool> {
    let list = |dir: &Path| match files.names(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    for sub in list(dir)? {
        if !list(&dir.join(sub))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
