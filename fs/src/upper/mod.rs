//! The upper layer on disk: what changed since the head, so that no completed operation is lost when the
//! process dies.
//!
//! - `checkpoint` is the state at the start of an epoch, `journal` what happened since (`scan` reads it),
//!   `data` the bytes of changed files.
//! - `record`: the items that checkpoint and journal are made of; `blocks`: which blocks of a large file are
//!   in the upper.
//! - `check`: reads an upper from outside the process that serves it: what it refers to, and what is wrong
//!   with it.
//!
//! [`Upper`] appends, syncs and replaces records. The view, its only user besides `check`, knows what an item
//! means for an inode. Lock order: the view's state lock, then `Upper::syncing`, `Upper::log`,
//! `Upper::removing`, `Upper::buried`.
//!
//! Two orderings hold even after a power loss. A record that makes bytes count in place of safe ones (a
//! copy-up) is appended only once those bytes are durable; or it counts only during the current kernel boot,
//! and the bytes are *fresh* until they are durable and another record says so. A data file is removed only
//! once the record that makes it unneeded is durable; until then it is *buried*.

pub(crate) mod blocks;
pub(crate) mod boot;
pub mod check;
pub(crate) mod checkpoint;
pub(crate) mod data;
pub mod fuzzing;
pub(crate) mod journal;
pub(crate) mod record;
pub(crate) mod scan;
#[cfg(all(test, feature = "failpoints"))]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karapace_store::atomic;
use karapace_store::durability::{Barrier, FileSystem};
use karapace_store::fail;
use karapace_store::files::Files;
use parking_lot::Mutex;

use crate::attr::HeadRef;
use crate::error::At as _;
use crate::error::{Error, Result};
use crate::upper::boot::Boot;
use crate::upper::checkpoint::Checkpoint;
use crate::upper::data::{DataDir, DataFile};
use crate::upper::journal::{Journal, Room};
use crate::upper::record::{DataState, Item};

/// Journal size in bytes above which a checkpoint is due.
pub(crate) const CHECKPOINT_AFTER: u64 = 64 << 20;

/// Most bytes of records that a multi-step operation needs, not counting an inode's extended attributes, for
/// which the reserve is large enough.
const OPERATION: u64 = 64 << 10;

/// Whether an upper without a checkpoint holds changes anyway. The checkpoint is the first file that is
/// created.
fn has_changes(files: &Files, dir: &Path) -> Result<bool> {
    if is_there(files, &dir.join("journal"))? {
        return Ok(true);
    }
    let data = dir.join("data");
    check::holds_files(files, &data).at("list", &data)
}

/// Whether anything exists at `path`.
fn is_there(files: &Files, path: &Path) -> Result<bool> {
    match files.stat(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true).at("look at", path),
    }
}

/// What an item means in the current boot; `None` if nothing.
fn as_of(boot: Option<Boot>, item: Item) -> Option<Item> {
    match item {
        Item::Fresh { boot: then, .. } => (Some(then) == boot).then_some(item),
        Item::Put(mut put) => {
            if let DataState::FreshBlocks { boot: then, .. } = put.data
                && Some(then) != boot
            {
                put.data = DataState::None;
            }
            Some(Item::Put(put))
        }
        Item::Attr(_)
        | Item::Xattr { .. }
        | Item::Place { .. }
        | Item::Name { .. }
        | Item::Blocks { .. }
        | Item::Cut { .. }
        | Item::Touched { .. }
        | Item::Gone { .. }
        | Item::Next { .. } => Some(item),
    }
}

/// Whether the error means that the host is out of space or quota.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT)
}

/// An open upper.
#[derive(Debug)]
pub(crate) struct Upper {
    files: Files,
    dir: PathBuf,
    pub data: DataDir,
    /// The current boot. If it is unknown, no block can be fresh.
    pub boot: Option<Boot>,
    /// Held while the journal is synced, so that waiting threads find the work already done.
    syncing: Mutex<()>,
    log: Mutex<Log>,
    /// Held while buried files are removed; others can be buried meanwhile.
    removing: Mutex<()>,
    buried: Mutex<Buried>,
}

/// Data files that are no longer needed once the journal is durable up to their number.
#[derive(Debug, Default)]
struct Buried {
    files: Vec<(u64, Arc<DataFile>)>,
    /// Bytes that they occupy.
    bytes: u64,
    /// Set while a caller is about to remove them because there are many.
    relieving: bool,
}

