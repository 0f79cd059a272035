//! The journal: one record is appended per operation, so that a killed process loses nothing.
//!
//! Format, little endian. Header: magic `KAJ2`, epoch u64. Record: length u32 of the payload, crc32 u32 of
//! everything that follows, sequence u64 (from 1, without gaps), durable u64 (records up to this number were
//! durable when this one was written), payload (items, see `record`). The journal applies to the checkpoint
//! of the same epoch; the content of an older journal is already in the checkpoint. Replay stops at the first
//! torn record: short, with a wrong checksum or out of sequence. If that record was durable, this is damage
//! and an error (see `scan`). `KAJ1` journals, whose records have no `durable` field, can still be read and
//! appended to.
//!
//! Space is allocated on the host beyond the end of the file. So even on a full disk, operations that free
//! space, and records of what has already happened, can be written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karapace_store::fail;
use karapace_store::files::Files;
use karapace_store::files::TEMP_PREFIX;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::error::At as _;
use crate::error::{Error, Result};
use crate::upper::record::{Item, encode_all};
use crate::upper::scan::{Form, MAX_RECORD, Scan, Tail, scan};

const MAGIC: &[u8; 4] = b"KAJ2";
const PLAIN_MAGIC: &[u8; 4] = b"KAJ1";
const HEADER: u64 = 12;
/// Bytes reserved behind the records for [`Room::Reserved`]: enough for some thousand file removals.
const RESERVE: u64 = 1 << 20;
/// Granularity in bytes in which space is requested from the host.
const STEP: u64 = 256 << 10;

/// Which journal space an operation may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Only space beyond the reserve; on a full disk there is none.
    Ordinary,
    /// Also the reserve: for an operation that frees space, or has reserved some before it began
    /// ([`Journal::make_room`]).
    Reserved,
}

/// An open journal, positioned at its end.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Arc<File>,
    form: Form,
    /// Length of the valid records in bytes, including the header.
    end: u64,
    next_sequence: u64,
    /// Number of the last record known to be durable.
    durable: u64,
    /// The host has allocated the file up to this offset; `None` if the host does not support that.
    allocated: Option<u64>,
    buffer: Vec<u8>,
}

impl Journal {
    /// Creates a durable, empty journal for this epoch, replacing the one at `path`.
    pub fn create(files: &Files, path: &Path, epoch: u64) -> Result<Journal> {
        let temp = path.with_file_name(format!("{TEMP_PREFIX}journal"));
        let write = || -> io::Result<File> {
            fail::point("journal.create")?;
            let mut file = files.replace(&temp)?;
            file.write_all(MAGIC)?;
            file.write_all(&epoch.to_le_bytes())?;
            file.sync_all()?;
            files.rename(&temp, path)?;
            if let Some(dir) = path.parent() {
                files.sync_name(dir, &file)?;
            }
            Ok(file)
        };
        let file = write().at("create journal", path)?;
        Ok(Journal {
            path: path.to_owned(),
            file: Arc::new(file),
            form: Form::Stamped,
            end: HEADER,
            next_sequence: 1,
            durable: 0,
            allocated: Some(0),
            buffer: Vec::new(),
        })
    }

