//! Imports a directory: as it is, or as an overlay's upper.
//!
//! Everything is opened through a descriptor of its parent directory, and no symbolic link is followed, so
//! the walk cannot be led outside.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::Intake;
use super::builder::{Attributes, Builder, Content, DirId, LeafId, MAX_METADATA, ROOT};
use super::host::{Source, attributes, data_ranges, named_xattrs, open, xattrs};
use super::mounts::{Look, MountId, Mounts, leads_into_pseudo, pseudo};
use super::overlay::{self, Special, Writer};
use super::told::Told;
use crate::acl;
use crate::content::{self, FileContent};
use crate::error::{IoContext, Result, StoreError};
use crate::inode::FileKind;

/// How often an entry is looked at again when it changed its type meanwhile.
const TRIES: u32 = 8;

const READ_LINK: &str = "read the link";

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).at(action, path)
    }
}

/// What a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A root filesystem.
    Whole,
    /// An overlay's upper directory: a layer over something else.
    Upper,
}

/// Imports `top`, which is `path` opened.
///
/// Other processes may change the directory meanwhile: what vanishes is left out, with a warning. The top
/// itself must stay.
pub(super) fn import(
    intake: &mut Intake<'_>,
    path: &Path,
    top: OwnedFd,
    role: Role,
    mounts: Mounts,
) -> Result<Builder> {
    let writer = match role {
        Role::Whole => None,
        Role::Upper => Some(Writer::Any),
    };
    if let Some(name) = pseudo(&top).at("read", path)? {
        let reason = format!("it shows the kernel's state ({name}) and holds no files");
        return Err(refuse(path, &reason));
    }
    let root = intake.store.root();
    let own = rustix::fs::stat(root).at("read", root)?;
    let mut walk = Walk {
        intake,
        builder: Builder::new(MAX_METADATA),
        writer,
        mounts,
        linked: HashMap::new(),
        own: (own.st_dev, own.st_ino),
        told: Told::default(),
    };
    let stat = rustix::fs::fstat(&top).at("read", path)?;
    if writer.is_some() {
        overlay::check_readable(path, stat.st_uid)?;
    }
    let mut attributes = attributes(&stat, xattrs(&top).at("read the attributes of", path)?);
    let level = walk.mark(ROOT, path, &mut attributes)?;
    walk.sift(path, FileKind::Directory, &mut attributes);
    walk.builder.set_root(attributes);
    let names = list(&top, path)?;
    let watched = top.try_clone().at("open", path)?;
    walk.run(Level {
        mount: Look::of(&top).at("read", path)?.mount,
        directory: top,
        path: path.to_owned(),
        node: ROOT,
        names,
        xattr_whiteouts: level,
    })?;
    if rustix::fs::fstat(&watched).at("read", path)?.st_nlink == 0 {
        return Err(refuse(path, "it was removed in the meantime"));
    }
    for note in walk.told.notes() {
        walk.intake.warnings.push_total(note);
    }
    Ok(walk.builder)
}

struct Walk<'a, 'b> {
    intake: &'a mut Intake<'b>,
    builder: Builder,
    /// If this is an overlay's upper directory, what wrote it.
    writer: Option<Writer>,
    mounts: Mounts,
    /// Inodes with several names seen so far, by device and inode number.
    linked: HashMap<(u64, u64), LeafId>,
    /// Device and inode number of the store itself.
    own: (u64, u64),
    told: Told,
}

/// A directory being walked.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    node: DirId,
    names: std::vec::IntoIter<CString>,
    /// Whether an empty file with the whiteout attribute is a whiteout in this directory.
    xattr_whiteouts: bool,
    /// The mount it lies on.
    mount: MountId,
}

/// The names in a directory, sorted, so that warnings and objects come in a fixed order.
fn list(directory: &OwnedFd, path: &Path) -> Result<std::vec::IntoIter<CString>> {
    let mut names: Vec<CString> = Vec::new();
    for entry in Dir::read_from(directory).at("list", path)? {
        let entry = entry.at("list", path)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into_iter())
}

