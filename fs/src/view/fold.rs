//! Applies what an overlay over the view holds: afterwards the view shows what the overlay showed.
//!
//! Nothing is journalled. A checkpoint at the end makes all of it take effect at once, or nothing.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karapace_store::error::StoreError;
use karapace_store::import::upper::{self, Entry, Held, Redirect, Writer};
use karapace_store::inode::{FileKind, Ino, ROOT_INO};
use nix::unistd::{getegid, geteuid};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::attr::{Caller, RenameMode};
use crate::error::{At as _, Error, Result};
use crate::view::View;
use crate::view::ops::adopt::Source;

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

/// A directory of the upper being applied.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    /// It in the view.
    ino: Ino,
    held: Held,
    entries: std::vec::IntoIter<Entry>,
}

/// A path below the overlay.
type Below = Vec<Box<[u8]>>;

/// A fold in progress.
struct Fold<'a> {
    view: &'a View,
    writer: Writer,
    is_cancelled: &'a dyn Fn() -> bool,
    /// Inodes with several names seen so far.
    linked: HashMap<(u64, u64), Ino>,
    /// Renamed directories by their place in the upper, and the name that they have meanwhile in `aside`.
    /// `None`: the view has none, because it was a session's placeholder.
    renamed: HashMap<PathBuf, Option<Vec<u8>>>,
    aside: Option<(Ino, Vec<u8>)>,
    notes: Vec<String>,
}

impl View {
    /// Applies what overlayfs has left in the upper directory at `path`, which lay over this view. The view
    /// must have no changes. Files with content become data files, by renaming, so the directory cannot be
    /// used again. It must be on the file system of the view's upper, and no other process may use either.
    /// Returns what could not be kept.
    ///
    /// Takes effect with the next checkpoint, as by [`View::close`]; that syncs the data too. After an error
    /// the view must be dropped without one.
    ///
    /// # Errors
    /// What cannot be read; [`StoreError::Invalid`] if `writer` would not write it;
    /// [`StoreError::Cancelled`]; [`Error::Invalid`] if the view has changes.
    pub fn fold(&self, path: &Path, writer: Writer, is_cancelled: &dyn Fn() -> bool) -> Result<Vec<String>> {
        self.writable()?;
        if self.state.read().dirty_nodes().next().is_some() {
            return Err(Error::Invalid("what is uncommitted must be stored before an overlay is folded"));
        }
        self.stop_journal();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let top = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
        let (linked, renamed) = (HashMap::new(), HashMap::new());
        let mut fold =
            Fold { view: self, writer, is_cancelled, linked, renamed, aside: None, notes: Vec::new() };
        if writer == Writer::Root {
            fold.put_renamed_aside(&top, path)?;
        }
        let held = upper::top(&top, path, writer, &mut fold.notes)?;
        fold.apply(top, path, held)?;
        fold.notes.sort();
        Ok(fold.notes)
    }
}