    /// Reads the journal at `path`. Returns its items if it is of this epoch, `None` if it is older or
    /// missing. With `write`, truncates a torn end.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a durable record is damaged; nothing is changed then.
    pub fn load(files: &Files, path: &Path, epoch: u64, write: bool) -> Result<Option<(Journal, Vec<Item>)>> {
        let host = |e| Error::host("read journal", path, e);
        let opened = if write { files.open_to_change(path) } else { files.open(path) };
        let mut file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(host(e)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(host)?;
        let Some((form, found)) = inspect(&bytes, path, epoch)? else { return Ok(None) };
        let end = HEADER + found.sound;
        match found.tail {
            Tail::Clean => {}
            Tail::Torn => {
                tracing::warn!(
                    "journal {}: {} bytes after the last complete record are dropped (an operation that had not returned)",
                    path.display(),
                    bytes.len() as u64 - end
                );
                if write {
                    file.set_len(end).map_err(host)?;
                }
            }
            Tail::Damaged { behind } => return Err(damaged(path, &found, behind)),
        }
        let journal = Journal {
            path: path.to_owned(),
            file: Arc::new(file),
            form,
            end,
            next_sequence: found.next_sequence,
            durable: found.durable,
            allocated: Some(0),
            buffer: Vec::new(),
        };
        Ok(Some((journal, found.items)))
    }

    /// Makes sure that the reserve is complete behind another `bytes` bytes of records.
    ///
    /// # Errors
    /// If the host is out of space; nothing has changed then.
    pub fn make_room(&mut self, bytes: u64) -> Result<()> {
        let wanted = self.end + bytes + RESERVE;
        if self.allocated.is_none_or(|allocated| wanted <= allocated) {
            return Ok(());
        }
        let allocate = |to: u64| {
            let range = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
            loop {
                let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
                match fallocate(&*self.file, flags, range(self.end)?, range(to - self.end)?) {
                    Err(Errno::EINTR) => {}
                    done => return done.map(|()| to),
                }
            }
        };
        fail::point("journal.room").at("make room in journal", &self.path)?;
        self.allocated = match allocate(wanted + STEP).or_else(|_| allocate(wanted)) {
            Ok(to) => Some(to),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => None,
            Err(e) => return Err(Error::host("make room in journal", &self.path, e.into())),
        };
        Ok(())
    }

    /// Returns the reserved space to the host.
    pub fn release_room(&mut self) -> Result<()> {
        self.allocated = Some(0);
        self.file.set_len(self.end).at("truncate journal", &self.path)
    }

    /// Appends one record. After an error the record does not count, and the next append overwrites it.
    pub fn append(&mut self, items: &[Item], room: Room) -> Result<()> {
        self.buffer.clear();
        self.buffer.resize(self.form.header(), 0);
        encode_all(items, &mut self.buffer);
        let payload = self.buffer.len() - self.form.header();
        let length = u32::try_from(payload).ok().filter(|n| *n <= MAX_RECORD).ok_or(Error::TooBig)?;
        self.buffer[8..16].copy_from_slice(&self.next_sequence.to_le_bytes());
        if self.form == Form::Stamped {
            self.buffer[16..24].copy_from_slice(&self.durable.to_le_bytes());
        }
        let crc = crc32fast::hash(&self.buffer[8..]);
        self.buffer[0..4].copy_from_slice(&length.to_le_bytes());
        self.buffer[4..8].copy_from_slice(&crc.to_le_bytes());
        if room == Room::Ordinary {
            self.make_room(self.buffer.len() as u64)?;
        }
        fail::point("journal.append")
            .and_then(|()| self.file.write_all_at(&self.buffer, self.end))
            .at("write journal", &self.path)?;
        self.end += self.buffer.len() as u64;
        self.next_sequence += 1;
        fail::passed("journal.appended");
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// The file, for syncing.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Number of the last record.
    pub fn last(&self) -> u64 {
        self.next_sequence - 1
    }

    /// Notes that the journal was synced after the record with this number was appended.
    pub fn synced(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
    }

    /// Bytes of records, without the header.
    pub fn len(&self) -> u64 {
        self.end - HEADER
    }
}

/// Parses a journal's bytes; `None` if the journal is older than `epoch` and so does not count.
///
/// # Errors
/// If the format is unknown, or the journal is newer than `epoch`.
pub(crate) fn inspect(bytes: &[u8], path: &Path, epoch: u64) -> Result<Option<(Form, Scan)>> {
    let corrupt = |why: String| Error::Corrupt(format!("journal {}: {why}", path.display()));
    let Some((head, records)) = bytes.split_at_checked(HEADER as usize) else {
        return Err(corrupt("no header".to_owned()));
    };
    let form = match &head[..4] {
        magic if magic == MAGIC => Form::Stamped,
        magic if magic == PLAIN_MAGIC => Form::Plain,
        _ => return Err(corrupt("unknown format; a newer karapace may have written it".to_owned())),
    };
    let found = u64::from_le_bytes(head[4..12].try_into().unwrap_or_default());
    if found < epoch {
        return Ok(None);
    }
    if found > epoch {
        return Err(corrupt(format!("epoch {found} is newer than the checkpoint's {epoch}")));
    }
    scan(records, form).map(|scan| Some((form, scan)))
}

/// The file offset at which the intact records before a damaged one end; `None` if no durable record is
/// damaged.
pub(crate) fn damage(files: &Files, path: &Path, epoch: u64) -> Result<Option<u64>> {
    let bytes = match files.read(path, u64::MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.at("read journal", path)?,
    };
    let found = inspect(&bytes, path, epoch)?;
    Ok(found.and_then(|(_, found)| match found.tail {
        Tail::Damaged { .. } => Some(HEADER + found.sound),
        Tail::Clean | Tail::Torn => None,
    }))
}

/// The error for a journal with a damaged record.
fn damaged(path: &Path, found: &Scan, behind: u64) -> Error {
    Error::Corrupt(format!(
        "journal {}: record {} at byte {} is damaged, but {behind} intact ones follow it: the disk has lost data that was \
         synced. Nothing was changed; `karapace verify-store --repair` keeps a copy of the journal and continues with the \
         records before the damage",
        path.display(),
        found.next_sequence,
        HEADER + found.sound
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(n: u64) -> Vec<Item> {
        vec![Item::Next { ino: n }, Item::Blocks { ino: n, first: 1, count: 2 }]
    }

    #[test]
    fn replays_what_was_appended_and_drops_a_torn_end() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path()).unwrap();
        let path = tmp.path().join("journal");
        let mut journal = Journal::create(&files, &path, 3).unwrap();
        journal.append(&items(10), Room::Ordinary).unwrap();
        let first = journal.end as usize;
        journal.append(&items(11), Room::Reserved).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in HEADER as usize..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (journal, found) = Journal::load(&files, &path, 3, true).unwrap().unwrap();
            let expected = if length < first { Vec::new() } else { items(10) };
            assert_eq!(found, expected, "cut to {length}");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), journal.end);
        }
    }

    #[test]
    fn a_flipped_bit_ends_the_replay() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path()).unwrap();
        let path = tmp.path().join("journal");
        let mut journal = Journal::create(&files, &path, 1).unwrap();
        journal.append(&items(10), Room::Ordinary).unwrap();
        let first = journal.end as usize;
        journal.append(&items(11), Room::Reserved).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[first + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (mut journal, found) = Journal::load(&files, &path, 1, true).unwrap().unwrap();
        assert_eq!(found, items(10));
        journal.append(&items(12), Room::Ordinary).unwrap();
        let (_, found) = Journal::load(&files, &path, 1, true).unwrap().unwrap();
        assert_eq!(found, [items(10), items(12)].concat());
    }

    #[test]
    fn damage_to_a_synced_record_is_an_error_and_changes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path()).unwrap();
        let path = tmp.path().join("journal");
        let mut journal = Journal::create(&files, &path, 1).unwrap();
        journal.append(&items(10), Room::Ordinary).unwrap();
        let first = journal.end as usize;
        journal.append(&items(11), Room::Ordinary).unwrap();
        journal.synced(journal.last());
        journal.append(&items(12), Room::Ordinary).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[first + 25] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        for write in [false, true] {
            let error = Journal::load(&files, &path, 1, write).unwrap_err().to_string();
            for word in [format!("byte {first} "), "record 2".to_owned(), path.display().to_string()] {
                assert!(error.contains(&word), "{word}: {error}");
            }
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_journal_of_the_previous_format_is_continued_in_that_format() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path()).unwrap();
        let path = tmp.path().join("journal");
        let header = [&PLAIN_MAGIC[..], &7u64.to_le_bytes()].concat();
        std::fs::write(&path, header).unwrap();
        for round in 0..3 {
            let (mut journal, found) = Journal::load(&files, &path, 7, true).unwrap().unwrap();
            assert_eq!(found.len(), round * 2);
            journal.append(&items(10), Room::Ordinary).unwrap();
            journal.synced(journal.last());
        }
    }

    #[test]
    fn epochs_decide_whether_it_counts() {
        let tmp = tempfile::tempdir().unwrap();
        let files = Files::at(tmp.path()).unwrap();
        let path = tmp.path().join("journal");
        Journal::create(&files, &path, 2).unwrap();
        assert!(Journal::load(&files, &path, 3, true).unwrap().is_none());
        assert!(Journal::load(&files, &path, 2, true).unwrap().is_some());
        assert!(Journal::load(&files, &path, 1, true).is_err());
    }
}
