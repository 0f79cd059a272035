//! Collects the events that a restore raises for programs that watch directories: every name that changed in
//! a directory that the kernel knows. A watched directory is always known to it.

use std::collections::HashSet;

use karapace_store::inode::{FileKind, Ino, InodeRecord};
use karapace_store::tree::same_content;

use crate::attr::{Became, Told};

/// Most names to report. Beyond that, only directories are reported.
const MAX_NAMES: usize = 4096;

/// Most directories to report in that case.
const MAX_DIRS: usize = 1024;

/// Collects events while directories are compared, from the root downwards.
#[derive(Default)]
pub(super) struct Telling {
    /// Path of the directory being compared.
    path: Vec<u8>,
    names: Vec<Told>,
    /// Directories in which a name changed.
    dirs: Vec<Told>,
    noted: HashSet<Ino>,
    too_many: bool,
}

impl Telling {
    /// Descends into the subdirectory `name`.
    pub fn enter(&mut self, name: &[u8]) {
        self.path.push(b'/');
        self.path.extend_from_slice(name);
    }

    /// Returns to the parent directory.
    pub fn leave(&mut self) {
        let end = self.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.path.truncate(end);
    }

    /// Records that `name` in `dir`, the directory being compared, changed from `old` to `new`; they may be
    /// equal.
    pub fn name(&mut self, dir: Ino, name: &[u8], old: Option<&InodeRecord>, new: Option<&InodeRecord>) {
        if let Some(became) = became(old, new) {
            self.add(dir, name, became);
        }
    }

    /// Records a directory that stays; reported only if its attributes changed.
    pub fn directory(&mut self, parent: Ino, name: &[u8], old: &InodeRecord, new: &InodeRecord) {
        if !same_attributes(old, new) {
            self.add(parent, name, Became::Other);
        }
    }

    fn add(&mut self, parent: Ino, name: &[u8], became: Became) {
        if self.dirs.len() < MAX_DIRS && self.noted.insert(parent) {
            self.dirs.push(Told { path: self.path.clone(), parent, became: Became::Other });
        }
        self.too_many |= self.names.len() == MAX_NAMES;
        if !self.too_many {
            let path = [&self.path, &b"/"[..], name].concat();
            self.names.push(Told { path, parent, became });
        }
    }

    /// The events to raise.
    pub fn done(self) -> Vec<Told> {
        if self.too_many { self.dirs } else { self.names }
    }
}

fn same_attributes(old: &InodeRecord, new: &InodeRecord) -> bool {
    (old.mode, old.uid, old.gid, &old.xattrs) == (new.mode, new.uid, new.gid, &new.xattrs)
}

fn became(old: Option<&InodeRecord>, new: Option<&InodeRecord>) -> Option<Became> {
    let (old, new) = match (old, new) {
        (None, None) => return None,
        (None, Some(new)) => return Some(Became::Come(new.kind())),
        (Some(old), None) => return Some(Became::Gone(old.kind())),
        (Some(old), Some(new)) => (old, new),
    };
    if old.kind() != new.kind() {
        return Some(Became::Come(new.kind()));
    }
    if new.kind() != FileKind::Directory && !same_content(old, new) {
        return Some(Became::Content);
    }
    // A changed inode number alone is not reported.
    let is_same = new.kind() != FileKind::Directory && same_attributes(old, new) && old.mtime == new.mtime;
    (!is_same).then_some(Became::Other)
}

#[cfg(test)]
mod tests {
    use karapace_store::inode::{Body, Timestamp, Xattrs};

    use super::*;

    #[test]
    fn of_too_many_names_only_the_directories_are_reported() {
        let time = Timestamp::from_secs(1);
        let file = InodeRecord {
            ino: 7,
            mode: libc::S_IFREG | 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            atime: time,
            mtime: time,
            ctime: time,
            xattrs: Xattrs::new(),
            body: Body::Symlink((*b"one").into()),
        };
        let other = InodeRecord { body: Body::Symlink((*b"two").into()), ..file.clone() };
        let mut telling = Telling::default();
        telling.enter(b"a");
        for number in 0..MAX_NAMES {
            telling.name(2, number.to_string().as_bytes(), None, Some(&file));
        }
        telling.enter(b"b");
        let told = |path: &[u8], parent, became| Told { path: path.to_vec(), parent, became };
        let mut more = Telling { path: telling.path.clone(), ..Telling::default() };
        more.name(3, b"x", Some(&file), None);
        more.leave();
        more.name(2, b"y", Some(&file), Some(&other));
        more.name(2, b"z", Some(&file), Some(&InodeRecord { ino: 8, ..file.clone() }));
        assert_eq!(
            more.done(),
            [told(b"/a/b/x", 3, Became::Gone(FileKind::Regular)), told(b"/a/y", 2, Became::Content)]
        );
        telling.name(3, b"x", Some(&file), None);
        assert_eq!(telling.done(), [told(b"/a", 2, Became::Other), told(b"/a/b", 3, Became::Other)]);
    }
}
