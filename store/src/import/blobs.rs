//! The files of an image, in a directory or in a tar archive.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{Body, broken, spool, spool_whole};
use super::blob::{Blob, Files, Found};
use super::copied::VERSION;
use super::oci::{Layer, MAX_DOCUMENT, check_size};
use crate::error::{IoContext, Result};
use crate::input;
use crate::open::Store;
use crate::tar::{Member, MemberKind, Reader, TarError};

/// Maximum number of archive members kept in the index. An image has a few for each layer.
const MAX_MEMBERS: usize = 1 << 16;

/// Maximum total size in bytes of the documents of a compressed archive, which are kept in memory.
const MAX_KEPT: u64 = 64 << 20;

/// How many links are followed for one name.
const MAX_LINKS: usize = 40;

/// An unpacked image.
pub(super) struct Directory {
    directory: OwnedFd,
    path: PathBuf,
    source: String,
}

impl Directory {
    pub fn new(directory: &File, path: &Path) -> Result<Directory> {
        let directory = directory.try_clone().at("open", path)?.into();
        Ok(Directory { directory, path: path.to_owned(), source: path.display().to_string() })
    }
}

impl Files for Directory {
    fn open(&self, name: &str) -> Result<Found> {
        let flags = OFlags::PATH;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = self.path.join(name);
        let found = match input::open_in(&self.directory, Path::new(name), flags, Mode::empty(), beneath) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Err("is missing")),
            Err(Errno::XDEV) => return Ok(Err("is a link that leads out of the image")),
            Err(Errno::LOOP) => return Ok(Err("is a link that leads nowhere")),
            other => other.at("open", &path)?,
        };
        let stat = rustix::fs::fstat(&found).at("read", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Err("is not a regular file"));
        }
        let file = input::reopen(found).at("open", &path)?;
        // Limits the read if the file grows.
        let size = file.metadata().at("read", &path)?.len();
        Ok(Ok(Blob { reader: Box::new(file.take(size)), size }))
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory).at("list", &self.path)?.take(MAX_MEMBERS) {
            let entry = entry.at("list", &self.path)?;
            // An image has no names that are not UTF-8.
            names.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    fn source(&self) -> &str {
        &self.source
    }
}

enum Place {
    /// Offset and size in an archive that is not compressed.
    Inside(u64, u64),
    /// A member that was copied to a file of its own, and its size.
    Copy(Arc<File>, u64),
    /// A document of a compressed archive.
    Kept(Vec<u8>),
    /// Any other member of a compressed archive: its number, and its size. See [`Archive::unpack`].
    Packed(u64, u64),
    /// A link to another member.
    Link(String),
}

/// An image in an archive.
pub(super) struct Archive {
    /// The archive, if it is not compressed.
    file: Option<Arc<File>>,
    members: HashMap<String, Place>,
    source: String,
}

impl Archive {
    /// Reads the headers of an uncompressed archive, from its start.
    pub fn index(store: &Store, file: &Arc<File>, source: &str) -> Result<Archive> {
        let input = At::whole(file, source)?;
        let members = members(Reader::seeking(input), source, |reader, member, _| match &member.ranges {
            None => Ok(Place::Inside(reader.position(), member.size)),
            Some(ranges) => Ok(Place::Copy(Arc::new(spool(store, reader, ranges)?), member.size)),
        })?;
        Ok(Archive { file: Some(file.clone()), members, source: source.to_owned() })
    }

