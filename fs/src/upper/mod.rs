//! The upper layer on disk: what changed since the head, so that nothing accepted is lost when the process dies.
//!
//! `checkpoint` is the state as of an epoch, `journal` what happened since, `data/` the bytes of changed files.
//! Lock order: the view's state lock, then `Upper::journal`.

pub(crate) mod blocks;
pub(crate) mod checkpoint;
pub(crate) mod data;
pub(crate) mod journal;
pub(crate) mod record;

use std::fs::File;
use std::path::{Path, PathBuf};

use karapace_store::atomic::fsync_dir;
use karapace_store::fail;
use parking_lot::Mutex;

use crate::attr::HeadRef;
use crate::error::{Error, Result};
use crate::upper::checkpoint::Checkpoint;
use crate::upper::data::DataDir;
use crate::upper::journal::Journal;
use crate::upper::record::Item;

/// Bytes of journal after which a checkpoint is due.
pub(crate) const CHECKPOINT_AFTER: u64 = 64 << 20;

/// An open upper.
#[derive(Debug)]
pub(crate) struct Upper {
    dir: PathBuf,
    pub data: DataDir,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    epoch: u64,
    /// Whether the upper was opened for writing.
    write: bool,
    /// `None` when not open for writing, or when the last checkpoint could not make one.
    journal: Option<Journal>,
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
    /// Opens the upper at `dir`, made new on `head` when there is none. With `write` false nothing is changed on disk,
    /// and there must be one.
    pub fn open(dir: &Path, head: HeadRef, write: bool) -> Result<Loaded> {
        let checkpoint_path = dir.join("checkpoint");
        let data = DataDir::new(dir.join("data"));
        let checkpoint = match Checkpoint::read(&checkpoint_path)? {
            Some(checkpoint) => checkpoint,
            None => {
                let fresh = Checkpoint { epoch: 1, head, items: Vec::new() };
                if write {
                    std::fs::create_dir_all(dir).map_err(|e| Error::host("create directory", dir, e))?;
                    data.create()?;
                    for made in [&dir.join("data"), dir].into_iter().chain(dir.parent()) {
                        fsync_dir(made)?;
                    }
                    fresh.write(&checkpoint_path)?;
                }
                fresh
            }
        };
        let journal_path = dir.join("journal");
        let (journal, replayed) = match Journal::load(&journal_path, checkpoint.epoch, write)? {
            Some((journal, items)) => (write.then_some(journal), items),
            None if write => (Some(Journal::create(&journal_path, checkpoint.epoch)?), Vec::new()),
            None => (None, Vec::new()),
        };
        let log = Mutex::new(Log { epoch: checkpoint.epoch, write, journal });
        Ok(Loaded {
            upper: Upper { dir: dir.to_owned(), data, log },
            head: checkpoint.head,
            settled: checkpoint.items,
            replayed,
        })
    }

    /// Appends one operation's items.
    pub fn append(&self, items: &[Item]) -> Result<()> {
        let mut log = self.log.lock();
        if log.journal.is_none() {
            if !log.write {
                return Err(Error::ReadOnly);
            }
            log.journal = Some(Journal::create(&self.dir.join("journal"), log.epoch)?);
        }
        match &mut log.journal {
            Some(journal) => journal.append(items),
            None => Err(Error::ReadOnly),
        }
    }

    /// Makes appended records durable.
    pub fn sync(&self) -> Result<()> {
        match &mut self.log.lock().journal {
            Some(journal) => journal.sync(),
            None => Ok(()),
        }
    }

    /// Makes everything durable that was ever written to the upper's file system.
    pub fn sync_all_data(&self) -> Result<()> {
        let dir = File::open(&self.dir).map_err(|e| Error::host("open", &self.dir, e))?;
        nix::unistd::syncfs(&dir).map_err(|e| Error::host("sync the file system of", &self.dir, e.into()))
    }

    /// Whether the journal has grown so far that a checkpoint pays.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.lock().journal.as_ref().is_some_and(|j| j.len() > CHECKPOINT_AFTER)
    }

    /// Replaces checkpoint and journal by `items` on `head`. The caller holds the state lock: no append in between.
    /// When the checkpoint is in place but no new journal can be made, that is no error, since what was to happen has
    /// happened: the next append tries again, and fails if it cannot.
    pub fn checkpoint(&self, head: HeadRef, items: Vec<Item>) -> Result<()> {
        let mut log = self.log.lock();
        let epoch = log.epoch + 1;
        fail::point("checkpoint.write")?;
        Checkpoint { epoch, head, items }.write(&self.dir.join("checkpoint"))?;
        // From here on the old journal does not count.
        log.epoch = epoch;
        let created = fail::point("checkpoint.journal").map_err(Error::from);
        log.journal = match created.and_then(|()| Journal::create(&self.dir.join("journal"), epoch)) {
            Ok(journal) => Some(journal),
            Err(error) => {
                tracing::warn!("{error}; the next change tries again");
                None
            }
        };
        Ok(())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
