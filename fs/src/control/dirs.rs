//! Looks up and lists the control directory.

use std::hash::{DefaultHasher, Hash, Hasher};

use karapace_store::inode::{FileKind, Ino, Timestamp};
use parking_lot::Mutex;

use super::files::TopFile;
use super::nodes::{Dir, Role};
use super::{ControlDir, Found, Listed, SnapshotInfo};
use crate::attr::Attr;
use crate::error::{Error, Result};

const DIR_MODE: u32 = libc::S_IFDIR | 0o700;

/// When the listings of the changing directories last changed. The kernel caches a listing while the
/// directory's mtime stays the same (there is no opendir to tell it otherwise), so the mtime must follow the
/// listing.
#[derive(Default)]
pub(super) struct Stamps {
    snapshots: Mutex<Option<Stamp>>,
    refs: Mutex<Option<Stamp>>,
    jobs: Mutex<Option<Stamp>>,
    fixed: Mutex<Option<Stamp>>,
}

struct Stamp {
    listing: u64,
    time: Timestamp,
}

impl Stamps {
    fn time(&self, dir: Dir, listing: u64) -> Timestamp {
        let mut stamp = match dir {
            Dir::Snapshots => &self.snapshots,
            Dir::Refs => &self.refs,
            Dir::Jobs => &self.jobs,
            Dir::Top | Dir::Job(_) => &self.fixed,
        }
        .lock();
        match &*stamp {
            Some(known) if known.listing == listing => known.time,
            _ => stamp.insert(Stamp { listing, time: Timestamp::now() }).time,
        }
    }
}

impl ControlDir {
    /// Attributes of `.karapace` itself.
    pub fn top(&self) -> Result<Attr> {
        self.dir_attr(Dir::Top)
    }

    /// Attributes of a node.
    ///
    /// # Errors
    /// `Stale` for a file that was forgotten, `NotFound` for a job that is gone.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        match Dir::from_ino(ino) {
            Some(dir) => self.dir_attr(dir),
            None => Ok(self.file_attr(&*self.nodes.get(ino)?)),
        }
    }

    /// Finds `name` in a directory. A file is given its current text, which does not change afterwards.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, or an error from generating the text.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found> {
        match Dir::from_ino(parent).ok_or(Error::NotDirectory)? {
            Dir::Top => match (name, TopFile::from_name(name)) {
                (_, Some(file)) => self.open_top(name, file).map(Found::Node),
                (b"snapshots", _) => self.dir_attr(Dir::Snapshots).map(Found::Node),
                (b"refs", _) => self.dir_attr(Dir::Refs).map(Found::Node),
                (b"jobs", _) => self.dir_attr(Dir::Jobs).map(Found::Node),
                _ => Err(Error::NotFound),
            },
            Dir::Snapshots => self.find_snapshot(name).ok_or(Error::NotFound),
            Dir::Refs => {
                let (_, hash) =
                    self.refs().into_iter().find(|(n, _)| n.as_bytes() == name).ok_or(Error::NotFound)?;
                Ok(Found::Node(self.open_text(Dir::Refs, name, (hash + "\n").into_bytes())))
            }
            Dir::Jobs => {
                let text = std::str::from_utf8(name).map_err(|_| Error::NotFound)?;
                let number: u64 = text.parse().map_err(|_| Error::NotFound)?;
                if number.to_string().as_bytes() != name {
                    return Err(Error::NotFound);
                }
                self.dir_attr(Dir::Job(number)).map(Found::Node)
            }
            Dir::Job(number) => {
                let status = self.jobs.status(number)?;
                match name {
                    b"status" => {
                        let text = (status + "\n").into_bytes();
                        Ok(Found::Node(self.open_text(Dir::Job(number), name, text)))
                    }
                    b"ctl" => Ok(Found::Node(self.open_ctl(Role::JobCtl(number)))),
                    _ => Err(Error::NotFound),
                }
            }
        }
    }

    /// Passes the entries after `cookie` to `sink` until it refuses one.
    pub fn readdir(&self, ino: Ino, cookie: u64, sink: &mut dyn FnMut(&Listed<'_>) -> bool) -> Result<()> {
        let dir = Dir::from_ino(ino).ok_or(Error::NotDirectory)?;
        let entries = self.entries(dir)?;
        let dots = [(b".".to_vec(), FileKind::Directory), (b"..".to_vec(), FileKind::Directory)];
        for (at, (name, kind)) in dots.into_iter().chain(entries).enumerate().skip(cookie as usize) {
            let ino = if name == b"." { ino } else { self.nodes.reserve() };
            if !sink(&Listed { name: &name, ino, kind, cookie: at as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    /// The snapshot with this hash or name; the newest if several records share a hash.
    pub(super) fn find_snapshot(&self, name: &[u8]) -> Option<Found> {
        let fits = |s: &SnapshotInfo| {
            s.hash.as_bytes() == name || s.name.as_ref().is_some_and(|n| n.as_bytes() == name)
        };
        let found = self.plane.snapshots().into_iter().rev().find(fits)?;
        Some(Found::Snapshot { name: name.into(), root: found.root })
    }

    fn dir_attr(&self, dir: Dir) -> Result<Attr> {
        let entries = self.entries(dir)?;
        let mut hasher = DefaultHasher::new();
        if matches!(dir, Dir::Snapshots | Dir::Refs | Dir::Jobs) {
            entries.iter().for_each(|(name, _)| name.hash(&mut hasher));
        }
        Ok(self.attr(dir.ino(), DIR_MODE, 0, self.stamps.time(dir, hasher.finish())))
    }

    /// The entries of a directory, without `.` and `..`.
    fn entries(&self, dir: Dir) -> Result<Vec<(Vec<u8>, FileKind)>> {
        let directory = |name: &str| (name.as_bytes().to_vec(), FileKind::Directory);
        let file = |name: &[u8]| (name.to_vec(), FileKind::Regular);
        Ok(match dir {
            Dir::Top => TopFile::ALL
                .iter()
                .map(|(name, _)| file(name))
                .chain(["jobs", "refs", "snapshots"].map(directory))
                .collect(),
            Dir::Snapshots => {
                let mut names: Vec<String> = self
                    .plane
                    .snapshots()
                    .into_iter()
                    .flat_map(|s| s.name.into_iter().chain([s.hash]))
                    .collect();
                names.sort();
                names.dedup();
                names.iter().map(|name| directory(name)).collect()
            }
            Dir::Refs => self.refs().iter().map(|(name, _)| file(name.as_bytes())).collect(),
            Dir::Jobs => self.jobs.numbers().iter().map(|number| directory(&number.to_string())).collect(),
            Dir::Job(number) => {
                self.jobs.status(number)?;
                vec![file(b"ctl"), file(b"status")]
            }
        })
    }

    /// The references, and the hashes they refer to.
    fn refs(&self) -> Vec<(String, String)> {
        let snapshots = self.plane.snapshots();
        let mut refs = vec![("base".to_owned(), self.plane.base()), ("head".to_owned(), self.plane.head())];
        refs.extend(self.plane.latest().map(|hash| ("latest".to_owned(), hash)));
        refs.extend(snapshots.into_iter().filter_map(|s| s.name.map(|name| (name, s.hash))));
        refs
    }
}
