//! Importing a directory as it stands.
//!
//! Every step goes through a descriptor of the directory above, and no symbolic link is followed, so the walk cannot be led outside.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::builder::{Attributes, Builder, Content, DirId, LeafId, ROOT};
use super::{Imported, Progress, Warnings, finish};
use crate::content::{self, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::inode::{FileKind, Timestamp, Xattrs};
use crate::object::Batch;
use crate::open::Store;

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// `top` is `path`, opened.
pub(super) fn import(
    store: &Arc<Store>,
    path: &Path,
    top: OwnedFd,
    progress: &dyn Progress,
) -> Result<Imported> {
    let own = rustix::fs::stat(store.layout().root()).at("read", store.layout().root())?;
    let mut walk = Walk {
        batch: Batch::new(store)?,
        builder: Builder::new(),
        warnings: Warnings::default(),
        progress,
        linked: HashMap::new(),
        own: (own.st_dev, own.st_ino),
        bytes: 0,
    };
    let stat = rustix::fs::fstat(&top).at("read", path)?;
    walk.builder.set_root(attributes(&stat, xattrs(&top).at("read the attributes of", path)?));
    walk.run(Level::open(top, path.to_owned(), ROOT)?)?;
    finish(walk.builder, walk.batch, walk.bytes, walk.warnings)
}

struct Walk<'a> {
    batch: Batch,
    builder: Builder,
    warnings: Warnings,
    progress: &'a dyn Progress,
    /// Inodes of several names that were met, by device and number.
    linked: HashMap<(u64, u64), LeafId>,
    /// The store itself, by device and number.
    own: (u64, u64),
    bytes: u64,
}

/// A directory that is being gone through.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    node: DirId,
    names: std::vec::IntoIter<CString>,
}

impl Level {
    fn open(directory: OwnedFd, path: PathBuf, node: DirId) -> Result<Level> {
        let mut names: Vec<CString> = Vec::new();
        for entry in Dir::read_from(&directory).at("list", &path)? {
            let entry = entry.at("list", &path)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // In a fixed order, so that warnings and objects come in one.
        names.sort_unstable();
        Ok(Level { directory, path, node, names: names.into_iter() })
    }
}

impl Walk<'_> {
    /// With a stack of its own: a directory may be deeper than a thread's.
    fn run(&mut self, top: Level) -> Result<()> {
        let mut stack = vec![top];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.next() else {
                stack.pop();
                continue;
            };
            let below = self.entry(&level.directory, &level.path, &name, level.node)?;
            self.progress.add(0, 1);
            stack.extend(below);
        }
        Ok(())
    }

    /// Takes one entry in; a directory is given back, to be gone through.
    fn entry(
        &mut self,
        directory: &OwnedFd,
        above: &Path,
        name: &CStr,
        parent: DirId,
    ) -> Result<Option<Level>> {
        let path = above.join(OsStr::from_bytes(name.to_bytes()));
        let refuse =
            |reason: String| StoreError::Invalid(format!("cannot import {}: {reason}", path.display()));
        let bytes = name.to_bytes();
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).at("read", &path)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        if kind == FileType::Directory {
            if key == self.own {
                self.warnings.push(format!("{} was left out: it is the store itself", path.display()));
                return Ok(None);
            }
            let opened = open(directory, name, OFlags::DIRECTORY).at("open", &path)?;
            let stat = rustix::fs::fstat(&opened).at("read", &path)?;
            let attributes = attributes(&stat, xattrs(&opened).at("read the attributes of", &path)?);
            let node = self.builder.add_directory(parent, bytes, attributes).map_err(refuse)?;
            return Level::open(opened, path, node).map(Some);
        }
        if kind == FileType::Socket {
            self.warnings.push(format!("{} was left out: it is a socket", path.display()));
            return Ok(None);
        }
        if stat.st_nlink > 1
            && let Some(&leaf) = self.linked.get(&key)
        {
            return self.builder.add_link(parent, bytes, leaf).map(|()| None).map_err(refuse);
        }
        let (attributes, content) = match kind {
            FileType::RegularFile => self.regular(directory, name, &path)?,
            _ => {
                let content = match kind {
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(directory, name, Vec::new()).at("read", &path)?;
                        Content::Symlink(target.into_bytes().into())
                    }
                    FileType::Fifo => Content::Special(FileKind::Fifo, 0),
                    FileType::CharacterDevice => Content::Special(FileKind::CharDevice, stat.st_rdev),
                    FileType::BlockDevice => Content::Special(FileKind::BlockDevice, stat.st_rdev),
                    _ => return Err(refuse("its type is not known".to_owned())),
                };
                let xattrs = named_xattrs(directory, name).at("read the attributes of", &path)?;
                (attributes(&stat, xattrs), content)
            }
        };
        let leaf = self.builder.add(parent, bytes, attributes, content).map_err(refuse)?;
        if stat.st_nlink > 1 {
            self.linked.insert(key, leaf);
        }
        Ok(None)
    }

    fn regular(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<(Attributes, Content)> {
        let file = open(directory, name, OFlags::NONBLOCK).at("open", path)?;
        let stat = rustix::fs::fstat(&file).at("read", path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::Invalid(format!(
                "cannot import {}: it is being replaced",
                path.display()
            )));
        }
        let attributes = attributes(&stat, xattrs(&file).at("read the attributes of", path)?);
        let content = self.content(File::from(file), &stat, path)?;
        Ok((attributes, Content::Regular(content)))
    }

    fn content(&mut self, file: File, stat: &Stat, path: &Path) -> Result<FileContent> {
        let size = stat.st_size as u64;
        // Fewer blocks than bytes: it has holes, which are found rather than read.
        if (stat.st_blocks as u64).saturating_mul(512) < size {
            let ranges = data_ranges(&file, size).at("look for holes in", path)?;
            let bytes: u64 = ranges.iter().map(|r| r.1).sum();
            let content = content::ingest_ranges(&file, size, &ranges, &mut self.batch)?;
            self.count(bytes);
            return Ok(content);
        }
        let mut source = Source { file, failed: None, read: 0 };
        let content = content::ingest(&mut source, &mut self.batch);
        self.count(source.read);
        match source.failed {
            Some(error) => Err(error).at("read", path),
            None => content,
        }
    }

    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.add(bytes, 0);
    }
}

