//! Decodes what overlayfs and fuse-overlayfs write into an upper directory about the layers below.
//!
//! Sources: the kernel's Documentation/filesystems/overlayfs.rst, and fuse-overlayfs' manual page.

use std::path::Path;

use rustix::fs::{FileType, Stat};

use super::archive::{OPAQUE, WHITEOUT};
use super::builder::{Attributes, Redirect, normalise};
use crate::error::{Result, StoreError};
use crate::inode::{FileKind, Xattrs};

/// Prefixes of overlayfs's attributes: of a mount made by root, and of one in a user namespace (`userxattr`).
const KERNEL: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// What wrote an upper directory. Of what another would have written, nothing is special.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// This is not known: any overlay.
    Any,
    /// Overlayfs, mounted by root.
    Root,
    /// Overlayfs, mounted in a user namespace (`userxattr`).
    User,
}

impl Writer {
    /// The prefixes of overlayfs's attributes, and those of fuse-overlayfs.
    fn prefixes(self) -> (&'static [&'static [u8]], &'static [&'static [u8]]) {
        match self {
            Writer::Any => (&KERNEL, &FUSE),
            Writer::Root => (&KERNEL[..1], &[]),
            Writer::User => (&KERNEL[1..], &[]),
        }
    }
}

/// Prefixes of fuse-overlayfs's attributes.
const FUSE: [&[u8]; 2] = [b"user.fuseoverlayfs.", b"security.fuseoverlayfs."];

/// Owner and mode as shown by a mount whose host file system cannot store them.
const CONTAINERS: &[u8] = b"user.containers.override_stat";

/// An entry that marks what is hidden, and is not itself part of the tree.
pub(super) enum Special<'a> {
    /// Hides this name of the layers below.
    Whiteout(&'a [u8]),
    /// Hides everything of the layers below in the directory.
    Opaque,
}

/// What the overlay's own attributes say about an inode.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    /// For a directory: nothing from below shows in it.
    pub opaque: bool,
    /// For a directory: empty files in it with the whiteout attribute are whiteouts.
    pub xattr_whiteouts: bool,
    /// For an empty file: it is a whiteout, if its directory allows that.
    pub whiteout: bool,
    /// Where it was below, if it was renamed.
    pub redirect: Option<Redirect>,
    /// For a regular file: its content is that of the file below.
    pub metadata_only: bool,
    /// For a regular file: the kind and device number it is shown with.
    pub stands_for: Option<(FileKind, u64)>,
}

/// Recognises a whiteout or opaque mark by kind and name: a character device 0:0, or an empty file with a
/// name as in image layers.
pub(super) fn special<'a>(
    name: &'a [u8],
    stat: &Stat,
    writer: Writer,
) -> std::result::Result<Option<Special<'a>>, String> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_device = kind == FileType::CharacterDevice && stat.st_rdev == 0;
    let Some(hidden) = name.strip_prefix(WHITEOUT).filter(|_| writer == Writer::Any) else {
        return Ok(is_device.then_some(Special::Whiteout(name)));
    };
    if !(is_device || (kind == FileType::RegularFile && stat.st_size == 0)) {
        return Err("it has the name of a whiteout but is not one: rename it".to_owned());
    }
    if name == OPAQUE {
        return Ok(Some(Special::Opaque));
    }
    if matches!(hidden, b"" | b"." | b"..") {
        return Err("it is a whiteout for a name that no file can have".to_owned());
    }
    Ok(Some(Special::Whiteout(hidden)))
}

