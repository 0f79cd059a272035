//! Looking at an upper without opening it: what it refers to, and whether its files are what they should be.
//!
//! Nothing is changed and no lock is taken, so it works beside the process that serves the environment, under
//! which the upper changes. Checkpoint and journal are read as one moment left them: the journal only grows,
//! and where the epochs of the two do not fit they are read again. A data file may come or go between the
//! reading of the records and the look at it, so what looks wrong counts only when it still does after the
//! records were read anew.

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

/// How often checkpoint and journal are read when a mount has just replaced the one and begun the other.
const READINGS: u32 = 8;

/// How often a data file is looked at that seems to be wrong, and how long is waited in between.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// What is wrong with a data file, or worth knowing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// It is not there, or cannot be read: what was written to the file is lost. A power loss does this to a
    /// file that was never synced, and then nothing was promised.
    Missing,
    /// It is shorter than the records say, or they speak of blocks that it cannot have. After a power loss
    /// that is what was not synced.
    Short,
    /// No record names it: left over from a crash; the next mount removes it.
    Leftover,
}

/// A data file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpperFault {
    /// What it is.
    pub kind: FaultKind,
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What a look at an upper found.
#[derive(Debug, Default)]
pub struct UpperCheck {
    /// What it refers to in the store.
    pub roots: UpperRoots,
    /// Data files that are not as they should be.
    pub faults: Vec<UpperFault>,
}

/// What the upper at `upper` on disk refers to; empty when there is none.
///
/// # Errors
/// [`Error::Corrupt`] when any of its records cannot be read.
pub fn roots(files: &Files, upper: &Path) -> Result<UpperRoots> {
    Ok(read(files, upper)?.map_or_else(UpperRoots::default, roots_of))
}

/// Checks the upper at `upper` on disk, reading every data file; `served` says whether a process has it open.
///
/// # Errors
/// [`Error::Corrupt`] when checkpoint or journal cannot be read: then nothing is known of the data files.
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

/// Where the sound records of the journal of the upper at `upper` end, in bytes, when it has a damaged record
/// behind them that was durable; `None` when it has not.
pub fn journal_damage(files: &Files, upper: &Path) -> Result<Option<u64>> {
    match Checkpoint::read(files, &upper.join("checkpoint"))? {
        Some(checkpoint) => journal::damage(files, &upper.join("journal"), checkpoint.epoch),
        None => Ok(None),
    }
}

/// Whether these are the bytes of a checkpoint that was written so.
pub fn is_sound_checkpoint(bytes: &[u8]) -> bool {
    Checkpoint::decode(bytes, Path::new("checkpoint")).is_ok()
}

/// Checkpoint and journal as of one moment; `None` when there is no upper.
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
            // A mount may have replaced the checkpoint and begun a new journal between the reading of the
            // two.
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
            // These name no object.
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

/// What the records say of one inode's data.
struct Row {
    data: DataState,
    nlink: u32,
    /// The size of the file in the store that blocks lie over.
    base: u64,
    blocks: BlockSet,
    /// The size in `data` is what the data file has at the least: nothing was written since the checkpoint.
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
                // Blocks stay known over a put that keeps the file one of blocks.
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

    /// Looks at every data file that the records name; with `leftovers` also for those that none names.
    fn check(&self, data: &DataDir, leftovers: bool) -> Result<Vec<UpperFault>> {
        let mut faults = Vec::new();
        for (ino, row) in &self.rows {
            let Some(generation) = row.data.generation() else { continue };
            // Of a removed file that is open nothing is kept; and where one is lost that is fresh, the base
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
    /// What is wrong with the data file.
    fn fault(&self, ino: Ino, files: &Files, file: &Path) -> Option<(FaultKind, String)> {
        let length = match read_through(files, file) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Some((
                    FaultKind::Missing,
                    format!(
                        "the data of inode {ino} is not there (a power loss does that to what was never synced)"
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
                short(format!("has {length} bytes of {size} (a power loss does that to what was not synced)"))
            }
            DataState::Blocks { size, limit, .. } | DataState::FreshBlocks { size, limit, .. } => {
                let beyond = self.blocks.iter().find(|block| block.saturating_mul(BLOCK) >= size);
                match beyond {
                    Some(block) => short(format!("should have block {block}, which lies behind its end")),
                    None if limit > self.base => {
                        short(format!("lies over {limit} bytes of a file that has {}", self.base))
                    }
                    None => None,
                }
            }
            _ => None,
        }
    }
}

/// Reads a file to its end, for the host to say whether it can; gives its length.
fn read_through(files: &Files, path: &Path) -> io::Result<u64> {
    let mut file = files.open(path)?;
    let metadata = file.metadata()?;
    // What is one hole needs no reading, and a sparse file of a terabyte must not take hours.
    if metadata.blocks() * 512 >= metadata.size() {
        io::copy(&mut file, &mut io::sink())?;
    }
    Ok(metadata.size())
}

/// Whether a directory holds any file below its subdirectories, one level down.
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
