//! The upper layer on disk: what changed since the head, so that nothing accepted is lost when the process
//! dies.
//!
//! - `checkpoint` is the state as of an epoch, `journal` what happened since (`scan` reads it), `data` the
//!   bytes of changed files.
//! - `record`: the items that checkpoint and journal are made of; `blocks`: which blocks of a large file the
//!   upper has.
//! - `check`: an upper as others see it, who do not serve it: what it refers to, what is wrong with it.
//!
//! [`Upper`] appends, syncs and replaces; what an item means for an inode the view knows, which is the only
//! user but for `check`. Lock order: the view's state lock, then `Upper::syncing`, `Upper::log`,
//! `Upper::removing`, `Upper::buried`.
//!
//! Two orders hold after a power loss, too. A record that makes bytes count which take the place of safe ones
//! (a copy-up) is appended when these bytes are durable, or counts only as long as the kernel runs that has
//! them: they are *fresh* until they are durable and another record says so. A data file is removed when the
//! record is durable after which nobody needs it: until then it is *buried*.

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

/// Bytes of journal after which a checkpoint is due.
pub(crate) const CHECKPOINT_AFTER: u64 = 64 << 20;

/// Bytes of records that an operation of several steps needs at most, but for an inode's extended attributes,
/// for which the reserve is large enough.
const OPERATION: u64 = 64 << 10;

/// Whether an upper whose checkpoint is not there holds changes all the same: the checkpoint is the first
/// file that is made.
fn has_changes(files: &Files, dir: &Path) -> Result<bool> {
    if is_there(files, &dir.join("journal"))? {
        return Ok(true);
    }
    let data = dir.join("data");
    check::holds_files(files, &data).at("list", &data)
}

/// Whether anything has this name.
fn is_there(files: &Files, path: &Path) -> Result<bool> {
    match files.stat(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true).at("look at", path),
    }
}

/// What an item says in this run of the kernel; `None` for nothing.
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

/// Whether the host has no room for what was tried.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOSPC | libc::EDQUOT)
}

/// An open upper.
#[derive(Debug)]
pub(crate) struct Upper {
    files: Files,
    dir: PathBuf,
    pub data: DataDir,
    /// The present run of the kernel; where it is not known, nothing is fresh.
    pub boot: Option<Boot>,
    /// Held while the journal is synced, so that who waits for it finds that another has done it.
    syncing: Mutex<()>,
    log: Mutex<Log>,
    /// Held while buried files are removed, during which others are buried.
    removing: Mutex<()>,
    buried: Mutex<Buried>,
}

/// Data files that nobody needs once the journal is durable up to their number.
#[derive(Debug, Default)]
struct Buried {
    files: Vec<(u64, Arc<DataFile>)>,
    /// Bytes that they occupy.
    bytes: u64,
    /// Somebody is about to remove them, since they are many.
    relieving: bool,
}

/// Above so many files, or bytes, the journal is synced for the sake of the buried.
const BURIED_FILES: usize = 4096;
const BURIED_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Log {
    epoch: u64,
    /// Whether the upper was opened for writing.
    write: bool,
    /// `None` when not open for writing, or when the last checkpoint could not make one.
    journal: Option<Journal>,
    /// Records appended by this process; counts on over checkpoints.
    appended: u64,
    /// How many of them are durable.
    synced: u64,
    /// A sync has failed: what it should have made durable may be lost, whatever the next one says. A
    /// checkpoint ends this.
    broken: bool,
}

/// What an upper held when it was opened.
pub(crate) struct Loaded {
    pub upper: Upper,
    pub head: HeadRef,
    /// The checkpoint's items: sizes and times in them are exact.
    pub settled: Vec<Item>,
    /// The journal's items: see [`Item::Touched`].
    pub replayed: Vec<Item>,
}

