//! The placeholders of a kernel connection: mount points of a session that the environment lacks, and files
//! of the session's own. What makes them, and when they go, is in `points`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::Errno;
use karapace_store::inode::{FileKind, Ino, Timestamp};
use parking_lot::RwLock;

use super::nodes::{LIVE, PLACEHOLDER, split};
use crate::attr::{Attr, Invalidation, SetAttr, SetTime};

/// The most that the content of one may be, in bytes.
const MOST: u64 = 1 << 20;

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
    /// For a file of the session's own, which can be changed.
    own: Option<Own>,
    /// Whether the name leads to it. A removed file stays for those that have it open.
    named: bool,
}

/// What a file of the session's own has.
struct Own {
    content: Vec<u8>,
    mode: u32,
    ids: (u32, u32),
    /// Of the last access, change of the content, and change.
    times: [Timestamp; 3],
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
        let above =
            table.by_number.range(after + 1..).filter(|(_, found)| found.named && found.parent == directory);
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
        let made = Placeholder {
            parent: directory,
            name: name.into(),
            kind,
            made: Timestamp::now(),
            own: None,
            named: true,
        };
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
        for Placeholder { parent, name, .. } in all.into_values().filter(|one| one.named) {
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

    /// Whether the name is that of a file of the session's own; `None` if it is no placeholder's.
    pub fn is_own(&self, directory: u64, name: &[u8]) -> Option<bool> {
        if self.is_empty() {
            return None;
        }
        let table = self.table.read();
        let number = table.by_name.get(&directory)?.get(name)?;
        table.by_number.get(number).map(|found| found.own.is_some())
    }

    /// Takes a file of the session's own its name.
    pub fn remove(&self, directory: u64, name: &[u8]) {
        self.table.write().unname(directory, name);
    }

    /// Gives a file of the session's own another name, which it hides in the view. One that had it loses it.
    ///
    /// # Errors
    /// `EROFS` if it is none of the session's own, `EBUSY` for the name of a mount point.
    pub fn rename(&self, (from, name): (u64, &[u8]), (to, new): (u64, &[u8])) -> Result<(), Errno> {
        let mut table = self.table.write();
        let number = table.by_name.get(&from).and_then(|names| names.get(name)).copied();
        let number = number.ok_or(Errno::ENOENT)?;
        if table.by_number.get(&number).is_none_or(|found| found.own.is_none()) {
            return Err(Errno::EROFS);
        }
        let there = table.by_name.get(&to).and_then(|names| names.get(new)).copied();
        if there.and_then(|there| table.by_number.get(&there)).is_some_and(|there| there.own.is_none()) {
            return Err(Errno::EBUSY);
        }
        table.unname(to, new);
        table.unname(from, name);
        table.by_name.entry(to).or_default().insert(new.into(), number);
        if let Some(found) = table.by_number.get_mut(&number) {
            (found.parent, found.name, found.named) = (to, new.into(), true);
        }
        Ok(())
    }

    /// Reads into `buffer`; a mount point is empty.
    pub fn read(&self, number: Ino, offset: u64, size: usize, buffer: &mut Vec<u8>) {
        let table = self.table.read();
        let own = table.by_number.get(&number).and_then(|found| found.own.as_ref());
        let content = own.map_or(&[][..], |own| &own.content);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
        buffer.clear();
        buffer.extend_from_slice(&content[start..content.len().min(start.saturating_add(size))]);
    }

    /// Writes to a file of the session's own. `makes`: what the caller writes to becomes one.
    ///
    /// # Errors
    /// `EROFS` for a mount point, `ENOSPC` above [`MOST`].
    pub fn write(&self, number: Ino, offset: u64, data: &[u8], makes: bool) -> Result<(), Errno> {
        let mut table = self.table.write();
        let found = table.by_number.get_mut(&number).ok_or(Errno::ESTALE)?;
        if makes && found.kind == FileKind::Regular {
            found.own.get_or_insert_with(|| Own::new(found.made));
        }
        let own = found.own.as_mut().ok_or(Errno::EROFS)?;
        let end = offset.saturating_add(data.len() as u64);
        if end > MOST {
            return Err(Errno::ENOSPC);
        }
        let (start, end) = (offset as usize, end as usize);
        if own.content.len() < end {
            own.content.resize(end, 0);
        }
        own.content[start..end].copy_from_slice(data);
        own.touch();
        Ok(())
    }

    /// Changes a file of the session's own.
    ///
    /// # Errors
    /// As [`Placeholders::write`].
    pub fn set(&self, number: Ino, set: &SetAttr) -> Result<Attr, Errno> {
        let mut table = self.table.write();
        let found = table.by_number.get_mut(&number).ok_or(Errno::ESTALE)?;
        let own = found.own.as_mut().ok_or(Errno::EROFS)?;
        if let Some(size) = set.size {
            if size > MOST {
                return Err(Errno::ENOSPC);
            }
            own.content.resize(size as usize, 0);
            own.touch();
        }
        own.mode = set.mode.unwrap_or(own.mode) & 0o7777 & !set.without;
        if set.kill_priv {
            own.mode &= !0o6000;
        }
        own.ids = (set.uid.unwrap_or(own.ids.0), set.gid.unwrap_or(own.ids.1));
        if *set != SetAttr::default() {
            own.times[2] = Timestamp::now();
        }
        for (at, time) in [set.atime, set.mtime].into_iter().enumerate() {
            match time {
                Some(SetTime::At(time)) => own.times[at] = time,
                Some(SetTime::Now) => own.times[at] = own.times[2],
                None => {}
            }
        }
        Ok(found.attr(number))
    }
}

impl Table {
    fn unname(&mut self, directory: u64, name: &[u8]) {
        let Some(names) = self.by_name.get_mut(&directory) else { return };
        let number = names.remove(name);
        if names.is_empty() {
            self.by_name.remove(&directory);
        }
        if let Some(found) = number.and_then(|number| self.by_number.get_mut(&number)) {
            found.named = false;
        }
    }
}

impl Own {
    fn new(made: Timestamp) -> Own {
        Own { content: Vec::new(), mode: 0o644, ids: (0, 0), times: [made; 3] }
    }

    fn touch(&mut self) {
        self.times[1] = Timestamp::now();
        self.times[2] = self.times[1];
    }
}

impl Placeholder {
    fn attr(&self, number: Ino) -> Attr {
        if let Some(own) = &self.own {
            let size = own.content.len() as u64;
            let [atime, mtime, ctime] = own.times;
            return Attr {
                ino: number,
                mode: self.kind.to_mode() | own.mode,
                nlink: u32::from(self.named),
                linked: false,
                uid: own.ids.0,
                gid: own.ids.1,
                rdev: 0,
                size,
                blocks: size.div_ceil(512),
                atime,
                mtime,
                ctime,
            };
        }
        let directory = self.kind == FileKind::Directory;
        Attr {
            ino: number,
            mode: self.kind.to_mode() | if directory { 0o755 } else { 0o644 },
            nlink: 1 + u32::from(directory),
            linked: false,
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
