//! Reads the upper directory of an overlay entry by entry, for those who apply it to a view. They know which
//! [`Writer`] made it.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};

use super::host;
use super::overlay::{self, Own};
use crate::acl;
use crate::content::FileContent;
use crate::error::{IoContext as _, Result, StoreError};
use crate::inode::{Body, FileKind, InodeRecord, Timestamp, Xattrs};

pub use super::builder::Redirect;
pub use super::overlay::Writer;

/// An attribute of files that are a session's own and lie below the overlay. It is left out.
pub const SESSION_FILE: &[u8] = b"user.karapace.session";

/// What a name in an upper directory means.
#[derive(Debug)]
pub enum Entry {
    /// Nothing has this name, whatever is below.
    Absent(Box<[u8]>),
    /// An inode.
    Present(Box<[u8]>, Box<Held>),
}

/// An inode of an upper directory.
#[derive(Debug)]
pub struct Held {
    /// As the overlay shows it, but for the inode number and the link count, which are 0. A regular file's
    /// content is in its file.
    pub record: InodeRecord,
    /// Bytes of content of a regular file.
    pub size: u64,
    /// For an inode other than a directory that has several names: what tells it from others.
    pub linked: Option<(u64, u64)>,
    /// Whether the file has extended attributes, the overlay's own included.
    pub has_xattrs: bool,
    /// Who owns the file, and its mode.
    pub on_disk: (u32, u32, u32),
    /// For a directory: nothing from below shows in it.
    pub opaque: bool,
    /// For a directory: whiteouts in it may be empty files with an attribute.
    pub whiteout_files: bool,
    /// For a directory that was renamed: where it was below.
    pub redirect: Option<Redirect>,
}

/// Reads the entries of the directory, in any order. `whiteout_files` as in its [`Held`]. Notes about what
/// cannot be kept go to `notes`.
///
/// # Errors
/// What cannot be read, and [`StoreError::Invalid`] for what overlayfs would not write.
pub fn entries(
    directory: &OwnedFd,
    path: &Path,
    (writer, whiteout_files): (Writer, bool),
    notes: &mut Vec<String>,
) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory).map_err(io::Error::from).at("list", path)? {
        let entry = entry.map_err(io::Error::from).at("list", path)?;
        let name = entry.file_name();
        let bytes = name.to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        let of = path.join(OsStr::from_bytes(bytes));
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(io::Error::from).at("read", &of)?;
        if overlay::special(bytes, &stat, writer).map_err(|reason| refuse(&of, &reason))?.is_some() {
            found.push(Entry::Absent(bytes.into()));
            continue;
        }
        let xattrs = host::named_xattrs(directory, name).at("read the attributes of", &of)?;
        let (mut held, own) = held(&stat, xattrs, &of, writer, notes)?;
        if own.whiteout && whiteout_files && held.size == 0 {
            found.push(Entry::Absent(bytes.into()));
            continue;
        }
        if let Body::Symlink(target) = &mut held.record.body {
            let read = rustix::fs::readlinkat(directory, name, Vec::new()).map_err(io::Error::from);
            *target = read.at("read the link", &of)?.into_bytes().into();
        }
        found.push(Entry::Present(bytes.into(), Box::new(held)));
    }
    Ok(found)
}

/// The upper directory itself.
///
/// # Errors
/// As for [`entries`].
pub fn top(directory: &OwnedFd, path: &Path, writer: Writer, notes: &mut Vec<String>) -> Result<Held> {
    let stat = rustix::fs::fstat(directory).map_err(io::Error::from).at("read", path)?;
    let xattrs = host::xattrs(directory).at("read the attributes of", path)?;
    held(&stat, xattrs, path, writer, notes).map(|(held, _)| held)
}

/// Opens a directory in an upper directory.
///
/// # Errors
/// If it cannot be opened.
pub fn open(directory: &OwnedFd, name: &CStr, path: &Path) -> Result<OwnedFd> {
    host::open(directory, name, OFlags::DIRECTORY).map_err(io::Error::from).at("open", path)
}