impl Upper {
    /// Opens the upper at `dir`, made new on `head` when there is none. With `write` false nothing is changed
    /// on disk, and there must be one.
    pub fn open(files: &Files, dir: &Path, head: HeadRef, write: bool) -> Result<Loaded> {
        let checkpoint_path = dir.join("checkpoint");
        let data = DataDir::new(files, dir.join("data"));
        let checkpoint = match Checkpoint::read(files, &checkpoint_path)? {
            Some(checkpoint) => checkpoint,
            None if has_changes(files, dir)? => {
                return Err(Error::Corrupt(format!(
                    "the upper at {} has changes but its checkpoint is missing: restore that file, or move the directory away to go on without them",
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
            return Err(Error::Corrupt(format!(
                "the upper at {dir} was changed while it was read; try again"
            )));
        }
        let boot = Boot::this();
        // What another process appended counts as one record that is not durable.
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
            // An upper is opened on a full disk too: there is something in it to remove.
            match upper.make_room() {
                Err(error) if is_full(&error) => {
                    tracing::warn!("{error}; nothing can be added until there is room");
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

    /// Asks for room in the journal before an operation of several steps begins, so that it does not run out
    /// of it in between: on a full disk the operation ends here, and nothing has changed.
    pub fn make_room(&self) -> Result<()> {
        self.with_log(|_, journal| journal.make_room(OPERATION))
    }

    /// Works on the journal and the count of what was appended to it.
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

    /// A new journal of the present epoch. The one that is there, if any, is of an older one and counts for
    /// nothing.
    fn begin_journal(&self, log: &mut Log) -> Result<()> {
        // Closed first, for its room is free only then.
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

    /// Makes appended records durable. Nobody but who asked for it waits for the disk, and who asks together
    /// waits once.
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
                // Unless a checkpoint has begun another journal meanwhile.
                if let Some(journal) = log.journal.as_mut().filter(|j| Arc::ptr_eq(j.file(), &file)) {
                    journal.synced(last);
                }
            }
            // A checkpoint may have come meanwhile: then all is durable.
            Err(_) if log.synced >= appended => {}
            Err(error) => {
                log.broken = true;
                return Err(Error::host("sync journal", &self.dir.join("journal"), error));
            }
        }
        Ok(())
    }

    /// Whether a sync of the journal has failed, so that only a checkpoint makes things durable.
    pub fn is_broken(&self) -> bool {
        self.log.lock().broken
    }

    /// Data files that the records appended so far leave to nobody: removed when these are durable. The
    /// caller holds the state lock.
    pub fn bury(&self, files: impl IntoIterator<Item = Arc<DataFile>>) {
        let appended = self.log.lock().appended;
        let mut buried = self.buried.lock();
        for file in files {
            buried.bytes += self.data.occupied(&file);
            buried.files.push((appended, file));
        }
    }

    /// Whether the buried are many and nobody has been told so: who is calls [`Upper::relieve`], where nobody
    /// waits for it.
    pub fn wants_relief(&self) -> bool {
        let mut buried = self.buried.lock();
        let many = buried.files.len() > BURIED_FILES || buried.bytes > BURIED_BYTES;
        many && !std::mem::replace(&mut buried.relieving, true)
    }

    /// Makes the journal durable and removes the buried. Called with no lock held.
    pub fn relieve(&self) {
        self.reclaim();
        self.buried.lock().relieving = false;
    }

    /// Makes the journal durable and removes the buried; whether there were any.
    pub fn reclaim(&self) -> bool {
        if self.buried.lock().files.is_empty() {
            // Whoever is removing the last ones gives room, too.
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
        // Held throughout: once a checkpoint is through, their names may be given again.
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

    /// Makes everything durable that was ever written to the upper's file system; false, and nothing is done,
    /// where that takes a sync of each file.
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

    /// Whether the journal has grown so far that a checkpoint pays.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.lock().journal.as_ref().is_some_and(|j| j.len() > CHECKPOINT_AFTER)
    }

    /// Replaces checkpoint and journal by `items` on `head`. The caller holds the state lock: no append in
    /// between. When the checkpoint is in place but no new journal can be made, that is no error, since what
    /// was to happen has happened: the next append tries again, and fails if it cannot.
    pub fn checkpoint(&self, head: HeadRef, items: Vec<Item>) -> Result<()> {
        let mut log = self.log.lock();
        let epoch = log.epoch + 1;
        let checkpoint = Checkpoint { epoch, head, items };
        let mut written = self.write_checkpoint(&checkpoint);
        if let (Err(error), Some(journal)) = (&written, &mut log.journal)
            && is_full(error)
        {
            // The journal's reserve is room for what ends the journal.
            journal.release_room()?;
            written = self.write_checkpoint(&checkpoint);
            if written.is_err()
                && let Err(error) = journal.make_room(0)
            {
                tracing::warn!("{error}; removing files may need room until there is some");
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

    /// Puts a checkpoint in its place; whether it is durable there. An error after it has come there is none:
    /// it counts from then on, and a journal that is continued beside it would be lost.
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
                "{error}, and again: {again}; until a checkpoint succeeds, a power loss may undo the last one"
            );
        }
        Ok(again.is_ok())
    }

    /// Removes data files that nobody needs since the last checkpoint. The caller holds the state lock, or
    /// knows that they stay nobody's.
    pub fn discard(&self, files: impl IntoIterator<Item = Arc<DataFile>>) {
        if self.is_broken() {
            // The checkpoint before this one may come back, and needs them.
            return self.bury(files);
        }
        files.into_iter().for_each(|file| self.data.remove(&file));
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
