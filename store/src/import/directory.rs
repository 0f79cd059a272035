//! Importing a directory: as it stands, or as an overlay's upper.
//!
//! Every step goes through a descriptor of the directory above, and no symbolic link is followed, so the walk cannot be led outside.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::builder::{Attributes, Builder, Content, DirId, LeafId, MAX_METADATA, ROOT};
use super::overlay::{self, Special};
use super::{Intake, Progress};
use crate::content::{self, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::inode::{FileKind, Timestamp, Xattrs};
use crate::input::by_descriptor;

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// `top` is `path`, opened. As an `upper` it is a layer over something else.
pub(super) fn import(intake: &mut Intake<'_>, path: &Path, top: OwnedFd, upper: bool) -> Result<Builder> {
    let root = intake.store.layout().root();
    let own = rustix::fs::stat(root).at("read", root)?;
    let mut walk = Walk {
        intake,
        builder: Builder::new(MAX_METADATA),
        upper,
        linked: HashMap::new(),
        own: (own.st_dev, own.st_ino),
    };
    let stat = rustix::fs::fstat(&top).at("read", path)?;
    if upper {
        overlay::check_readable(path, stat.st_uid)?;
    }
    let mut attributes = attributes(&stat, xattrs(&top).at("read the attributes of", path)?);
    let level = walk.mark(ROOT, path, &mut attributes)?;
    walk.builder.set_root(attributes);
    walk.run(Level { xattr_whiteouts: level, ..Level::open(top, path.to_owned(), ROOT)? })?;
    Ok(walk.builder)
}

struct Walk<'a, 'b> {
    intake: &'a mut Intake<'b>,
    builder: Builder,
    /// Whether it is an overlay's upper directory.
    upper: bool,
    /// Inodes of several names that were met, by device and number.
    linked: HashMap<(u64, u64), LeafId>,
    /// The store itself, by device and number.
    own: (u64, u64),
}

/// A directory that is being gone through.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    node: DirId,
    names: std::vec::IntoIter<CString>,
    /// Whether an empty file with a certain attribute is a whiteout here.
    xattr_whiteouts: bool,
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
        Ok(Level { directory, path, node, names: names.into_iter(), xattr_whiteouts: false })
    }
}