impl Fold<'_> {
    /// Uses an explicit stack: a directory may be nested deeper than a thread's stack allows.
    fn apply(&mut self, top: OwnedFd, path: &Path, held: Held) -> Result<()> {
        let mut stack = vec![self.level(top, path.to_owned(), ROOT_INO, held)?];
        while let Some(level) = stack.last_mut() {
            if (self.is_cancelled)() {
                return Err(StoreError::Cancelled.into());
            }
            match level.entries.next() {
                Some(entry) => {
                    let below = self.entry(level, entry)?;
                    stack.extend(below);
                }
                None => {
                    // Last, because each change in a directory changes its times.
                    if level.ino == ROOT_INO
                        && let Some((_, name)) = self.aside.take()
                    {
                        self.view.rmdir(ROOT_INO, &name)?;
                    }
                    self.view.describe(level.ino, &level.held.record)?;
                    stack.pop();
                }
            }
        }
        Ok(())
    }

    fn level(&mut self, directory: OwnedFd, path: PathBuf, ino: Ino, held: Held) -> Result<Level> {
        let marks = (self.writer, held.whiteout_files);
        let entries = upper::entries(&directory, &path, marks, &mut self.notes)?.into_iter();
        Ok(Level { directory, path, ino, held, entries })
    }

    /// Applies one entry; a directory is returned, to be walked.
    fn entry(&mut self, level: &Level, entry: Entry) -> Result<Option<Level>> {
        let (Entry::Absent(name) | Entry::Present(name, _)) = &entry;
        let path = level.path.join(OsStr::from_bytes(name));
        self.entry_at(level, entry, &path).map_err(|error| match error {
            // These say where.
            Error::Host { .. } | Error::Store(_) => error,
            other => Error::host("fold", &path, std::io::Error::from_raw_os_error(other.errno())),
        })
    }

    fn entry_at(&mut self, level: &Level, entry: Entry, path: &Path) -> Result<Option<Level>> {
        let (name, held) = match entry {
            Entry::Absent(name) => return self.remove(level.ino, &name).map(|()| None),
            Entry::Present(name, held) => (name, *held),
        };
        let c_name = CString::new(name.to_vec()).map_err(|_| Error::Invalid("a name with a NUL"))?;
        if held.record.kind() == FileKind::Directory {
            let ino = self.directory(level.ino, &name, path, &held)?;
            let directory = upper::open(&level.directory, &c_name, path)?;
            return self.level(directory, path.to_owned(), ino, held).map(Some);
        }
        self.remove(level.ino, &name)?;
        let known = held.linked.and_then(|key| self.linked.get(&key).copied());
        if let Some(ino) = known {
            // Its file has been taken over, so it no longer says what the inode's attributes are.
            self.view.link(ino, level.ino, &name)?;
            self.view.forget(ino, 1);
            return Ok(None);
        }
        let mut source = None;
        if held.size > 0 {
            take_over(&level.directory, &c_name, path, &held)?;
            source = Some(Source { directory: &level.directory, name: &c_name, size: held.size });
        }
        let ino = self.view.adopt(level.ino, &name, &held.record, source)?;
        self.linked.extend(held.linked.map(|key| (key, ino)));
        Ok(None)
    }

    /// The directory in the view that an upper directory lies over, or a new one.
    fn directory(&mut self, parent: Ino, name: &[u8], path: &Path, held: &Held) -> Result<Ino> {
        let renamed = self.renamed.remove(path);
        if let (Some(Some(meanwhile)), Some((aside, _))) = (&renamed, &self.aside) {
            let aside = *aside;
            self.remove(parent, name)?;
            self.view.rename(&ROOT, aside, meanwhile, parent, name, RenameMode::NoReplace)?;
            return Ok(self.find(parent, name)?.ok_or(Error::NotFound)?.0);
        }
        match self.find(parent, name)? {
            Some((ino, FileKind::Directory)) if !held.opaque && renamed.is_none() => return Ok(ino),
            Some(_) => self.remove(parent, name)?,
            None => {}
        }
        self.view.adopt(parent, name, &held.record, None)
    }

    fn find(&self, parent: Ino, name: &[u8]) -> Result<Option<(Ino, FileKind)>> {
        match self.view.lookup(parent, name) {
            Ok(found) => {
                // Its directory, or its change, keeps it in the table.
                let kind = FileKind::from_mode(found.mode).ok_or(Error::Invalid("unknown file type"))?;
                Ok(Some((found.ino, kind)))
            }
            Err(Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what has this name, if anything has, with all that is below.
    fn remove(&self, parent: Ino, name: &[u8]) -> Result<()> {
        // Directories that are being emptied, each with the names that are left in its parent.
        let mut stack = vec![(parent, vec![name.to_vec()])];
        while let Some((parent, names)) = stack.last_mut() {
            let parent = *parent;
            if (self.is_cancelled)() {
                return Err(StoreError::Cancelled.into());
            }
            let Some(name) = names.last().cloned() else {
                stack.pop();
                continue;
            };
            match self.find(parent, &name)? {
                Some((ino, FileKind::Directory)) => {
                    let below = self.names_in(ino)?;
                    if !below.is_empty() {
                        stack.push((ino, below));
                        continue;
                    }
                    self.view.rmdir(parent, &name)?;
                    self.view.forget(ino, 1);
                }
                Some((ino, _)) => {
                    self.view.unlink(parent, &name)?;
                    self.view.forget(ino, 1);
                }
                None => {}
            }
            names.pop();
        }
        Ok(())
    }

    fn names_in(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.view.readdir(ino, 0, false, &mut |item| {
            if !matches!(item.name, b"." | b"..") {
                names.push(item.name.to_vec());
            }
            true
        })?;
        Ok(names)
    }

    /// Moves all directories of the view that the overlay shows elsewhere to a directory of their own: what
    /// is there when they are moved to their place no longer matters then.
    fn put_renamed_aside(&mut self, top: &OwnedFd, path: &Path) -> Result<()> {
        let found = self.renamed_in(top, path)?;
        // All are looked up before the first is moved.
        let located: Vec<_> = found.iter().map(|(_, from)| self.locate(from)).collect::<Result<_>>()?;
        if located.is_empty() {
            return Ok(());
        }
        let name = self.free_name(top)?;
        let aside = self.view.mkdir(&ROOT, ROOT_INO, &name, 0o700)?.ino;
        for (number, ((path, _), place)) in found.into_iter().zip(located).enumerate() {
            let new = number.to_string().into_bytes();
            if let Some((parent, old)) = &place {
                self.view.rename(&ROOT, *parent, old, aside, &new, RenameMode::NoReplace)?;
            }
            self.renamed.insert(path, place.map(|_| new));
        }
        self.aside = Some((aside, name));
        Ok(())
    }

    /// The renamed directories of the upper, and where each was below.
    fn renamed_in(&self, top: &OwnedFd, path: &Path) -> Result<Vec<(PathBuf, Below)>> {
        let mut found = Vec::new();
        let level = |directory: OwnedFd, path: PathBuf, below: Below| {
            let names = upper::redirects(&directory, &path, self.writer)?.into_iter();
            Ok::<_, Error>((directory, path, below, names))
        };
        let mut stack = vec![level(top.try_clone().at("open", path)?, path.to_owned(), Vec::new())?];
        while let Some((directory, path, below, names)) = stack.last_mut() {
            let Some((name, redirect)) = names.next() else {
                stack.pop();
                continue;
            };
            let of = path.join(OsStr::from_bytes(name.to_bytes()));
            // One that is back in its old place counts too: what was there may have been removed since.
            let is_renamed = redirect.is_some();
            let from = match redirect {
                Some(Redirect::Path(whole)) => whole,
                Some(Redirect::Name(other)) => [&below[..], &[other]].concat(),
                None => [&below[..], &[name.to_bytes().into()]].concat(),
            };
            if is_renamed {
                found.push((of.clone(), from.clone()));
            }
            let opened = upper::open(directory, &name, &of)?;
            stack.push(level(opened, of, from)?);
        }
        Ok(found)
    }

    /// The parent and the name of a directory in the view; `None` if there is none at this path. What a
    /// session mounts on, and the view lacks, is below the overlay and not in the view.
    fn locate(&self, from: &[Box<[u8]>]) -> Result<Option<(Ino, Vec<u8>)>> {
        let Some((last, parents)) = from.split_last() else { return Ok(None) };
        let mut at = ROOT_INO;
        for name in parents {
            match self.find(at, name)? {
                Some((ino, FileKind::Directory)) => at = ino,
                _ => return Ok(None),
            }
        }
        let found = self.find(at, last)?;
        Ok(found.filter(|(_, kind)| *kind == FileKind::Directory).map(|_| (at, last.to_vec())))
    }

    /// A name that neither the view's root has nor the upper's.
    fn free_name(&self, top: &OwnedFd) -> Result<Vec<u8>> {
        let mut number = 0;
        loop {
            let name = format!(".renamed-{number}");
            let above = rustix::fs::statat(top, &*name, AtFlags::SYMLINK_NOFOLLOW);
            if matches!(above, Err(Errno::NOENT)) && self.find(ROOT_INO, name.as_bytes())?.is_none() {
                return Ok(name.into_bytes());
            }
            number += 1;
        }
    }
}

/// Gives a regular file to this process, as all data files are, without attributes.
fn take_over(directory: &OwnedFd, name: &CString, path: &Path, held: &Held) -> Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let (owner, group, mode) = held.on_disk;
    if (owner, group) != (uid, gid) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).at("take over", path)?;
    }
    if mode != 0o600 {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(0o600), AtFlags::empty())
            .at("set the mode of", path)?;
    }
    if held.has_xattrs {
        upper::strip_xattrs(directory, name, path)?;
    }
    Ok(())
}
