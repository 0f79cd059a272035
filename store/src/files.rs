//! The files of a store: the only place that opens, makes, replaces and removes files other than objects.
//!
//! Another user may have written to a store, in the past or right now, so nothing here trusts a path. Every
//! path is resolved from a descriptor of the store's directory and may not pass a symbolic link. What is
//! opened must be a regular file that belongs to the store's owner (or to root, who can do anything anyway).
//! Opening a FIFO never blocks. A file that is changed in place must have exactly one name, because another
//! hard link could belong to a file outside the store. Modes are set explicitly, whatever the umask.
//!
//! Objects are identified by their hash: [`Files::open_object`] follows no links and does not block, but does
//! not check owner or type.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::durability::may_ignore_names;
use crate::error::{IoContext, Result};
use crate::id::random_name;
use crate::input::{by_descriptor, open_in};

/// Prefix of the names of unfinished files; whatever lists a directory skips them.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Mode of the store's files.
const PRIVATE: u32 = 0o600;

/// Mode of the store's directories.
const PRIVATE_DIR: u32 = 0o700;

/// A directory and the files in it, at any depth. Methods take full paths: the directory's own path, followed
/// by the path below it.
///
/// A path outside the directory is `InvalidInput`. Methods that change something fail with
/// `ReadOnlyFilesystem` if [`Files::reads_only`].
#[derive(Clone, Debug)]
pub struct Files(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    dir: OwnedFd,
    owner: u32,
    reads_only: bool,
}

/// A data file that a commit may have turned into an object.
#[derive(Debug)]
pub struct Shared {
    /// The file.
    pub file: File,
    /// Whether it is open for writing.
    pub writable: bool,
    /// The number of its hard links.
    pub names: u64,
}

impl Files {
    /// The files below `root`. Symbolic links in `root` itself are followed, since the caller chose it.
    pub fn at(root: &Path) -> io::Result<Files> {
        Files::open_root(root, false)
    }

    /// Like [`Files::at`], but every change is refused.
    pub(crate) fn for_reading(root: &Path) -> io::Result<Files> {
        Files::open_root(root, true)
    }

    fn open_root(root: &Path, reads_only: bool) -> io::Result<Files> {
        let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let owner = rustix::fs::fstat(&dir)?.st_uid;
        Ok(Files(Arc::new(Inner { root: root.to_owned(), dir, owner, reads_only })))
    }

    /// The user that owns the directory.
    pub fn owner(&self) -> u32 {
        self.0.owner
    }

    /// Whether every change is refused, because the files belong to another user.
    pub fn reads_only(&self) -> bool {
        self.0.reads_only
    }