/// Removes the overlay's own attributes from `attributes`, after applying those that change owner and mode.
pub(super) fn take(attributes: &mut Attributes, writer: Writer) -> std::result::Result<Own, String> {
    let (kernel, fuse) = writer.prefixes();
    let (mut own, mut kept) = (Own::default(), Xattrs::new());
    let mut shown = None;
    for (name, value) in attributes.xattrs.iter() {
        if let Some((prefix, rest)) = strip(name, kernel) {
            if let Some(nested) = rest.strip_prefix(b"overlay.") {
                // An overlay on an overlay: this one stores the upper one's attributes under an escaped name.
                kept.set(&[prefix, nested].concat(), value);
            } else {
                own.kernel(rest, value)?;
            }
        } else if let Some((_, rest)) = strip(name, fuse) {
            own.opaque |= rest == b"opaque";
            if rest == b"override_stat" {
                shown = Some(value.to_vec());
            }
        } else if name == CONTAINERS && writer == Writer::Any {
            shown = Some(value.to_vec());
        } else {
            kept.set(name, value);
        }
    }
    if let Some(text) = shown {
        let bad = || format!("its attribute override_stat is {:?}", String::from_utf8_lossy(&text));
        own.stands_for = override_stat(&text, attributes).ok_or_else(bad)?;
    }
    attributes.xattrs = kept;
    Ok(own)
}

impl Own {
    fn kernel(&mut self, name: &[u8], value: &[u8]) -> std::result::Result<(), String> {
        match (name, value) {
            (b"opaque", b"y") => self.opaque = true,
            (b"opaque", b"x") => self.xattr_whiteouts = true,
            (b"whiteout", _) => self.whiteout = true,
            (b"metacopy", _) => self.metadata_only = true,
            (b"redirect", b"") => return Err("it was renamed from an empty name".to_owned()),
            (b"redirect", value) => {
                let path = normalise(value)?;
                self.redirect = Some(match &path[..] {
                    [name] if !value.starts_with(b"/") => Redirect::Name(name.clone()),
                    _ => Redirect::Path(path),
                });
            }
            // origin, impure, nlink, upper, uuid, protattr, …: only for the overlay itself.
            _ => {}
        }
        Ok(())
    }
}

fn strip<'a>(name: &'a [u8], prefixes: &[&'static [u8]]) -> Option<(&'static [u8], &'a [u8])> {
    prefixes.iter().find_map(|prefix| Some((*prefix, name.strip_prefix(*prefix)?)))
}

/// Whether a security module of the machine sets this attribute by itself, on all files.
pub(super) fn is_label(name: &[u8]) -> bool {
    let labels = [&b"selinux"[..], b"ima", b"evm", b"apparmor"];
    let rest = name.strip_prefix(b"security.");
    rest.is_some_and(|rest| labels.contains(&rest) || rest.starts_with(b"SMACK64"))
}

/// Parses `uid:gid:mode[:kind[-major-minor]]`, the mode in octal, and sets owner and mode. The inner value is
/// the kind and device number that a regular file is shown with.
fn override_stat(text: &[u8], attributes: &mut Attributes) -> Option<Option<(FileKind, u64)>> {
    let mut fields = std::str::from_utf8(text).ok()?.trim_end_matches('\0').split(':');
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
    let mut kind = fields.next().unwrap_or("file").split('-');
    let stands_for = match kind.next()? {
        "file" | "dir" => None,
        "pipe" => Some((FileKind::Fifo, 0)),
        "socket" => Some((FileKind::Socket, 0)),
        device @ ("char" | "block") => {
            let device_kind = if device == "char" { FileKind::CharDevice } else { FileKind::BlockDevice };
            let number = rustix::fs::makedev(kind.next()?.parse().ok()?, kind.next()?.parse().ok()?);
            Some((device_kind, number))
        }
        _ => return None,
    };
    (attributes.uid, attributes.gid, attributes.mode) = (uid, gid, mode);
    Some(stands_for)
}