    /// Reads through a compressed archive, decompressed by the caller, and keeps what may be a document. The
    /// rest is skipped: its size is unknown, and only the documents say which members are needed.
    pub fn survey(input: &mut dyn Read, source: &str) -> Result<Archive> {
        let mut kept = 0;
        let reader = Reader::new(BufReader::with_capacity(256 << 10, input));
        let members = members(reader, source, |reader, member, number| {
            let elsewhere = Ok(Place::Packed(number, member.size));
            if member.ranges.is_some() || member.size > MAX_DOCUMENT {
                return elsewhere;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map_err(|error| broken(source, &error))?;
            if !matches!(bytes.trim_ascii_start(), [b'{' | b'[', ..]) && !bytes.starts_with(VERSION) {
                return elsewhere;
            }
            kept += member.size;
            if kept > MAX_KEPT {
                let reason = format!("its documents have more than {MAX_KEPT} bytes in total");
                return Err(broken(source, &reason));
            }
            Ok(Place::Kept(bytes))
        })?;
        Ok(Archive { file: None, members, source: source.to_owned() })
    }

    /// Copies the files of these layers to where they can be read; `input` is the surveyed archive again.
    pub fn unpack(&mut self, store: &Store, input: &mut dyn Read, layers: &[Layer]) -> Result<()> {
        let mut wanted = HashMap::new();
        for layer in layers {
            if let Some((name, Place::Packed(number, size))) = self.find(&layer.file) {
                check_size(self, &layer.file, layer.size.unwrap_or(*size), *size)?;
                wanted.insert(*number, (name, *size));
            }
        }
        let mut reader = Reader::new(BufReader::with_capacity(256 << 10, input));
        let mut number = 0;
        while !wanted.is_empty()
            && let Some(member) = reader.next_member().map_err(|error| broken(&self.source, &error))?
        {
            if let Some((name, size)) = wanted.remove(&number).filter(|(_, size)| *size == member.size) {
                let mut body = Body { reader: &mut reader, failed: None };
                let copied = match &member.ranges {
                    None => spool_whole(store, &mut body, size),
                    Some(ranges) => spool(store, &mut body, ranges),
                };
                if let Some(reason) = body.failed {
                    return Err(broken(&self.source, &reason));
                }
                self.members.insert(name, Place::Copy(Arc::new(copied?), size));
            }
            number += 1;
        }
        Ok(())
    }

    /// Whether a member is in this top-level directory, or is this directory.
    pub fn has_at_top(&self, name: &str) -> bool {
        self.members.keys().any(|member| member.split('/').next() == Some(name))
    }

    /// The member that a name leads to through links, and that member's name.
    fn find(&self, name: &str) -> Option<(String, &Place)> {
        let mut name = resolve("", name)?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&name)? {
                Place::Link(to) => name.clone_from(to),
                place => return Some((name, place)),
            }
        }
        None
    }
}

/// Indexes the members of an archive that an image may refer to; `place` says where a regular one is, given
/// its number among all members.
fn members<R: Read>(
    mut reader: Reader<R>,
    source: &str,
    mut place: impl FnMut(&mut Reader<R>, &Member, u64) -> Result<Place>,
) -> Result<HashMap<String, Place>> {
    let mut members = HashMap::new();
    let failed = |error: TarError| broken(source, &error);
    let mut number = 0;
    while let Some(member) = reader.next_member().map_err(failed)? {
        number += 1;
        // An image refers only to names that are UTF-8.
        let Some(name) = std::str::from_utf8(&member.path).ok().and_then(|name| resolve("", name)) else {
            continue;
        };
        let link = |base: &str| std::str::from_utf8(&member.link).ok().and_then(|to| resolve(base, to));
        let found = match member.kind {
            MemberKind::Regular => place(&mut reader, &member, number - 1)?,
            MemberKind::HardLink => Place::Link(link("").unwrap_or_default()),
            MemberKind::Symlink => {
                let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                Place::Link(link(above).unwrap_or_default())
            }
            _ => continue,
        };
        members.insert(name, found);
        if members.len() > MAX_MEMBERS {
            let reason = format!("it has more than {MAX_MEMBERS} files");
            return Err(broken(source, &reason));
        }
    }
    Ok(members)
}

impl Files for Archive {
    fn open(&self, name: &str) -> Result<Found> {
        let Some((_, place)) = self.find(name) else { return Ok(Err("is missing")) };
        let (file, at, size) = match (place, &self.file) {
            (Place::Kept(bytes), _) => return Ok(Ok(Blob::of(bytes))),
            (Place::Inside(at, size), Some(file)) => (file, *at, *size),
            (Place::Copy(file, size), _) => (file, 0, *size),
            (Place::Packed(..), _) => return Ok(Err("is not of the kind that the image says")),
            (Place::Inside(..) | Place::Link(_), _) => return Ok(Err("is missing")),
        };
        let reader = Box::new(At { file: file.clone(), at, end: at.saturating_add(size) });
        Ok(Ok(Blob { reader, size }))
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.find(name).is_some())
    }

    fn names(&self) -> Result<Vec<String>> {
        let tops: BTreeSet<&str> = self.members.keys().filter_map(|name| name.split('/').next()).collect();
        Ok(tops.into_iter().map(str::to_owned).collect())
    }

    fn source(&self) -> &str {
        &self.source
    }
}

/// Resolves `name` relative to `base`, without `.` and `..`; `None` if it leads outside.
fn resolve(base: &str, name: &str) -> Option<String> {
    let mut components: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            part => components.push(part),
        }
    }
    Some(components.join("/"))
}

/// A range of a file, read with a position of its own.
pub(super) struct At {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl At {
    /// The whole of a file; `source` names it in errors.
    pub fn whole(file: &Arc<File>, source: &str) -> Result<At> {
        let end = file.metadata().at("read", Path::new(source))?.len();
        Ok(At { file: file.clone(), at: 0, end })
    }
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = self.end.saturating_sub(self.at).min(buf.len() as u64) as usize;
        let got = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl io::Seek for At {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            io::SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