/// A file being read; keeps its error, to be told apart from what goes wrong in the store.
struct Source {
    file: File,
    failed: Option<io::Error>,
    read: u64,
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.file.read(buf) {
            Ok(got) => {
                self.read += got as u64;
                Ok(got)
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(copy)
            }
        }
    }
}

fn open(directory: &OwnedFd, name: &CStr, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | more;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Offset and length of what is not a hole.
fn data_ranges(file: &File, size: u64) -> rustix::io::Result<Vec<(u64, u64)>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        ranges.push((start, end - start));
        at = end;
    }
    Ok(ranges)
}

fn attributes(stat: &Stat, xattrs: Xattrs) -> Attributes {
    let mtime = Timestamp { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    Attributes { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs }
}

fn xattrs(file: &OwnedFd) -> io::Result<Xattrs> {
    collect_xattrs(&|buf| rustix::fs::flistxattr(file, buf), &|name, buf| {
        rustix::fs::fgetxattr(file, name, buf)
    })
}

/// Of what must not be opened (devices, FIFOs, links): by name, through the directory's descriptor.
fn named_xattrs(directory: &OwnedFd, name: &CStr) -> io::Result<Xattrs> {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    path.push(OsStr::from_bytes(name.to_bytes()));
    collect_xattrs(&|buf| rustix::fs::llistxattr(&path, buf), &|name, buf| {
        rustix::fs::lgetxattr(&path, name, buf)
    })
}

type List<'a> = &'a dyn Fn(&mut [u8]) -> rustix::io::Result<usize>;
type Get<'a> = &'a dyn Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>;

fn collect_xattrs(list: List<'_>, get: Get<'_>) -> io::Result<Xattrs> {
    let names = match grow(list) {
        Err(Errno::NOTSUP) => return Ok(Xattrs::default()),
        other => other?,
    };
    let mut all = Xattrs::new();
    for name in names.split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let value = match grow(&|buf| get(OsStr::from_bytes(name), buf)) {
            // It went between the two calls, or is one that only the kernel may read.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        all.set(name, &value);
    }
    Ok(all)
}

/// Calls with a larger buffer until the answer fits; the kernel allows 64 KiB.
fn grow(call: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buf = vec![0; 256];
    loop {
        match call(&mut buf) {
            Ok(length) => {
                buf.truncate(length);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < 1 << 20 => buf.resize(buf.len() * 16, 0),
            Err(errno) => return Err(errno),
        }
    }
}
