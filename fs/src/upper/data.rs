//! Data files of the upper: `data/<2 hex>/<ino>[.<generation>]`, the bytes of changed regular files.
//!
//! A data file that commit has hard-linked into the store must never be written again: it is *sealed*. The
//! next writer copies it to a file of the next generation (`DataDir::unseal`). A link count above one says
//! the same after a crash, when the flag is lost.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use karapace_store::fail;
use karapace_store::files::Files;
use karapace_store::inode::{Ino, Timestamp};
use lru::LruCache;
use nix::errno::Errno;
use parking_lot::Mutex;

use crate::error::At as _;
use crate::error::{Error, Result};

/// Open descriptors kept of data files.
const OPEN_FILES: usize = 512;
/// Data files made ahead that are not used yet, at most.
const AHEAD: usize = 16;

/// One data file. Lock order: `DataFile::lock` is taken before the view's state lock, never while holding it.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub ino: Ino,
    pub generation: u32,
    /// Commit may have given the bytes to the store: copy before writing.
    pub sealed: AtomicBool,
    /// Held while the bytes are changed in a way that spans several system calls.
    pub lock: Mutex<()>,
    /// Bytes allocated on the host when last looked at; `NOT_KNOWN` before.
    allocated: AtomicU64,
}

/// Nobody has asked the host how much a data file occupies; 0 is an answer, that of a file which is one hole.
const NOT_KNOWN: u64 = u64::MAX;

impl DataFile {
    pub fn new(ino: Ino, generation: u32) -> Arc<DataFile> {
        Arc::new(DataFile {
            ino,
            generation,
            sealed: AtomicBool::new(false),
            lock: Mutex::new(()),
            allocated: AtomicU64::new(NOT_KNOWN),
        })
    }

    /// Bytes the file occupies, for `st_blocks`; `size` where nobody has looked yet.
    pub fn allocated(&self, size: u64) -> u64 {
        match self.allocated.load(Ordering::Relaxed) {
            NOT_KNOWN => size,
            bytes => bytes,
        }
    }

    /// The inode is gone, and had so many bytes: what the file occupies, as far as anybody wants to know from
    /// now on.
    pub fn gone_with(&self, bytes: u64) {
        self.allocated.store(bytes, Ordering::Relaxed);
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }
}

/// What the host says of a data file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataStat {
    pub size: u64,
    pub mtime: Timestamp,
}

/// The directory of data files and the descriptors open in it.
#[derive(Debug)]
pub(crate) struct DataDir {
    files: Files,
    path: PathBuf,
    /// Which subdirectories were looked at: they are ours, and lead nowhere.
    known: [AtomicBool; 256],
    open: Mutex<LruCache<(Ino, u32), Arc<File>>>,
    ahead: Mutex<Ahead>,
}

/// Data files made before anybody writes to them. No record names them: what a crash leaves of them is swept.
#[derive(Debug)]
struct Ahead {
    files: LruCache<Ino, Arc<File>>,
    /// How many more are made before another file is written for the first time: where files stay empty,
    /// none.
    credit: usize,
}

impl DataDir {
    pub fn new(files: &Files, path: PathBuf) -> DataDir {
        // OPEN_FILES is a non-zero constant.
        let capacity = NonZeroUsize::new(OPEN_FILES).unwrap_or(NonZeroUsize::MIN);
        // Held at AHEAD by `make_ahead`, which has to remove what leaves.
        let ahead = Ahead { files: LruCache::unbounded(), credit: AHEAD };
        DataDir {
            files: files.clone(),
            path,
            known: [const { AtomicBool::new(false) }; 256],
            open: Mutex::new(LruCache::new(capacity)),
            ahead: Mutex::new(ahead),
        }
    }

    /// Where the files are opened.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Makes the 256 subdirectories, so that no write has to.
    pub fn create(&self) -> Result<()> {
        let names: Vec<String> = (0..=255u8).map(|i| format!("{i:02x}")).collect();
        self.files
            .make_dirs(&self.path)
            .and_then(|()| self.files.make_dirs_in(&self.path, names.iter().map(String::as_str)))
            .at("create directory", &self.path)
    }

    pub fn path(&self, data: &DataFile) -> PathBuf {
        self.path_of(data.ino, data.generation)
    }

    /// Where the data file of this generation of an inode's data is.
    pub fn path_of(&self, ino: Ino, generation: u32) -> PathBuf {
        let dir = self.path.join(format!("{:02x}", ino & 0xff));
        match generation {
            0 => dir.join(format!("{ino:x}")),
            g => dir.join(format!("{ino:x}.{g}")),
        }
    }