impl Walk<'_, '_> {
    /// With a stack of its own: a directory may be deeper than a thread's.
    fn run(&mut self, top: Level) -> Result<()> {
        let mut stack = vec![top];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.next() else {
                stack.pop();
                continue;
            };
            if self.intake.progress.is_cancelled() {
                return Err(StoreError::Cancelled);
            }
            let below = self.entry(level, &name)?;
            self.intake.progress.add(0, 1);
            stack.extend(below);
        }
        Ok(())
    }

    /// Takes one entry in; a directory is given back, to be gone through.
    fn entry(&mut self, level: &Level, name: &CStr) -> Result<Option<Level>> {
        let (directory, parent) = (&level.directory, level.node);
        let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        let refuse = |reason: String| refuse(&path, &reason);
        let bytes = name.to_bytes();
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).at("read", &path)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let key = (stat.st_dev, stat.st_ino);
        if self.upper {
            match overlay::special(bytes, &stat).map_err(refuse)? {
                Some(Special::Whiteout(hidden)) => {
                    return self.builder.hide(parent, hidden).map(|()| None).map_err(refuse);
                }
                Some(Special::Opaque) => {
                    self.builder.set_opaque(parent);
                    return Ok(None);
                }
                None => {}
            }
        }
        if kind == FileType::Directory {
            if key == self.own {
                let note = format!("{} was left out: it is the store itself", path.display());
                self.intake.warnings.push(note);
                return Ok(None);
            }
            let opened = open(directory, name, OFlags::DIRECTORY).at("open", &path)?;
            let stat = rustix::fs::fstat(&opened).at("read", &path)?;
            let mut attributes = attributes(&stat, xattrs(&opened).at("read the attributes of", &path)?);
            let node = self.builder.add_directory(parent, bytes, Attributes::default()).map_err(refuse)?;
            let xattr_whiteouts = self.mark(node, &path, &mut attributes)?;
            self.builder.add_directory(parent, bytes, attributes).map_err(refuse)?;
            return Ok(Some(Level { xattr_whiteouts, ..Level::open(opened, path, node)? }));
        }
        if kind == FileType::Socket {
            self.intake.warnings.push(format!("{} was left out: it is a socket", path.display()));
            return Ok(None);
        }
        if stat.st_nlink > 1
            && let Some(&leaf) = self.linked.get(&key)
        {
            return self.builder.add_link(parent, bytes, leaf).map(|()| None).map_err(refuse);
        }
        let (attributes, content) = match kind {
            FileType::RegularFile => match self.regular(level, name, &path)? {
                Some(regular) => regular,
                None => return self.builder.hide(parent, bytes).map(|()| None).map_err(refuse),
            },
            _ => self.other(directory, name, &path, &stat)?,
        };
        let leaf = self.builder.add(parent, bytes, attributes, content).map_err(refuse)?;
        if stat.st_nlink > 1 {
            self.linked.insert(key, leaf);
        }
        Ok(None)
    }

    /// Takes the overlay's own attributes of a directory out, and says whether whiteouts in it may be empty files.
    fn mark(&mut self, node: DirId, path: &Path, attributes: &mut Attributes) -> Result<bool> {
        if !self.upper {
            return Ok(false);
        }
        let own = overlay::take(attributes).map_err(|reason| refuse(path, &reason))?;
        if own.opaque {
            self.builder.set_opaque(node);
        }
        if let Some(redirect) = own.redirect {
            self.builder.set_redirect(node, redirect);
        }
        Ok(own.xattr_whiteouts)
    }

    fn other(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        path: &Path,
        stat: &Stat,
    ) -> Result<(Attributes, Content)> {
        let content = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new()).at("read", path)?;
                Content::Symlink(target.into_bytes().into())
            }
            FileType::Fifo => Content::Special(FileKind::Fifo, 0),
            FileType::CharacterDevice => Content::Special(FileKind::CharDevice, stat.st_rdev),
            FileType::BlockDevice => Content::Special(FileKind::BlockDevice, stat.st_rdev),
            _ => return Err(refuse(path, "its type is not known")),
        };
        let xattrs = named_xattrs(directory, name).at("read the attributes of", path)?;
        let mut attributes = attributes(stat, xattrs);
        if self.upper {
            overlay::take(&mut attributes).map_err(|reason| refuse(path, &reason))?;
        }
        Ok((attributes, content))
    }

    /// `None` for an empty file that is a whiteout.
    fn regular(&mut self, level: &Level, name: &CStr, path: &Path) -> Result<Option<(Attributes, Content)>> {
        let file = open(&level.directory, name, OFlags::NONBLOCK).at("open", path)?;
        let stat = rustix::fs::fstat(&file).at("read", path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refuse(path, "it is being replaced"));
        }
        let mut attributes = attributes(&stat, xattrs(&file).at("read the attributes of", path)?);
        if self.upper {
            let own = overlay::take(&mut attributes).map_err(|reason| refuse(path, &reason))?;
            if own.whiteout && level.xattr_whiteouts && stat.st_size == 0 {
                return Ok(None);
            }
            if own.metadata_only {
                return Ok(Some((attributes, Content::Below(stat.st_size as u64, own.redirect))));
            }
            if let Some((kind, device)) = own.stands_for {
                return Ok(Some((attributes, Content::Special(kind, device))));
            }
        }
        let content = self.content(File::from(file), &stat, path)?;
        Ok(Some((attributes, Content::Regular(content))))
    }

    fn content(&mut self, file: File, stat: &Stat, path: &Path) -> Result<FileContent> {
        let size = stat.st_size as u64;
        // Fewer blocks than bytes: it has holes, which are found rather than read.
        if (stat.st_blocks as u64).saturating_mul(512) < size {
            let ranges = data_ranges(&file, size).at("look for holes in", path)?;
            let bytes: u64 = ranges.iter().map(|r| r.1).sum();
            let content = content::ingest_ranges(&file, size, &ranges, &mut self.intake.batch)?;
            self.count(bytes);
            return Ok(content);
        }
        let mut source = Source { file, failed: None, read: 0, progress: self.intake.progress };
        let content = content::ingest(&mut source, &mut self.intake.batch);
        self.count(source.read);
        match source.failed {
            Some(error) => Err(error).at("read", path),
            None => content,
        }
    }

    fn count(&mut self, bytes: u64) {
        self.intake.bytes += bytes;
        self.intake.progress.add(bytes, 0);
    }
}

/// A file being read; keeps its error, to be told apart from what goes wrong in the store.
struct Source<'a> {
    file: File,
    failed: Option<io::Error>,
    read: u64,
    progress: &'a dyn Progress,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other("stopped on request"));
        }
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
    let mode = stat.st_mode & 0o7777;
    Attributes { mode, uid: stat.st_uid, gid: stat.st_gid, mtime, other_times: None, xattrs }
}

fn refuse(path: &Path, reason: &str) -> StoreError {
    StoreError::Invalid(format!("cannot import {}: {reason}", path.display()))
}

fn xattrs(file: &OwnedFd) -> io::Result<Xattrs> {
    collect_xattrs(&|buf| rustix::fs::flistxattr(file, buf), &|name, buf| {
        rustix::fs::fgetxattr(file, name, buf)
    })
}

/// Of what must not be opened (devices, FIFOs, links): by name, through the directory's descriptor.
fn named_xattrs(directory: &OwnedFd, name: &CStr) -> io::Result<Xattrs> {
    let path = by_descriptor(directory).join(OsStr::from_bytes(name.to_bytes()));
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
