//! The files that an image consists of, in a directory or in an uncompressed tar archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{broken, spool};
use crate::error::{IoContext, Result};
use crate::open::Store;
use crate::tar::{MemberKind, Reader};

/// How many members of an archive are remembered at most. An image has a few for each layer.
const MAX_MEMBERS: usize = 1 << 16;

/// How many links are followed for one name.
const MAX_LINKS: usize = 40;

/// Bytes of one file, with their number.
pub(super) struct Blob {
    pub reader: Box<dyn Read + Send>,
    pub size: u64,
}

/// Gives files by their names, which are untrusted; nothing outside is ever opened.
pub(super) trait Files {
    /// `None` when there is no regular file of this name.
    fn open(&self, name: &str) -> Result<Option<Blob>>;
    /// How messages call it.
    fn source(&self) -> &str;
}

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
    fn open(&self, name: &str) -> Result<Option<Blob>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let opened = match rustix::fs::openat2(&self.directory, name, flags, Mode::empty(), beneath) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(io::Error::from).at("open", &self.path.join(name))?,
        };
        let file = File::from(opened);
        let found = file.metadata().at("read", &self.path.join(name))?;
        Ok(found.is_file().then(|| Blob { reader: Box::new(file), size: found.len() }))
    }

    fn source(&self) -> &str {
        &self.source
    }
}

enum Place {
    /// Offset and size in the archive.
    Inside(u64, u64),
    /// A sparse member, laid out, and its size.
    Copy(Arc<File>, u64),
    /// Another member.
    Link(String),
}

/// An image in an archive.
pub(super) struct Archive {
    file: Arc<File>,
    members: HashMap<String, Place>,
    source: String,
}

impl Archive {
    /// Reads the headers of an uncompressed archive, from its start.
    pub fn index(store: &Store, file: &File, source: &str) -> Result<Archive> {
        let file = Arc::new(file.try_clone().at("open", Path::new(source))?);
        let length = file.metadata().at("read", Path::new(source))?.len();
        let mut reader = Reader::seeking(At { file: file.clone(), at: 0, end: length });
        let mut members = HashMap::new();
        while let Some(member) = reader.next_member().map_err(|error| broken(source, &error))? {
            // A name that is no text is none that an image refers to.
            let Some(name) = std::str::from_utf8(&member.path).ok().and_then(|name| resolve("", name)) else {
                continue;
            };
            let link = |base: &str| std::str::from_utf8(&member.link).ok().and_then(|to| resolve(base, to));
            let place = match (member.kind, &member.ranges) {
                (MemberKind::Regular, None) => Place::Inside(reader.position(), member.size),
                (MemberKind::Regular, Some(ranges)) => {
                    let copy = spool(store, &mut reader, ranges)?;
                    Place::Copy(Arc::new(copy), member.size)
                }
                (MemberKind::HardLink, _) => Place::Link(link("").unwrap_or_default()),
                (MemberKind::Symlink, _) => {
                    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                    Place::Link(link(above).unwrap_or_default())
                }
                _ => continue,
            };
            members.insert(name, place);
            if members.len() > MAX_MEMBERS {
                return Err(broken(
                    source,
                    &format!("an image of more than {MAX_MEMBERS} files is not taken in"),
                ));
            }
        }
        Ok(Archive { file, members, source: source.to_owned() })
    }

    /// Whether some member is in this directory at the top, or is it.
    pub fn has_at_top(&self, name: &str) -> bool {
        self.members.keys().any(|member| member.split('/').next() == Some(name))
    }
}

impl Files for Archive {
    fn open(&self, name: &str) -> Result<Option<Blob>> {
        let Some(mut name) = resolve("", name) else { return Ok(None) };
        for _ in 0..MAX_LINKS {
            let (file, at, size) = match self.members.get(&name) {
                None => return Ok(None),
                Some(Place::Link(to)) => {
                    name = to.clone();
                    continue;
                }
                Some(Place::Inside(at, size)) => (&self.file, *at, *size),
                Some(Place::Copy(file, size)) => (file, 0, *size),
            };
            let reader = Box::new(At { file: file.clone(), at, end: at.saturating_add(size) });
            return Ok(Some(Blob { reader, size }));
        }
        Ok(None)
    }

    fn source(&self) -> &str {
        &self.source
    }
}

/// `name` from `base`, without `.` and `..`. `None` when it leads outside.
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

/// A stretch of a file, read with a position of its own.
struct At {
    file: Arc<File>,
    at: u64,
    end: u64,
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