impl Walk<'_, '_> {
    /// Uses an explicit stack: a directory may be nested deeper than a thread's stack allows.
    fn run(&mut self, top: Level) -> Result<()> {
        let mut stack = vec![top];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.next() else {
                stack.pop();
                continue;
            };
            let below = self.entry(level, &name)?;
            self.intake.progress.add(0, 1);
            stack.extend(below);
        }
        Ok(())
    }

    /// Imports one entry; a directory is returned, to be walked.
    fn entry(&mut self, level: &Level, name: &CStr) -> Result<Option<Level>> {
        let path = level.path.join(OsStr::from_bytes(name.to_bytes()));
        let mut tries = 0;
        loop {
            if self.intake.progress.is_cancelled() {
                return Err(StoreError::Cancelled);
            }
            tries += 1;
            match self.entry_as_it_is(level, name, &path) {
                // Checked again: what is missing may be something else that the file needs.
                Err(error) if is_gone(&error, &path) && is_missing(&level.directory, name) => {
                    self.told.vanished.push(&path);
                    return Ok(None);
                }
                Err(error) if is_gone(&error, &path) && tries < TRIES => {}
                Err(error) if was_replaced(&error, &path) => {
                    if tries == TRIES {
                        let reason = "it keeps being replaced: stop whatever does that, or import a copy";
                        return Err(refuse(&path, reason));
                    }
                }
                other => return other,
            }
        }
    }

    fn entry_as_it_is(&mut self, level: &Level, name: &CStr, path: &Path) -> Result<Option<Level>> {
        let (directory, parent) = (&level.directory, level.node);
        let refuse = |reason: String| refuse(path, &reason);
        let bytes = name.to_bytes();
        // Checked first, without asking the file system: one that is left out may not respond.
        let look = Look::at(directory, name).at("read", path)?;
        if look.mount != level.mount && self.is_left_out(directory, name, path)? {
            return self.mount_point(level, name, path, &look).map(|()| None);
        }
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).at("read", path)?;
        if let Some(writer) = self.writer {
            match overlay::special(bytes, &stat, writer).map_err(refuse)? {
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
        let key = (stat.st_dev, stat.st_ino);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            if key == self.own {
                let note = format!("{} was left out: it is the store itself", path.display());
                self.intake.warnings.push(note);
                return Ok(None);
            }
            return self.directory(level, name, path);
        }
        if kind == FileType::Socket && self.writer.is_some() {
            // It shows instead of what is below.
            self.builder.hide(parent, bytes).map_err(refuse)?;
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
            FileType::RegularFile => match self.regular(level, name, path)? {
                Some(regular) => regular,
                None => return self.builder.hide(parent, bytes).map(|()| None).map_err(refuse),
            },
            _ => self.other(directory, name, path, &stat)?,
        };
        let leaf = self.builder.add(parent, bytes, attributes, content).map_err(refuse)?;
        if stat.st_nlink > 1 {
            self.linked.insert(key, leaf);
        }
        Ok(None)
    }

    /// Imports a directory and returns it, to be walked.
    fn directory(&mut self, level: &Level, name: &CStr, path: &Path) -> Result<Option<Level>> {
        let refuse = |reason: String| refuse(path, &reason);
        let opened = open(&level.directory, name, OFlags::DIRECTORY).at("open", path)?;
        // Opening it may have triggered an automount.
        let look = Look::of(&opened).at("read", path)?;
        if look.mount != level.mount && self.is_left_out(&level.directory, name, path)? {
            return self.mount_point(level, name, path, &look).map(|()| None);
        }
        let stat = rustix::fs::fstat(&opened).at("read", path)?;
        let mut attributes = attributes(&stat, xattrs(&opened).at("read the attributes of", path)?);
        let names = list(&opened, path)?;
        let bytes = name.to_bytes();
        let node = self.builder.add_directory(level.node, bytes, Attributes::default()).map_err(refuse)?;
        let xattr_whiteouts = self.mark(node, path, &mut attributes)?;
        self.sift(path, FileKind::Directory, &mut attributes);
        self.builder.add_directory(level.node, bytes, attributes).map_err(refuse)?;
        let (path, mount) = (path.to_owned(), look.mount);
        Ok(Some(Level { directory: opened, path, node, names, xattr_whiteouts, mount }))
    }

    /// Whether the mount at this name is left out; if so, records it for the warnings.
    fn is_left_out(&mut self, directory: &OwnedFd, name: &CStr, path: &Path) -> Result<bool> {
        match self.mounts {
            Mounts::LeaveOut => self.told.mounts.push(path),
            Mounts::TakeIn if leads_into_pseudo(directory, name).at("read", path)? => {
                self.told.pseudo.push(path);
            }
            Mounts::TakeIn => return Ok(false),
        }
        Ok(true)
    }

    /// Imports a mount point without what is mounted there: an empty directory, or an empty file.
    fn mount_point(&mut self, level: &Level, name: &CStr, path: &Path, look: &Look) -> Result<()> {
        let (parent, bytes, attributes) = (level.node, name.to_bytes(), look.attributes());
        if look.is_directory() {
            return match self.builder.add_directory(parent, bytes, attributes) {
                Ok(_) => Ok(()),
                Err(reason) => Err(refuse(path, &reason)),
            };
        }
        match self.builder.add(parent, bytes, attributes, Content::Regular(FileContent::empty())) {
            Ok(_) => Ok(()),
            Err(reason) => Err(refuse(path, &reason)),
        }
    }

    /// Removes the overlay's own attributes from a directory and applies them; returns whether whiteouts in
    /// it may be empty files.
    fn mark(&mut self, node: DirId, path: &Path, attributes: &mut Attributes) -> Result<bool> {
        let Some(writer) = self.writer else { return Ok(false) };
        let own = overlay::take(attributes, writer).map_err(|reason| refuse(path, &reason))?;
        self.reconcile(FileKind::Directory, path, attributes);
        if own.opaque {
            self.builder.set_opaque(node);
        }
        if let Some(redirect) = own.redirect {
            self.builder.set_redirect(node, redirect);
        }
        Ok(own.xattr_whiteouts)
    }

    /// Leaves out, with a warning, attributes of another file system that nobody could set here.
    fn sift(&mut self, path: &Path, kind: FileKind, attributes: &mut Attributes) {
        let path = path.as_os_str().as_bytes();
        let kept = attributes.xattrs.iter().filter(|(name, _)| self.intake.warnings.keeps(path, kind, name));
        attributes.xattrs = kept.collect();
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
                let target = rustix::fs::readlinkat(directory, name, Vec::new()).at(READ_LINK, path)?;
                Content::Symlink(target.into_bytes().into())
            }
            FileType::Fifo => Content::Special(FileKind::Fifo, 0),
            FileType::Socket => Content::Special(FileKind::Socket, 0),
            FileType::CharacterDevice => Content::Special(FileKind::CharDevice, stat.st_rdev),
            FileType::BlockDevice => Content::Special(FileKind::BlockDevice, stat.st_rdev),
            _ => return Err(refuse(path, "its type is unknown")),
        };
        let xattrs = named_xattrs(directory, name).at("read the attributes of", path)?;
        let mut attributes = attributes(stat, xattrs);
        if let Some(writer) = self.writer {
            overlay::take(&mut attributes, writer).map_err(|reason| refuse(path, &reason))?;
            let kind = match &content {
                Content::Special(kind, _) => *kind,
                _ => FileKind::Symlink,
            };
            self.reconcile(kind, path, &mut attributes);
        }
        self.sift(path, FileKind::from_mode(stat.st_mode).unwrap_or(FileKind::Fifo), &mut attributes);
        Ok((attributes, content))
    }

    /// For an inode of an overlay, which may store the mode elsewhere than in the ACL. For other inodes the
    /// kernel's values already agree.
    fn reconcile(&mut self, kind: FileKind, path: &Path, attributes: &mut Attributes) {
        let mut notes = Vec::new();
        acl::reconcile(kind, &mut attributes.mode, &mut attributes.xattrs, &mut notes);
        for note in notes {
            self.intake.warnings.push(format!("{}: {note}", path.display()));
        }
    }

    /// Imports a regular file; `None` for an empty file that is a whiteout.
    fn regular(&mut self, level: &Level, name: &CStr, path: &Path) -> Result<Option<(Attributes, Content)>> {
        let file = open(&level.directory, name, OFlags::NONBLOCK).at("open", path)?;
        let stat = rustix::fs::fstat(&file).at("read", path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::LOOP).at("open", path);
        }
        let mut attributes = attributes(&stat, xattrs(&file).at("read the attributes of", path)?);
        if let Some(writer) = self.writer {
            let own = overlay::take(&mut attributes, writer).map_err(|reason| refuse(path, &reason))?;
            let kind = own.stands_for.map_or(FileKind::Regular, |(kind, _)| kind);
            self.reconcile(kind, path, &mut attributes);
            self.sift(path, kind, &mut attributes);
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
        self.sift(path, FileKind::Regular, &mut attributes);
        let file = File::from(file);
        let content = self.content(&file, &stat, path)?;
        let now = rustix::fs::fstat(&file).at("read", path)?;
        if written_state(&now) != written_state(&stat) {
            self.told.changed.push(path);
        }
        Ok(Some((attributes, Content::Regular(content))))
    }

    fn content(&mut self, file: &File, stat: &Stat, path: &Path) -> Result<FileContent> {
        let size = stat.st_size as u64;
        // Fewer blocks than bytes: the file has holes, which are skipped rather than read.
        if (stat.st_blocks as u64).saturating_mul(512) < size {
            let ranges = data_ranges(file, size).at("look for holes in", path)?;
            let bytes: u64 = ranges.iter().map(|r| r.1).sum();
            let content = content::ingest_ranges(file, size, &ranges, &mut self.intake.batch)?;
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

/// What changes when a file is written to.
fn written_state(stat: &Stat) -> (i64, i64, u64) {
    (stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
}

/// Whether something at `path`, which was listed before, is gone.
fn is_gone(error: &StoreError, path: &Path) -> bool {
    errno_at(error, path).is_some_and(|errno| matches!(errno, Errno::NOENT | Errno::STALE))
}

fn is_missing(directory: &OwnedFd, name: &CStr) -> bool {
    matches!(Look::at(directory, name), Err(Errno::NOENT | Errno::STALE))
}

/// Whether something at `path` is no longer of the type it was found to be.
fn was_replaced(error: &StoreError, path: &Path) -> bool {
    let kinds = [Errno::LOOP, Errno::NOTDIR, Errno::NXIO];
    let link = matches!(error, StoreError::Io { action: READ_LINK, .. });
    errno_at(error, path).is_some_and(|errno| kinds.contains(&errno) || (link && errno == Errno::INVAL))
}

/// The errno of the entry itself, as opposed to one from the store.
fn errno_at(error: &StoreError, path: &Path) -> Option<Errno> {
    match error {
        StoreError::Io { path: of, source, .. } if of == path => Errno::from_io_error(source),
        _ => None,
    }
}

fn refuse(path: &Path, reason: &str) -> StoreError {
    StoreError::Invalid(format!("cannot import {}: {reason}", path.display()))
}
