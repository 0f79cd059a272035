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

/// A fold in progress.
struct Fold<'a> {
    view: &'a View,
    writer: Writer,
    is_cancelled: &'a dyn Fn() -> bool,
    /// Inodes with several names seen so far.
    linked: HashMap<(u64, u64), Ino>,
    /// Renamed directories by their place in the upper, and the name that they have meanwhile in `aside`.
    renamed: HashMap<PathBuf, Vec<u8>>,
    aside: Option<(Ino, Vec<u8>)>,
    notes: Vec<String>,
}

impl View {
    /// Applies what overlayfs has left in the directory `upper`, which lay over this view. Files with content
    /// become data files, by renaming, so the upper cannot be used again. It must be on the file system of
    /// the view's upper, and no other process may use either. Returns what could not be kept.
    ///
    /// Takes effect with the next checkpoint, as by [`View::close`]; that syncs the data too. After an error
    /// the view must be dropped without one.
    ///
    /// # Errors
    /// What cannot be read; [`StoreError::Invalid`] if the upper was not made by `writer` over this view;
    /// [`StoreError::Cancelled`].
    pub fn fold(&self, path: &Path, writer: Writer, is_cancelled: &dyn Fn() -> bool) -> Result<Vec<String>> {
        self.writable()?;
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
        let (name, held) = match entry {
            Entry::Absent(name) => return self.remove(level.ino, &name).map(|()| None),
            Entry::Present(name, held) => (name, *held),
        };
        let path = level.path.join(OsStr::from_bytes(&name));
        let c_name = CString::new(name.to_vec()).map_err(|_| Error::Invalid("a name with a NUL"))?;
        if held.record.kind() == FileKind::Directory {
            let ino = self.directory(level.ino, &name, &path, &held)?;
            let directory = upper::open(&level.directory, &c_name, &path)?;
            return self.level(directory, path, ino, held).map(Some);
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
            take_over(&level.directory, &c_name, &path, &held)?;
            source = Some(Source { directory: &level.directory, name: &c_name, size: held.size });
        }
        let ino = self.view.adopt(level.ino, &name, &held.record, source)?;
        self.linked.extend(held.linked.map(|key| (key, ino)));
        Ok(None)
    }

    /// The directory in the view that an upper directory lies over, or a new one.
    fn directory(&mut self, parent: Ino, name: &[u8], path: &Path, held: &Held) -> Result<Ino> {
        if let Some(meanwhile) = self.renamed.remove(path)
            && let Some((aside, _)) = self.aside
        {
            self.remove(parent, name)?;
            self.view.rename(&ROOT, aside, &meanwhile, parent, name, RenameMode::NoReplace)?;
            return self.find(parent, name).map(|found| found.map_or(0, |(ino, _)| ino));
        }
        match self.find(parent, name)? {
            Some((ino, FileKind::Directory)) if !held.opaque => return Ok(ino),
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
        let Some((ino, kind)) = self.find(parent, name)? else { return Ok(()) };
        let removed = if kind == FileKind::Directory {
            self.names_in(ino)?.iter().try_for_each(|below| self.remove(ino, below))?;
            self.view.rmdir(parent, name)
        } else {
            self.view.unlink(parent, name)
        };
        self.view.forget(ino, 1);
        removed
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
        let mut found: Vec<(PathBuf, Vec<Box<[u8]>>)> = Vec::new();
        let mut stack = vec![(top.try_clone().at("open", path)?, path.to_owned(), Vec::new())];
        while let Some((directory, path, below)) = stack.pop() {
            for (name, redirect) in upper::redirects(&directory, &path, self.writer)? {
                let of = path.join(OsStr::from_bytes(name.to_bytes()));
                let mut from: Vec<Box<[u8]>> = below.clone();
                // One that is back in its old place counts too: what was there may have been removed since.
                let is_renamed = redirect.is_some();
                match redirect {
                    None => from.push(name.to_bytes().into()),
                    Some(Redirect::Name(other)) => from.push(other),
                    Some(Redirect::Path(whole)) => from = whole,
                }
                if is_renamed {
                    found.push((of.clone(), from.clone()));
                }
                stack.push((upper::open(&directory, &name, &of)?, of, from));
            }
        }
        // All are looked up before the first is moved.
        let located: Vec<_> =
            found.iter().map(|(path, from)| self.locate(path, from)).collect::<Result<_>>()?;
        if located.is_empty() {
            return Ok(());
        }
        let name = self.free_name()?;
        let aside = self.view.mkdir(&ROOT, ROOT_INO, &name, 0o700)?.ino;
        for (number, ((path, _), (parent, old))) in found.into_iter().zip(located).enumerate() {
            let new = number.to_string().into_bytes();
            self.view.rename(&ROOT, parent, &old, aside, &new, RenameMode::NoReplace)?;
            self.renamed.insert(path, new);
        }
        self.aside = Some((aside, name));
        Ok(())
    }

    /// The directory and the name of a path in the view.
    fn locate(&self, path: &Path, from: &[Box<[u8]>]) -> Result<(Ino, Vec<u8>)> {
        let lost = || {
            let from = from.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/");
            let path = path.display();
            StoreError::Invalid(format!("cannot fold {path}: it was /{from}, which is not below the overlay"))
        };
        let (last, parents) = from.split_last().ok_or_else(lost)?;
        let mut at = ROOT_INO;
        for name in parents {
            at = self.find(at, name)?.ok_or_else(lost)?.0;
        }
        match self.find(at, last)? {
            Some((_, FileKind::Directory)) => Ok((at, last.to_vec())),
            _ => Err(lost().into()),
        }
    }

    /// A name that the root does not have.
    fn free_name(&self) -> Result<Vec<u8>> {
        let mut number = 0;
        loop {
            let name = format!(".renamed-{number}").into_bytes();
            if self.find(ROOT_INO, &name)?.is_none() {
                return Ok(name);
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
