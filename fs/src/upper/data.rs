//! Data files of the upper: `data/<2 hex>/<ino>[.<generation>]`, the bytes of changed regular files.
//!
//! A data file that a commit has hard-linked into the store must never be written again: it is *sealed*. The
//! next writer copies it to a file of the next generation (`DataDir::unseal`). After a crash, when the flag
//! is lost, a link count above one shows the same.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
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

/// Number of descriptors of data files kept open.
const OPEN_FILES: usize = 512;
/// Most data files created ahead that are not used yet.
const AHEAD: usize = 16;

/// One data file. Lock order: `DataFile::lock` is taken before the view's state lock, never while holding it.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub ino: Ino,
    pub generation: u32,
    /// The store may share these bytes: copy before writing.
    pub sealed: AtomicBool,
    /// Held during changes to the bytes that take several system calls.
    pub lock: Mutex<()>,
    /// Bytes allocated on the host when last checked; `NOT_KNOWN` before.
    allocated: AtomicU64,
}

/// The host has not been asked yet. 0 would mean a file that is one hole.
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

    /// Bytes that the file occupies, for `st_blocks`; `size` if the host has not been asked yet.
    pub fn allocated(&self, size: u64) -> u64 {
        match self.allocated.load(Ordering::Relaxed) {
            NOT_KNOWN => size,
            bytes => bytes,
        }
    }

    /// Called when the inode is gone: sets its size in bytes as the occupied space, which is accurate enough
    /// from now on.
    pub fn gone_with(&self, bytes: u64) {
        self.allocated.store(bytes, Ordering::Relaxed);
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }
}

/// Size and mtime of a data file on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataStat {
    pub size: u64,
    pub mtime: Timestamp,
}

/// The directory of data files, and the descriptors open in it.
#[derive(Debug)]
pub(crate) struct DataDir {
    files: Files,
    path: PathBuf,
    /// Subdirectories that have been checked to be directories of ours and not links.
    known: [AtomicBool; 256],
    open: Mutex<LruCache<(Ino, u32), Arc<File>>>,
    ahead: Mutex<Ahead>,
}

/// Data files created before their first write. No record names them, so the sweep after a crash removes
/// them.
#[derive(Debug)]
struct Ahead {
    files: LruCache<Ino, Arc<File>>,
    /// How many more may be created before another file gets its first write: none where files stay empty.
    credit: usize,
}

impl DataDir {
    pub fn new(files: &Files, path: PathBuf) -> DataDir {
        // OPEN_FILES is a non-zero constant.
        let capacity = NonZeroUsize::new(OPEN_FILES).unwrap_or(NonZeroUsize::MIN);
        // `make_ahead` keeps it at AHEAD entries, because it must remove the evicted files.
        let ahead = Ahead { files: LruCache::unbounded(), credit: AHEAD };
        DataDir {
            files: files.clone(),
            path,
            known: [const { AtomicBool::new(false) }; 256],
            open: Mutex::new(LruCache::new(capacity)),
            ahead: Mutex::new(ahead),
        }
    }

    /// The [`Files`] through which data files are opened.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Creates the 256 subdirectories, so that writes need not.
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

    /// Path of the data file with this generation.
    pub fn path_of(&self, ino: Ino, generation: u32) -> PathBuf {
        let dir = self.path.join(format!("{:02x}", ino & 0xff));
        match generation {
            0 => dir.join(format!("{ino:x}")),
            g => dir.join(format!("{ino:x}.{g}")),
        }
    }

    /// Makes a file of this file system the data file, by renaming it. It must be ours, with mode 0600.
    pub fn take_in(&self, data: &DataFile, directory: &OwnedFd, name: &CStr) -> Result<()> {
        let path = self.path(data);
        let parent = path.parent().unwrap_or(&path);
        let taken = self.files.hold(parent).and_then(|into| {
            Ok(rustix::fs::renameat(directory, name, &into, path.file_name().unwrap_or_default())?)
        });
        taken.at("move a file to", &path)
    }

    /// Creates the data file, empty. A file left under this name by a crash is removed first, never reused:
    /// it may share its bytes with an object.
    pub fn create_file(&self, data: &DataFile) -> Result<Arc<File>> {
        let path = self.path(data);
        fail::point("data.create").at("create", &path)?;
        let file = match self.made_ahead(data) {
            Some(file) => file,
            None => self.make_now(data, &path)?,
        };
        self.open.lock().put((data.ino, data.generation), file.clone());
        Ok(file)
    }