/// Above this many files, or bytes, the journal is synced only to remove buried files.
const BURIED_FILES: usize = 4096;
const BURIED_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Log {
    epoch: u64,
    /// Whether the upper is open for writing.
    write: bool,
    /// `None` if the upper is not open for writing, or the last checkpoint could not create a journal.
    journal: Option<Journal>,
    /// Records appended by this process; not reset by checkpoints.
    appended: u64,
    /// How many of them are durable.
    synced: u64,
    /// A sync has failed, so data it covered may be lost even if the next sync succeeds. A checkpoint clears
    /// this.
    broken: bool,
}

/// Contents of an upper when it was opened.
pub(crate) struct Loaded {
    pub upper: Upper,
    pub head: HeadRef,
    /// The checkpoint's items; sizes and times in them are exact.
    pub settled: Vec<Item>,
    /// The journal's items; sizes and times may be outdated (see [`Item::Touched`]).
    pub replayed: Vec<Item>,
}

impl Upper {
    /// Opens the upper at `dir`; with `write`, creates it on `head` if it does not exist. Without `write`,
    /// nothing on disk is changed, and a missing upper is read as an empty one.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a file is damaged, the checkpoint is missing beside changes, or (without
    /// `write`) the upper changed while it was read.
    pub fn open(files: &Files, dir: &Path, head: HeadRef, write: bool) -> Result<Loaded> {
        let checkpoint_path = dir.join("checkpoint");
        let data = DataDir::new(files, dir.join("data"));
        let checkpoint = match Checkpoint::read(files, &checkpoint_path)? {
            Some(checkpoint) => checkpoint,
            None if has_changes(files, dir)? => {
                return Err(Error::Corrupt(format!(
                    "the upper at {} has changes, but its checkpoint is missing: restore that file, or move the directory away \
                     to continue without the changes",
                    dir.display()
                )));
            }
            None => {
                let fresh = Checkpoint { epoch: 1, head, items: Vec::new() };
                if write {
                    files.make_dirs(dir).at("create directory", dir)?;
                    data.create()?;
                    for made in [&dir.join("data"), dir].into_iter().chain(dir.parent()) {
                        files.sync_dir(made)?;
                    }
                    fresh.write(files, &checkpoint_path)?;
                }
                fresh
            }
        };
        if write {
            atomic::sweep_temporary(files, dir)?;
        }
        let journal_path = dir.join("journal");
        let epoch = checkpoint.epoch;
        let (journal, replayed) = match Journal::load(files, &journal_path, epoch, write)? {
            Some((journal, items)) => (write.then_some(journal), items),
            None => (None, Vec::new()),
        };
        if !write && Checkpoint::read(files, &checkpoint_path)?.is_some_and(|c| c.epoch != epoch) {
            let dir = dir.display();
            return Err(Error::Corrupt(format!("the upper at {dir} changed while it was read; try again")));
        }
        let boot = Boot::this();
        // Records appended by an earlier process count as one record that is not durable.
        let log = Log { epoch, write, journal, appended: 1, synced: 0, broken: false };
        let upper = Upper {
            files: files.clone(),
            dir: dir.to_owned(),
            data,
            boot,
            syncing: Mutex::default(),
            log: Mutex::new(log),
            removing: Mutex::default(),
            buried: Mutex::default(),
        };
        if write {
            // Opening must work on a full disk too: the user may want to remove files.
            match upper.make_room() {
                Err(error) if is_full(&error) => {
                    tracing::warn!("{error}; nothing can be added until there is space");
                }
                other => other?,
            }
        }
        let items = |items: Vec<Item>| items.into_iter().filter_map(|item| as_of(boot, item)).collect();
        Ok(Loaded {
            upper,
            head: checkpoint.head,
            settled: items(checkpoint.items),
            replayed: items(replayed),
        })
    }

    /// Appends one operation's items.
    pub fn append(&self, items: &[Item], room: Room) -> Result<()> {
        self.with_log(|appended, journal| {
            journal.append(items, room)?;
            *appended += 1;
            Ok(())
        })
    }

    /// Reserves journal space before a multi-step operation, so that it cannot run out midway. On a full disk
    /// this fails and nothing has changed.
    pub fn make_room(&self) -> Result<()> {
        self.with_log(|_, journal| journal.make_room(OPERATION))
    }