    /// Opens a file for reading.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.checked(self.open_as(path, OFlags::RDONLY)?)
    }

    /// Opens a file to change it in place.
    pub fn open_to_change(&self, path: &Path) -> io::Result<File> {
        self.may_change()?;
        with_one_name(self.checked(self.open_as(path, OFlags::RDWR)?)?)
    }

    /// Opens a file to append to it; makes the file if it does not exist.
    pub fn open_to_append(&self, path: &Path) -> io::Result<File> {
        drop(self.open_or_make(path)?);
        with_one_name(self.checked(self.open_as(path, OFlags::WRONLY | OFlags::APPEND)?)?)
    }

    /// Opens a file to change it in place; makes an empty one if it does not exist.
    pub fn open_or_make(&self, path: &Path) -> io::Result<File> {
        loop {
            match self.open_to_change(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            match self.make(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
    }

    /// Makes a new file, open for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn make(&self, path: &Path) -> io::Result<File> {
        let file = self.make_as(path, PRIVATE)?;
        if file.metadata()?.permissions().mode() & 0o7777 != PRIVATE {
            file.set_permissions(fs::Permissions::from_mode(PRIVATE))?;
        }
        Ok(file)
    }

    /// Makes a new file with `mode`, less the bits of the umask.
    pub fn make_as(&self, path: &Path, mode: u32) -> io::Result<File> {
        self.may_change()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(self.resolve(path, flags, Mode::from_raw_mode(mode))?))
    }

    /// Makes an empty file at `path`, replacing any file there. Processes keep the old file if it is open.
    pub fn replace(&self, path: &Path) -> io::Result<File> {
        loop {
            match self.remove(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match self.make(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
    }

    /// Opens a file that is named like an object. Whoever reads its bytes must verify them.
    pub fn open_object(&self, path: &Path) -> io::Result<File> {
        self.open_as(path, OFlags::RDONLY)
    }

    /// Opens a file that a commit may have turned into an object, for writing if its mode permits that.
    pub fn open_shared(&self, path: &Path) -> io::Result<Shared> {
        let shared = |file: File, writable| {
            let stat = rustix::fs::fstat(&file)?;
            match self.stranger(&stat, FileType::RegularFile) {
                None => Ok(Shared { file, writable, names: stat.st_nlink }),
                Some(reason) => Err(strange(reason)),
            }
        };
        if !self.0.reads_only {
            match self.open_as(path, OFlags::RDWR) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                other => return shared(other?, true),
            }
        }
        shared(self.open_as(path, OFlags::RDONLY)?, false)
    }

    /// Opens a directory to lock, list or sync it.
    pub fn open_dir(&self, path: &Path) -> io::Result<File> {
        let dir = self.open_as(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        match self.is_trusted(dir.metadata()?.uid()) {
            true => Ok(dir),
            false => Err(strange(format!("it belongs to {}", user_name(dir.metadata()?.uid())))),
        }
    }

    /// Opens what is at a path, unless it is a symbolic link, with `O_PATH`: it is pinned, but cannot be read
    /// or written.
    pub fn hold(&self, path: &Path) -> io::Result<OwnedFd> {
        let held = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        // With `O_PATH` and `O_NOFOLLOW` the kernel opens a symbolic link itself.
        match FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode) {
            FileType::Symlink => Err(strange("it is a symbolic link".to_owned())),
            _ => Ok(held),
        }
    }

    /// Stats a path; a symbolic link at its end is not followed.
    pub fn stat(&self, path: &Path) -> io::Result<Stat> {
        let held = self.resolve(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        Ok(rustix::fs::fstat(held)?)
    }

    /// Reads a whole file, or its first `most` bytes if it is longer.
    pub fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(path)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The names in a directory, unsorted.
    pub fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::new(self.open_dir(path)?)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The full paths of everything in a directory, sorted.
    pub(crate) fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut paths: Vec<PathBuf> =
            self.names(dir).at("list", dir)?.iter().map(|name| dir.join(name)).collect();
        // As bytes: only the last component differs, and comparing by components takes ten times as long.
        paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        Ok(paths)
    }

    /// The same, for a directory that may be missing or has just been removed: then there is nothing.
    pub(crate) fn list_if_there(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.list(dir).or_else(|error| match dir.symlink_metadata() {
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(error),
        })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.may_change()?;
        let (parent, name) = self.parent(path)?;
        self.make_dir_at(&parent, name)
    }

    fn make_dir_at(&self, parent: &impl AsFd, name: &OsStr) -> io::Result<()> {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(PRIVATE_DIR))?;
        // The umask may have cleared mode bits. Another process may have replaced the directory by now.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&made)?;
        if !self.is_trusted(stat.st_uid) {
            return Err(strange(format!("it belongs to {}", user_name(stat.st_uid))));
        }
        if stat.st_mode & 0o7777 == PRIVATE_DIR {
            return Ok(());
        }
        fs::set_permissions(by_descriptor(&made), fs::Permissions::from_mode(PRIVATE_DIR))
    }

    /// Makes subdirectories of an existing directory; those that exist are left as they are.
    pub fn make_dirs_in<'a>(&self, dir: &Path, names: impl Iterator<Item = &'a str>) -> io::Result<()> {
        self.may_change()?;
        let dir = self.open_dir(dir)?;
        for name in names {
            match self.make_dir_at(&dir, OsStr::new(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Makes a directory and its missing parents.
    pub fn make_dirs(&self, path: &Path) -> io::Result<()> {
        match self.open_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(drop),
        }
        if let Some(parent) = path.parent().filter(|_| path != self.0.root) {
            self.make_dirs(parent)?;
        }
        match self.make_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_dir(path).map(drop),
            other => other,
        }
    }

    /// Removes a file, or anything else of that name that is not a directory.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.may_change()?;
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    /// Removes a file from a directory that [`Files::open_dir`] has opened before.
    pub fn remove_from_known(&self, path: &Path) -> io::Result<()> {
        self.may_change()?;
        Ok(rustix::fs::unlinkat(&self.0.dir, self.below(path)?, AtFlags::empty())?)
    }

    /// Removes a directory and everything in it.
    pub fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.may_change()?;
        let (parent, name) = self.parent(path)?;
        fs::remove_dir_all(by_descriptor(&parent).join(name))
    }

    /// Renames a file or directory; replaces a file that has the new name.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may_change()?;
        let (from, name) = self.parent(from)?;
        let (to, new) = self.parent(to)?;
        Ok(rustix::fs::renameat(&from, name, &to, new)?)
    }

    /// Sets the mode of a file, a directory or a socket.
    pub fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.may_change()?;
        // `fchmod` does not work on an `O_PATH` descriptor.
        let held = self.hold(path)?;
        fs::set_permissions(by_descriptor(&held), fs::Permissions::from_mode(mode))
    }

    /// Whether the file exists. If it does, sets its change time to now (see
    /// [`crate::object::Objects::refresh`]).
    pub(crate) fn refresh(&self, path: &Path) -> Result<bool> {
        // A call that changes neither time need not update the change time, so the modification time is set.
        let set = |(parent, name): (OwnedFd, &OsStr)| {
            let (omit, now) = (&TimeSpec::UTIME_OMIT, &TimeSpec::UTIME_NOW);
            Ok(utimensat(&parent, name, omit, now, UtimensatFlags::NoFollowSymlink)?)
        };
        match self.may_change().and_then(|()| self.parent(path)).and_then(set) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.at("set the time of", path).map(|()| true),
        }
    }

    /// Makes the entries of a directory durable.
    pub fn sync_dir(&self, path: &Path) -> Result<()> {
        self.open_dir(path).and_then(|dir| dir.sync_all()).at("sync", path)
    }

    /// Makes an open file's name in `dir` durable.
    pub fn sync_name(&self, dir: &Path, file: &File) -> io::Result<()> {
        sync_name(&self.open_dir(dir)?, file)
    }

    /// Makes the entries of a directory durable when no newly named file is at hand, for example after a
    /// removal. Where syncing a directory may do nothing, a new file is made and synced: that also writes
    /// what happened before it.
    pub fn sync_dir_surely(&self, path: &Path) -> Result<()> {
        let dir = self.open_dir(path).at("open", path)?;
        dir.sync_all().at("sync", path)?;
        if may_ignore_names(&dir).at("look at the file system of", path)? {
            let marker = path.join(format!("{TEMP_PREFIX}{}", random_name()?));
            let synced = self.make(&marker).and_then(|file| file.sync_all());
            self.remove(&marker).at("remove", &marker)?;
            synced.at("sync", &marker)?;
        }
        Ok(())
    }

    fn may_change(&self) -> io::Result<()> {
        if !self.0.reads_only {
            return Ok(());
        }
        let reason = "the store is another user's, and open for reading only (--foreign-store)";
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, reason))
    }

    fn is_trusted(&self, uid: u32) -> bool {
        uid == self.0.owner || uid == 0
    }

    /// Returns `file` if it is a regular file of the store's owner or of root.
    fn checked(&self, file: File) -> io::Result<File> {
        let stat = rustix::fs::fstat(&file)?;
        match self.stranger(&stat, FileType::RegularFile) {
            None => Ok(file),
            Some(reason) => Err(strange(reason)),
        }
    }

    /// Why something cannot be a file of the store of the expected kind; `None` if it can.
    pub fn stranger(&self, stat: &Stat, kind: FileType) -> Option<String> {
        if FileType::from_raw_mode(stat.st_mode) != kind {
            let expected = if kind == FileType::Socket { "socket" } else { "regular file" };
            return Some(format!("it is not a {expected}"));
        }
        (!self.is_trusted(stat.st_uid)).then(|| format!("it belongs to {}", user_name(stat.st_uid)))
    }

    fn open_as(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(self.resolve(path, flags, Mode::empty())?))
    }

    /// Opens the directory that contains `path`; returns it with the last component.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().unwrap_or(path);
        Ok((self.resolve(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    /// The part of `path` below the store's directory.
    fn below<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let below = path.strip_prefix(&self.0.root).map_err(|_| {
            let root = self.0.root.display();
            io::Error::new(io::ErrorKind::InvalidInput, format!("it is not below {root}"))
        })?;
        Ok(if below.as_os_str().is_empty() { Path::new(".") } else { below })
    }

    /// Opens a path below the directory's descriptor, without following any symbolic link.
    fn resolve(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let below = self.below(path)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        open_in(&self.0.dir, below, flags, mode, resolve).map_err(|errno| match errno {
            rustix::io::Errno::LOOP => strange("its path contains a symbolic link".to_owned()),
            rustix::io::Errno::NXIO => strange("it is not a regular file".to_owned()),
            errno => errno.into(),
        })
    }
}

/// Makes a file's name in a directory durable; both are open.
pub(crate) fn sync_name(dir: &File, file: &File) -> io::Result<()> {
    dir.sync_all()?;
    // Syncing the file after it was named also writes the name.
    if may_ignore_names(dir)? { file.sync_all() } else { Ok(()) }
}

/// The error for something in the store that karapace did not make.
fn strange(what: String) -> io::Error {
    io::Error::other(format!(
        "{what}, which karapace never creates in a store: find out who did, and remove it"
    ))
}

/// Refuses a file with several hard links.
fn with_one_name(file: File) -> io::Result<File> {
    match file.metadata()?.nlink() {
        0 | 1 => Ok(file),
        _ => Err(strange("it has more than one name (hard links)".to_owned())),
    }
}

/// A user's name for messages; `user <uid>` when it is not known.
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

/// The disk space in bytes that removing a file frees: 0 while it has another hard link.
pub(crate) fn freed(metadata: &fs::Metadata) -> u64 {
    if metadata.nlink() == 1 { metadata.blocks() * 512 } else { 0 }
}

/// The last component of a path, if it is UTF-8.
pub(crate) fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

mod replace;
#[cfg(test)]
mod tests;