    /// Creates the file, because none was found that had been made ahead.
    fn make_now(&self, data: &DataFile, path: &Path) -> Result<Arc<File>> {
        let made = match self.make(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // It may have been made ahead just now. If it is not used, it is removed later, by its name.
                if let Some(file) = self.made_ahead(data) {
                    return Ok(file);
                }
                self.files.remove(path).at("remove leftover", path)?;
                self.make(path)
            }
            other => other,
        };
        Ok(Arc::new(made.at("create", path)?))
    }

    /// Creates the first data file of an inode in advance, for a later [`DataDir::create_file`]. Does nothing
    /// if that would not pay off, and ignores errors.
    ///
    /// The caller keeps commits and restores out, because they remove data files.
    pub fn make_ahead(&self, ino: Ino) {
        // Held throughout, so that a concurrent `create_file` finds the file.
        let mut ahead = self.ahead.lock();
        let Some(credit) = ahead.credit.checked_sub(1) else { return };
        // An existing file is being written or is a leftover; do not touch it.
        let Ok(file) = self.make(&self.path_of(ino, 0)) else { return };
        ahead.credit = credit;
        ahead.files.put(ino, Arc::new(file));
        if ahead.files.len() > AHEAD
            && let Some((oldest, _)) = ahead.files.pop_lru()
        {
            self.remove(&DataFile::new(oldest, 0));
        }
    }

    /// Takes the file that was created ahead, if there is one.
    fn made_ahead(&self, data: &DataFile) -> Option<Arc<File>> {
        let mut ahead = self.ahead.lock();
        ahead.credit = AHEAD.min(ahead.credit + 1);
        if data.generation == 0 { ahead.files.pop(&data.ino) } else { None }
    }

    /// Removes files that were created ahead and never written.
    pub fn drop_ahead(&self) {
        let mut ahead = self.ahead.lock();
        while let Some((ino, _)) = ahead.files.pop_lru() {
            self.remove(&DataFile::new(ino, 0));
        }
    }

    /// Opens the file for reading and writing. Marks it sealed if the store shares its bytes.
    ///
    /// The caller holds the view's state lock, or otherwise keeps the file from being removed meanwhile.
    /// Otherwise the cached descriptor could belong to a removed file whose name has been reused.
    pub fn file(&self, data: &DataFile) -> Result<Arc<File>> {
        let key = (data.ino, data.generation);
        if let Some(file) = self.open.lock().get(&key) {
            return Ok(file.clone());
        }
        let path = self.path(data);
        // Objects have mode 0444, and so has a file that is becoming one.
        let shared = self.files.open_shared(&path).at("open", &path)?;
        let file = Arc::new(shared.file);
        if !shared.writable || shared.names > 1 {
            data.sealed.store(true, Ordering::Release);
        }
        self.open.lock().put(key, file.clone());
        Ok(file)
    }

    /// Size and mtime on the host. Also updates the value that `DataFile::allocated` returns.
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
        // This is called often, so the path is built only for an error.
        let (size, blocks, secs, nanos) = stat.map_err(|e| Error::host("stat", &self.path(data), e))?;
        data.allocated.store(blocks * 512, Ordering::Relaxed);
        Ok(DataStat { size, mtime: Timestamp { secs, nanos: u32::try_from(nanos).unwrap_or(0) } })
    }

    /// Approximate bytes that a file no longer written occupies on the host; 0 if unknown.
    pub fn occupied(&self, data: &DataFile) -> u64 {
        match data.allocated.load(Ordering::Relaxed) {
            NOT_KNOWN => self.stat(data).map_or(0, |_| data.allocated(0)),
            bytes => bytes,
        }
    }

    /// Makes a private copy of a sealed file, of the next generation, with the first `keep` bytes of its
    /// content. The copy is durable, because those bytes may be safe in the sealed file.
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

    /// Unseals a file that shares its bytes with no object. The caller keeps writers out.
    pub fn unshare(&self, data: &DataFile) -> Result<()> {
        let path = self.path(data);
        let stat = self.files.stat(&path).at("stat", &path)?;
        if stat.st_nlink > 1 {
            return Ok(());
        }
        self.files.set_mode(&path, 0o600).at("set the mode of", &path)?;
        // The cached descriptor may be read-only.
        self.open.lock().pop(&(data.ino, data.generation));
        data.sealed.store(false, Ordering::Release);
        Ok(())
    }

    /// Removes the file. A failure is only logged: the next open sweeps what is left.
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

    /// Creates a new, empty data file.
    fn make(&self, path: &Path) -> io::Result<File> {
        self.files.make_as(path, 0o600)
    }

    /// Removes the files left by a crash: all for which `keep` returns false. Returns their number.
    pub fn sweep(&self, keep: &dyn Fn(Ino, u32) -> bool) -> Result<u64> {
        let strangers = self.strangers(keep)?;
        for path in &strangers {
            fail::point("data.sweep").and_then(|()| self.files.remove(path)).at("remove leftover", path)?;
        }
        Ok(strangers.len() as u64)
    }

    /// All files for which `keep` returns false.
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

    /// Makes the bytes of `data`, open as `file`, durable.
    pub fn sync(&self, data: &DataFile, file: &File) -> Result<()> {
        let synced = fail::point("data.sync").and_then(|()| file.sync_data());
        synced.map_err(|e| Error::host("sync", &self.path(data), e))
    }

    /// Whether the byte range `from..to` contains no hole. True if the host cannot tell.
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

    /// Makes a file's bytes and its name durable.
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

/// Copies bytes `start..end` to the same offsets, in the kernel if the host supports it (including reflinks).
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
mod tests;