    /// Creates the data file, empty. A leftover of a crash under this name is removed first, never reused: it
    /// may share its bytes with an object.
    pub fn create_file(&self, data: &DataFile) -> Result<Arc<File>> {
        let path = self.path(data);
        fail::point("data.create").at("create", &path)?;
        let file = match self.made_ahead(data) {
            Some(file) => file,
            None => {
                let made = match self.make(&path) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        self.files.remove(&path).at("remove leftover", &path)?;
                        self.make(&path)
                    }
                    other => other,
                };
                Arc::new(made.at("create", &path)?)
            }
        };
        self.open.lock().put((data.ino, data.generation), file.clone());
        Ok(file)
    }

    /// Makes the first data file of an inode that has none, for a later [`DataDir::create_file`] to take; or
    /// does not, where that does not pay or fails.
    ///
    /// The caller keeps commits and restores away, which remove data files.
    pub fn make_ahead(&self, ino: Ino) {
        // Held throughout: who asks for the file meanwhile has to find it.
        let mut ahead = self.ahead.lock();
        let Some(credit) = ahead.credit.checked_sub(1) else { return };
        // Where there is a file already, somebody writes to it or it is a leftover: neither is ours.
        let Ok(file) = self.make(&self.path_of(ino, 0)) else { return };
        ahead.credit = credit;
        ahead.files.put(ino, Arc::new(file));
        if ahead.files.len() > AHEAD
            && let Some((oldest, _)) = ahead.files.pop_lru()
        {
            self.remove(&DataFile::new(oldest, 0));
        }
    }

    /// The file that was made ahead, if there is one.
    fn made_ahead(&self, data: &DataFile) -> Option<Arc<File>> {
        let mut ahead = self.ahead.lock();
        ahead.credit = AHEAD.min(ahead.credit + 1);
        if data.generation == 0 { ahead.files.pop(&data.ino) } else { None }
    }

    /// Removes the files that were made ahead and that nobody has written to.
    pub fn drop_ahead(&self) {
        let mut ahead = self.ahead.lock();
        while let Some((ino, _)) = ahead.files.pop_lru() {
            self.remove(&DataFile::new(ino, 0));
        }
    }

    /// The file, open for reading and writing. Marks it sealed when the store shares its bytes.
    ///
    /// The caller holds the view's state lock, or otherwise keeps the file from being removed meanwhile: else
    /// the descriptor kept could be one of a file whose name another has got.
    pub fn file(&self, data: &DataFile) -> Result<Arc<File>> {
        let key = (data.ino, data.generation);
        if let Some(file) = self.open.lock().get(&key) {
            return Ok(file.clone());
        }
        let path = self.path(data);
        // An object's mode is 0444, and so is that of a file on its way to become one.
        let shared = self.files.open_shared(&path).at("open", &path)?;
        let file = Arc::new(shared.file);
        if !shared.writable || shared.names > 1 {
            data.sealed.store(true, Ordering::Release);
        }
        self.open.lock().put(key, file.clone());
        Ok(file)
    }

    /// Size and mtime as the host has them; also what `DataFile::allocated` answers from then on.
    pub fn stat(&self, data: &DataFile) -> Result<DataStat> {
        let cached = self.open.lock().peek(&(data.ino, data.generation)).cloned();
        let stat = match cached {
            Some(file) => file.metadata().map(|m| (m.size(), m.blocks(), m.mtime(), m.mtime_nsec())),
            None => self.files.stat(&self.path(data)).map(|s| {
                (
                    s.st_size as u64,
                    s.st_blocks as u64,
                    s.st_mtime,
                    i64::try_from(s.st_mtime_nsec).unwrap_or(0),
                )
            }),
        };
        // Often done: the path is made for an error only.
        let (size, blocks, secs, nanos) = stat.map_err(|e| Error::host("stat", &self.path(data), e))?;
        data.allocated.store(blocks * 512, Ordering::Relaxed);
        Ok(DataStat { size, mtime: Timestamp { secs, nanos: u32::try_from(nanos).unwrap_or(0) } })
    }

    /// Bytes that a file nobody writes to any more occupies on the host, about; 0 when it cannot be told.
    pub fn occupied(&self, data: &DataFile) -> u64 {
        match data.allocated.load(Ordering::Relaxed) {
            NOT_KNOWN => self.stat(data).map_or(0, |_| data.allocated(0)),
            bytes => bytes,
        }
    }

    /// A private copy of a sealed file, of the next generation, with the first `keep` bytes of its content;
    /// durable, for these may be safe in the sealed one.
    pub fn unseal(&self, data: &DataFile, keep: u64) -> Result<Arc<DataFile>> {
        let source = self.file(data)?;
        let copy = DataFile::new(data.ino, data.generation + 1);
        let target = self.create_file(&copy)?;
        if let Err(e) = fail::point("unseal.copy").and_then(|()| copy_sparse(&source, &target, keep)) {
            self.remove(&copy);
            return Err(Error::host("copy", &self.path(data), e));
        }
        if keep > 0
            && let Err(error) = self.sync_with_name(&copy, &target)
        {
            self.remove(&copy);
            return Err(error);
        }
        Ok(copy)
    }

    /// Takes the seal off a file that shares its bytes with no object. The caller keeps writers out.
    pub fn unshare(&self, data: &DataFile) -> Result<()> {
        let path = self.path(data);
        let stat = self.files.stat(&path).at("stat", &path)?;
        if stat.st_nlink > 1 {
            return Ok(());
        }
        self.files.set_mode(&path, 0o600).at("set the mode of", &path)?;
        // The descriptor kept may be one for reading only.
        self.open.lock().pop(&(data.ino, data.generation));
        data.sealed.store(false, Ordering::Release);
        Ok(())
    }

    /// Removes the file; a failure leaves garbage that the next open sweeps, so it is only logged.
    pub fn remove(&self, data: &DataFile) {
        self.open.lock().pop(&(data.ino, data.generation));
        let path = self.path(data);
        if let Err(e) = fail::point("data.remove").and_then(|()| self.remove_at(data, &path))
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove data file {}: {e}", path.display());
        }
    }

    fn remove_at(&self, data: &DataFile, path: &Path) -> io::Result<()> {
        let known = &self.known[(data.ino & 0xff) as usize];
        if !known.load(Ordering::Relaxed) {
            self.files.open_dir(path.parent().unwrap_or(path))?;
            known.store(true, Ordering::Relaxed);
        }
        self.files.remove_from_known(path)
    }

    /// A new, empty data file.
    fn make(&self, path: &Path) -> io::Result<File> {
        self.files.make_as(path, 0o600)
    }

    /// Removes every file that `keep` does not name: what a crash left behind.
    pub fn sweep(&self, keep: &dyn Fn(Ino, u32) -> bool) -> Result<u64> {
        let strangers = self.strangers(keep)?;
        for path in &strangers {
            fail::point("data.sweep").and_then(|()| self.files.remove(path)).at("remove leftover", path)?;
        }
        Ok(strangers.len() as u64)
    }

    /// Every file that `keep` does not name.
    pub fn strangers(&self, keep: &dyn Fn(Ino, u32) -> bool) -> Result<Vec<PathBuf>> {
        let mut strangers = Vec::new();
        for i in 0..=255u8 {
            let dir = self.path.join(format!("{i:02x}"));
            let names = match self.files.names(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.at("list", &dir)?,
            };
            let known = |name: &OsString| {
                parse_name(name.as_encoded_bytes()).is_some_and(|(ino, generation)| keep(ino, generation))
            };
            strangers.extend(names.iter().filter(|name| !known(name)).map(|name| dir.join(name)));
        }
        Ok(strangers)
    }

    /// Makes the bytes of `file`, which is `data` open, durable.
    pub fn sync(&self, data: &DataFile, file: &File) -> Result<()> {
        let synced = fail::point("data.sync").and_then(|()| file.sync_data());
        synced.map_err(|e| Error::host("sync", &self.path(data), e))
    }

    /// Whether all bytes from `from` to `to` have been written, and none is in a hole. Where the host cannot
    /// tell, they have.
    pub fn holds(&self, data: &DataFile, file: &File, from: u64, to: u64) -> Result<bool> {
        use nix::unistd::{Whence, lseek64};
        let at = i64::try_from(from).map_err(|_| Error::FileTooBig)?;
        match lseek64(file, at, Whence::SeekHole) {
            Ok(hole) => Ok(hole as u64 >= to),
            Err(Errno::ENXIO) => Ok(from >= to),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(true),
            Err(e) => Err(Error::host("seek in", &self.path(data), e.into())),
        }
    }

    /// Makes the bytes of a file and its name durable.
    pub fn sync_with_name(&self, data: &DataFile, file: &File) -> Result<()> {
        self.sync(data, file)?;
        let dir = self.path.join(format!("{:02x}", data.ino & 0xff));
        let open = self.files.open_dir(&dir).and_then(|d| d.sync_all());
        open.at("sync", &dir)
    }
}

