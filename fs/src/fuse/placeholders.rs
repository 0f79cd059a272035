//! The placeholders of a kernel connection: mount points of a session that the environment lacks. What makes
//! them, and when they go, is in `points`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::Errno;
use karapace_store::inode::{FileKind, Ino, Timestamp};
use parking_lot::RwLock;

use super::nodes::{LIVE, PLACEHOLDER, split};
use crate::attr::{Attr, Invalidation};

/// The placeholders of one kernel connection.
#[derive(Default)]
pub(crate) struct Placeholders {
    /// Whether there are any: looked at by every look-up.
    some: AtomicBool,
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    by_number: BTreeMap<Ino, Placeholder>,
    /// The numbers, by the node of the directory and the name.
    by_name: HashMap<u64, BTreeMap<Box<[u8]>, Ino>>,
    /// The number given last. None is given twice, so the node of a dropped one stays unknown.
    last: Ino,
}

struct Placeholder {
    /// The directory's node.
    parent: u64,
    name: Box<[u8]>,
    kind: FileKind,
    made: Timestamp,
}

/// An entry in the listing of a directory.
pub(crate) struct Listed {
    pub number: Ino,
    pub name: Box<[u8]>,
    pub kind: FileKind,
}

impl Placeholders {
    pub fn is_empty(&self) -> bool {
        !self.some.load(Ordering::Acquire)
    }

    /// The placeholder with this name in a directory, which may itself be one.
    pub fn find(&self, directory: u64, name: &[u8]) -> Option<Attr> {
        if self.is_empty() {
            return None;
        }
        let table = self.table.read();
        let number = table.by_name.get(&directory)?.get(name)?;
        table.by_number.get(number).map(|found| found.attr(*number))
    }

    pub fn attr(&self, number: Ino) -> Result<Attr, Errno> {
        let table = self.table.read();
        table.by_number.get(&number).map(|found| found.attr(number)).ok_or(Errno::ESTALE)
    }

    /// The node of the directory that a placeholder is in.
    pub fn parent(&self, number: Ino) -> Result<u64, Errno> {
        self.table.read().by_number.get(&number).map(|found| found.parent).ok_or(Errno::ESTALE)
    }

    /// The placeholders in a directory with numbers above `after`, by number.
    pub fn list(&self, directory: u64, after: Ino) -> Vec<Listed> {
        if self.is_empty() {
            return Vec::new();
        }
        let table = self.table.read();
        let above = table.by_number.range(after + 1..).filter(|(_, found)| found.parent == directory);
        above
            .map(|(number, found)| Listed { number: *number, name: found.name.clone(), kind: found.kind })
            .collect()
    }

    /// Whether a directory holds one.
    pub fn are_in(&self, directory: u64) -> bool {
        !self.is_empty() && self.table.read().by_name.contains_key(&directory)
    }

    /// # Errors
    /// `EEXIST`; `ESTALE` if the directory is a placeholder that has been dropped, `ENOTDIR` if it is a file.
    pub fn add(&self, directory: u64, name: &[u8], kind: FileKind) -> Result<Attr, Errno> {
        let mut table = self.table.write();
        if let (PLACEHOLDER, number) = split(directory) {
            let above = table.by_number.get(&number).ok_or(Errno::ESTALE)?;
            if above.kind != FileKind::Directory {
                return Err(Errno::ENOTDIR);
            }
        }
        let number = table.last + 1;
        let names = table.by_name.entry(directory).or_default();
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        names.insert(name.into(), number);
        table.last = number;
        let made = Placeholder { parent: directory, name: name.into(), kind, made: Timestamp::now() };
        let attr = made.attr(number);
        table.by_number.insert(number, made);
        self.some.store(true, Ordering::Release);
        Ok(attr)
    }

    /// Drops all. Returns what the kernel must forget: the topmost ones, which what is in them goes with.
    pub fn take(&self) -> Vec<Invalidation> {
        let mut table = self.table.write();
        self.some.store(false, Ordering::Release);
        let all = std::mem::take(&mut table.by_number);
        table.by_name.clear();
        let mut stale = Vec::new();
        for Placeholder { parent, name, .. } in all.into_values() {
            if let (LIVE, ino) = split(parent) {
                stale.extend([
                    Invalidation::Entry { parent: ino, name },
                    // The listing that it is in.
                    Invalidation::Inode { ino },
                ]);
            }
        }
        stale
    }
}

impl Placeholder {
    fn attr(&self, number: Ino) -> Attr {
        let directory = self.kind == FileKind::Directory;
        Attr {
            ino: number,
            mode: self.kind.to_mode() | if directory { 0o755 } else { 0o644 },
            nlink: 1 + u32::from(directory),
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
        }
    }
}