/// Refuses an upper that would be misread: only root can read the attributes that root's overlayfs writes.
pub(super) fn check_readable(path: &Path, owner: u32) -> Result<()> {
    if owner == 0 && !nix::unistd::geteuid().is_root() {
        let path = path.display();
        return Err(StoreError::Invalid(format!(
            "cannot import {path}: it belongs to root, and only root can read overlayfs's marks of deleted files in it: import \
             it as root"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(xattrs: &[(&str, &str)]) -> Attributes {
        Attributes { mode: 0o600, xattrs: xattrs.iter().copied().collect(), ..Attributes::default() }
    }

    #[test]
    fn the_overlays_own_attributes_are_taken_out() {
        let mut all = attributes(&[
            ("trusted.overlay.opaque", "y"),
            ("trusted.overlay.origin", "x"),
            ("trusted.overlay.overlay.opaque", "y"),
            ("user.overlay.redirect", "/a//b"),
            ("user.overlay.metacopy", ""),
            ("user.fuseoverlayfs.origin", "x"),
            ("user.note", "kept"),
        ]);
        let own = take(&mut all, Writer::Any).unwrap();
        assert!(own.opaque && own.metadata_only && !own.whiteout);
        assert_eq!(own.redirect, Some(Redirect::Path(vec![b"a"[..].into(), b"b"[..].into()])));
        let kept: Vec<_> = all.xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
        assert_eq!(kept, ["trusted.overlay.opaque", "user.note"]);
        let own = take(&mut attributes(&[("user.overlay.redirect", "b")]), Writer::Any).unwrap();
        assert_eq!(own.redirect, Some(Redirect::Name(b"b"[..].into())));
        assert!(take(&mut attributes(&[("user.overlay.redirect", "/a/../b")]), Writer::Any).is_err());
        assert!(take(&mut attributes(&[("user.overlay.redirect", "")]), Writer::Any).is_err());
    }

    /// A program may set what another overlay would have written.
    #[test]
    fn only_its_own_attributes_are_taken_out_if_the_writer_is_known() {
        let set = [
            ("trusted.overlay.opaque", "y"),
            ("user.overlay.opaque", "y"),
            ("user.fuseoverlayfs.opaque", "y"),
            ("user.containers.override_stat", "1:2:644"),
        ];
        for (writer, own) in [(Writer::Root, 0), (Writer::User, 1)] {
            let mut all = attributes(&set);
            assert!(take(&mut all, writer).unwrap().opaque);
            let mut kept = set.to_vec();
            kept.remove(own);
            assert_eq!(all.xattrs, kept.into_iter().collect());
            assert_eq!((all.uid, all.mode), (0, 0o600));
            let mut others = attributes(&[set[1 - own], set[2], set[3]]);
            assert_eq!(take(&mut others, writer).unwrap(), Own::default());
            assert_eq!(others.xattrs.len(), 3);
        }
        let empty = tempfile::NamedTempFile::new().unwrap();
        let empty = rustix::fs::fstat(&empty);
        assert!(special(b".wh.name", &empty.unwrap(), Writer::Root).unwrap().is_none());
        assert!(special(b".wh.name", &empty.unwrap(), Writer::Any).unwrap().is_some());
    }

    #[test]
    fn override_attributes_give_owner_and_mode() {
        let mut all = attributes(&[("user.fuseoverlayfs.override_stat", "1:2:4755:file")]);
        assert_eq!(take(&mut all, Writer::Any).unwrap(), Own::default());
        assert_eq!((all.uid, all.gid, all.mode, all.xattrs.len()), (1, 2, 0o4755, 0));
        let mut all = attributes(&[("user.containers.override_stat", "0:5:620:char-5-1")]);
        let device = rustix::fs::makedev(5, 1);
        assert_eq!(take(&mut all, Writer::Any).unwrap().stands_for, Some((FileKind::CharDevice, device)));
        for bad in ["", "1:2", "x:1:644", "1:2:9", "1:2:644:what", "1:2:644:char-1"] {
            assert!(
                take(&mut attributes(&[("user.containers.override_stat", bad)]), Writer::Any).is_err(),
                "{bad}"
            );
        }
    }
}