fn parse_name(name: &[u8]) -> Option<(Ino, u32)> {
    let name = std::str::from_utf8(name).ok()?;
    let (ino, generation) = match name.split_once('.') {
        Some((ino, g)) => (ino, g.parse().ok()?),
        None => (name, 0),
    };
    Some((Ino::from_str_radix(ino, 16).ok()?, generation))
}

/// Copies the first `keep` bytes; holes stay holes.
fn copy_sparse(source: &File, target: &File, keep: u64) -> io::Result<()> {
    use nix::unistd::{Whence, lseek64};
    let size = source.metadata()?.size().min(keep);
    target.set_len(size)?;
    let size = i64::try_from(size).map_err(io::Error::other)?;
    let mut at = 0;
    while at < size {
        let start = match lseek64(source, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = lseek64(source, start, Whence::SeekHole)?;
        copy_range(source, target, start, end.min(size))?;
        at = end;
    }
    Ok(())
}

/// Copies bytes `start..end` at their offsets, in the kernel where the host can (reflink included).
fn copy_range(source: &File, target: &File, start: i64, end: i64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(1 << 30);
        match nix::fcntl::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                let mut buf = vec![0; want.min(1 << 20)];
                let n = source.read_at(&mut buf, from as u64)?;
                if n == 0 {
                    break;
                }
                target.write_all_at(&buf[..n], from as u64)?;
                from += n as i64;
                to = from;
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn dir() -> (tempfile::TempDir, DataDir) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(&Files::at(tmp.path()).unwrap(), tmp.path().join("data"));
        dir.create().unwrap();
        (tmp, dir)
    }

    #[test]
    fn unseal_copies_bytes_and_holes() {
        let (_tmp, dir) = dir();
        let data = DataFile::new(0x1234, 0);
        let file = dir.create_file(&data).unwrap();
        file.set_len(10 << 20).unwrap();
        file.write_all_at(b"here", 5 << 20).unwrap();
        let copy = dir.unseal(&data, u64::MAX).unwrap();
        assert_eq!(copy.generation, 1);
        let copied = dir.file(&copy).unwrap();
        assert_eq!(copied.metadata().unwrap().size(), 10 << 20);
        assert!(copied.metadata().unwrap().blocks() < 2048);
        let mut buf = [0; 4];
        copied.read_exact_at(&mut buf, 5 << 20).unwrap();
        assert_eq!(&buf, b"here");
    }

    #[test]
    fn what_was_made_ahead_is_written_or_goes() {
        let (_tmp, dir) = dir();
        let (written, unused) = (DataFile::new(7, 0), DataFile::new(8, 0));
        dir.make_ahead(7);
        dir.make_ahead(8);
        let file = dir.create_file(&written).unwrap();
        file.write_all_at(b"here", 0).unwrap();
        // There is one that somebody writes to.
        dir.make_ahead(7);
        assert!(dir.path(&unused).exists());
        dir.drop_ahead();
        assert!(!dir.path(&unused).exists());
        assert_eq!(std::fs::read(dir.path(&written)).unwrap(), b"here");
    }

    #[test]
    fn little_is_made_ahead_where_files_stay_empty() {
        let (_tmp, dir) = dir();
        let files = || dir.strangers(&|_, _| false).unwrap().len();
        (1..=100).for_each(|ino| dir.make_ahead(ino));
        assert_eq!(files(), AHEAD);
        // One is written that was not made ahead: the next one is.
        dir.create_file(&DataFile::new(100, 0)).unwrap();
        dir.make_ahead(101);
        dir.make_ahead(102);
        assert!(dir.path(&DataFile::new(101, 0)).exists());
        assert_eq!(files(), AHEAD + 1);
        dir.drop_ahead();
        assert_eq!(files(), 1);
    }

    #[test]
    fn a_second_link_seals() {
        let (tmp, dir) = dir();
        let data = DataFile::new(7, 0);
        dir.create_file(&data).unwrap();
        dir.open.lock().clear();
        std::fs::hard_link(dir.path(&data), tmp.path().join("object")).unwrap();
        assert!(!data.is_sealed());
        dir.file(&data).unwrap();
        assert!(data.is_sealed());
    }

    #[test]
    fn sweep_removes_only_strangers() {
        let (_tmp, dir) = dir();
        let keep = DataFile::new(1, 2);
        let stray = DataFile::new(2, 0);
        dir.create_file(&keep).unwrap();
        dir.create_file(&stray).unwrap();
        assert_eq!(dir.sweep(&|ino, g| (ino, g) == (1, 2)).unwrap(), 1);
        assert!(dir.path(&keep).exists());
        assert!(!dir.path(&stray).exists());
    }
}