fn held(
    stat: &Stat,
    xattrs: Xattrs,
    path: &Path,
    writer: Writer,
    notes: &mut Vec<String>,
) -> Result<(Held, Own)> {
    let refuse = |reason: &str| refuse(path, reason);
    let kind = FileKind::from_mode(stat.st_mode).ok_or_else(|| refuse("its type is unknown"))?;
    let has_xattrs = xattrs.iter().next().is_some();
    let mut attributes = host::attributes(stat, xattrs);
    let kept = attributes.xattrs.iter().filter(|(name, _)| !overlay::is_label(name) && *name != SESSION_FILE);
    attributes.xattrs = kept.collect();
    let own = overlay::take(&mut attributes, writer).map_err(|reason| refuse(&reason))?;
    if own.metadata_only {
        return Err(refuse("its content is elsewhere (metacopy)"));
    }
    let mut said = Vec::new();
    acl::reconcile(kind, &mut attributes.mode, &mut attributes.xattrs, &mut said);
    notes.extend(said.into_iter().map(|note| format!("{}: {note}", path.display())));
    let ctime = Timestamp { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 };
    let body = match kind {
        FileKind::Directory => Body::Directory { tree: None, links: false },
        FileKind::Regular => Body::Regular(FileContent::empty()),
        FileKind::Symlink => Body::Symlink(Box::default()),
        _ => Body::Special,
    };
    let rdev = if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { stat.st_rdev } else { 0 };
    let record = InodeRecord {
        ino: 0,
        mode: kind.to_mode() | attributes.mode,
        nlink: 0,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev,
        atime: attributes.mtime,
        mtime: attributes.mtime,
        ctime,
        xattrs: attributes.xattrs,
        body,
    };
    let linked = (kind != FileKind::Directory && stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
    let held = Held {
        record,
        size: if kind == FileKind::Regular { stat.st_size as u64 } else { 0 },
        linked,
        has_xattrs,
        on_disk: (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
        opaque: own.opaque,
        whiteout_files: own.xattr_whiteouts,
        redirect: own.redirect.clone(),
    };
    Ok((held, own))
}

fn refuse(path: &Path, reason: &str) -> StoreError {
    StoreError::Invalid(format!("cannot fold {}: {reason}", path.display()))
}

/// The directories in a directory, and where they were below if they were renamed.
///
/// # Errors
/// As for [`entries`].
pub fn redirects(
    directory: &OwnedFd,
    path: &Path,
    writer: Writer,
) -> Result<Vec<(CString, Option<Redirect>)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory).map_err(io::Error::from).at("list", path)? {
        let entry = entry.map_err(io::Error::from).at("list", path)?;
        let name = entry.file_name();
        let may_be_directory = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        if !may_be_directory || matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let of = path.join(OsStr::from_bytes(name.to_bytes()));
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(io::Error::from).at("read", &of)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            continue;
        }
        let xattrs = host::named_xattrs(directory, name).at("read the attributes of", &of)?;
        let (held, _) = held(&stat, xattrs, &of, writer, &mut Vec::new())?;
        found.push((name.to_owned(), held.redirect));
    }
    Ok(found)
}

/// Removes all extended attributes of a regular file.
///
/// # Errors
/// If one cannot be removed.
pub fn strip_xattrs(directory: &OwnedFd, name: &CStr, path: &Path) -> Result<()> {
    let by_name = crate::input::by_descriptor(directory).join(OsStr::from_bytes(name.to_bytes()));
    for (attribute, _) in host::named_xattrs(directory, name).at("read the attributes of", path)?.iter() {
        // A label of a security module stays: the machine gives one to every file.
        if !overlay::is_label(attribute) {
            let removed = rustix::fs::lremovexattr(&by_name, OsStr::from_bytes(attribute));
            removed.map_err(io::Error::from).at("remove an attribute of", path)?;
        }
    }
    Ok(())
}