    /// Runs `work` on the journal and the count of appended records. Creates the journal if needed, and
    /// retries once after reclaiming space.
    fn with_log(&self, work: impl Fn(&mut u64, &mut Journal) -> Result<()>) -> Result<()> {
        let attempt = || {
            let mut log = self.log.lock();
            if log.journal.is_none() {
                if !log.write {
                    return Err(Error::ReadOnly);
                }
                self.begin_journal(&mut log)?;
            }
            let Log { journal, appended, .. } = &mut *log;
            match journal {
                Some(journal) => work(appended, journal),
                None => Err(Error::ReadOnly),
            }
        };
        match attempt() {
            Err(error) if is_full(&error) && self.reclaim() => attempt(),
            other => other,
        }
    }

    /// Starts a new journal for the current epoch. An existing journal is from an older epoch and does not
    /// count.
    fn begin_journal(&self, log: &mut Log) -> Result<()> {
        // Close it first: its space is freed only then.
        log.journal = None;
        let path = self.dir.join("journal");
        let mut journal = Journal::create(&self.files, &path, log.epoch).or_else(|error| {
            if !is_full(&error) {
                return Err(error);
            }
            match self.files.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::host("remove", &path, e)),
                _ => Journal::create(&self.files, &path, log.epoch),
            }
        })?;
        if let Err(error) = journal.make_room(0) {
            tracing::warn!("{error}; the next change tries again");
        }
        log.journal = Some(journal);
        Ok(())
    }

    /// Makes appended records durable. Only callers wait for the disk, and concurrent callers share one sync.
    pub fn sync(&self) -> Result<()> {
        let wanted = self.log.lock().appended;
        let _turn = self.syncing.lock();
        let (file, appended, last) = {
            let log = self.log.lock();
            if log.broken {
                let path = self.dir.join("journal");
                return Err(Error::host("sync journal", &path, io::Error::from_raw_os_error(libc::EIO)));
            }
            match &log.journal {
                Some(journal) if log.synced < wanted => {
                    (journal.file().clone(), log.appended, journal.last())
                }
                _ => return Ok(()),
            }
        };
        let synced = fail::point("journal.sync").and_then(|()| file.sync_data());
        let mut log = self.log.lock();
        match synced {
            Ok(()) => {
                log.synced = log.synced.max(appended);
                // Unless a checkpoint has started another journal meanwhile.
                if let Some(journal) = log.journal.as_mut().filter(|j| Arc::ptr_eq(j.file(), &file)) {
                    journal.synced(last);
                }
            }
            // If a checkpoint has been written meanwhile, everything is durable.
            Err(_) if log.synced >= appended => {}
            Err(error) => {
                log.broken = true;
                return Err(Error::host("sync journal", &self.dir.join("journal"), error));
            }
        }
        Ok(())
    }

    /// Whether a journal sync has failed, so that only a checkpoint can make data durable.
    pub fn is_broken(&self) -> bool {
        self.log.lock().broken
    }

    /// Queues data files that the records appended so far make unneeded. They are removed once those records
    /// are durable. The caller holds the state lock.
    pub fn bury(&self, files: impl IntoIterator<Item = Arc<DataFile>>) {
        let appended = self.log.lock().appended;
        let mut buried = self.buried.lock();
        for file in files {
            buried.bytes += self.data.occupied(&file);
            buried.files.push((appended, file));
        }
    }

    /// Whether there are many buried files. Returns true to one caller only, which must then call
    /// [`Upper::relieve`] from a thread on which no request waits.
    pub fn wants_relief(&self) -> bool {
        let mut buried = self.buried.lock();
        let many = buried.files.len() > BURIED_FILES || buried.bytes > BURIED_BYTES;
        many && !std::mem::replace(&mut buried.relieving, true)
    }

    /// Syncs the journal and removes buried files. Call it with no lock held.
    pub fn relieve(&self) {
        self.reclaim();
        self.buried.lock().relieving = false;
    }

    /// Syncs the journal and removes buried files. Returns whether any space was freed.
    pub fn reclaim(&self) -> bool {
        if self.buried.lock().files.is_empty() {
            // A removal in progress on another thread frees space too; wait for it.
            let under_way = self.removing.try_lock().is_none();
            if under_way {
                drop(self.removing.lock());
            }
            return under_way;
        }
        if let Err(error) = self.sync() {
            tracing::warn!("{error}; the data of removed files stays for now");
            return false;
        }
        let synced = self.log.lock().synced;
        self.remove_buried(synced)
    }

    fn remove_buried(&self, synced: u64) -> bool {
        // Held throughout: after a checkpoint the files' names may be reused.
        let _turn = self.removing.lock();
        let safe = {
            let mut buried = self.buried.lock();
            let files = std::mem::take(&mut buried.files);
            let (safe, early): (Vec<_>, Vec<_>) =
                files.into_iter().partition(|(number, _)| *number <= synced);
            buried.bytes = early.iter().map(|(_, file)| self.data.occupied(file)).sum();
            buried.files = early;
            safe
        };
        safe.iter().for_each(|(_, file)| self.data.remove(file));
        !safe.is_empty()
    }

    /// Makes everything ever written to the upper's file system durable with one sync. Returns false without
    /// doing anything if this file system needs a sync of each file.
    pub fn sync_all_data(&self) -> Result<bool> {
        let dir = self.files.open_dir(&self.dir).at("open", &self.dir)?;
        let found = FileSystem::of(&dir);
        let found = found.at("look at the file system of", &self.dir)?;
        if found.barrier != Barrier::Whole {
            return Ok(false);
        }
        let synced = nix::unistd::syncfs(&dir);
        synced.at("sync the file system of", &self.dir).map(|()| true)
    }

    /// Whether the journal has grown enough for a checkpoint to pay off.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.lock().journal.as_ref().is_some_and(|j| j.len() > CHECKPOINT_AFTER)
    }

    /// Replaces checkpoint and journal by `items` on `head`. The caller holds the state lock, so nothing is
    /// appended meanwhile. If the checkpoint is in place but no new journal can be created, that is not an
    /// error, because the checkpoint has taken effect: the next append tries again, and fails if it cannot.
    pub fn checkpoint(&self, head: HeadRef, items: Vec<Item>) -> Result<()> {
        let mut log = self.log.lock();
        let epoch = log.epoch + 1;
        let checkpoint = Checkpoint { epoch, head, items };
        let mut written = self.write_checkpoint(&checkpoint);
        if let (Err(error), Some(journal)) = (&written, &mut log.journal)
            && is_full(error)
        {
            // Use the space reserved in the journal, which this checkpoint replaces.
            journal.release_room()?;
            written = self.write_checkpoint(&checkpoint);
            if written.is_err()
                && let Err(error) = journal.make_room(0)
            {
                tracing::warn!("{error}; until there is space, removing files may fail");
            }
        }
        let is_durable = written?;
        // From here on the old journal does not count.
        log.epoch = epoch;
        log.broken = !is_durable;
        if is_durable {
            log.synced = log.appended;
            self.remove_buried(log.appended);
        }
        let begun = fail::point("checkpoint.journal").map_err(Error::from);
        if let Err(error) = begun.and_then(|()| self.begin_journal(&mut log)) {
            log.journal = None;
            tracing::warn!("{error}; the next change tries again");
        }
        Ok(())
    }

    /// Puts a checkpoint in place and returns whether it is durable. An error after it is in place is not
    /// reported as one: the new checkpoint counts from then on, and records appended to the old journal would
    /// be lost.
    fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<bool> {
        fail::point("checkpoint.write")?;
        let path = self.dir.join("checkpoint");
        let Err(error) = checkpoint.write(&self.files, &path) else { return Ok(true) };
        if Checkpoint::epoch_at(&self.files, &path) != Some(checkpoint.epoch) {
            return Err(error);
        }
        let again = self.files.sync_dir(&self.dir);
        if let Err(again) = &again {
            tracing::error!(
                "{error}, and a second attempt failed: {again}; until a checkpoint succeeds, a power loss may undo the last one"
            );
        }
        Ok(again.is_ok())
    }

    /// Removes data files that are unneeded since the last checkpoint. The caller holds the state lock, or
    /// knows that nothing will refer to them again.
    pub fn discard(&self, files: impl IntoIterator<Item = Arc<DataFile>>) {
        if self.is_broken() {
            // The previous checkpoint may reappear after a crash, and needs them.
            return self.bury(files);
        }
        files.into_iter().for_each(|file| self.data.remove(&file));
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
