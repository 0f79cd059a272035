//! Node numbers of the control directory, and the files they refer to.
//!
//! Directories have fixed numbers. A file gets a number when it is looked up and lives until the kernel
//! forgets it. Each look-up of a `ctl` creates a new file, because it is an open with its own reply. Other
//! files keep their number while their text stays the same, because `cp` refuses a file whose number changes
//! between stat and open.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use karapace_store::inode::{Ino, Timestamp};
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Node number of `.karapace` itself.
pub(crate) const TOP: Ino = 1;
const SNAPSHOTS: Ino = 2;
const REFS: Ino = 3;
const JOBS: Ino = 4;
/// Directory of job n: this + n.
const JOB_BASE: Ino = 1 << 40;
/// Files are numbered upwards from here.
const FILE_BASE: Ino = 1 << 41;

/// A directory of the control tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dir {
    Top,
    Snapshots,
    Refs,
    Jobs,
    Job(u64),
}

impl Dir {
    pub fn ino(self) -> Ino {
        match self {
            Dir::Top => TOP,
            Dir::Snapshots => SNAPSHOTS,
            Dir::Refs => REFS,
            Dir::Jobs => JOBS,
            Dir::Job(number) => JOB_BASE + number,
        }
    }

    /// The directory with this number; `None` if it is a file's number.
    pub fn from_ino(ino: Ino) -> Option<Dir> {
        match ino {
            TOP => Some(Dir::Top),
            SNAPSHOTS => Some(Dir::Snapshots),
            REFS => Some(Dir::Refs),
            JOBS => Some(Dir::Jobs),
            JOB_BASE..FILE_BASE => Some(Dir::Job(ino - JOB_BASE)),
            _ => None,
        }
    }
}

/// What writing to a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing: the file is read-only.
    Text,
    /// Runs commands.
    Ctl,
    /// Runs commands for one job.
    JobCtl(u64),
}

/// One open of a control file.
pub(super) struct FileNode {
    pub ino: Ino,
    pub role: Role,
    pub created: Timestamp,
    text: Mutex<Text>,
}

/// What a read returns: `pad` newlines, then `bytes`. A reply starts at the offset where the write it answers
/// left the descriptor; a reader that rewinds sees blank lines before it.
#[derive(Default)]
struct Text {
    pad: u64,
    bytes: Vec<u8>,
}

impl Text {
    fn len(&self) -> u64 {
        self.pad + self.bytes.len() as u64
    }
}

impl FileNode {
    /// Number of bytes that can be read.
    pub fn size(&self) -> u64 {
        self.text.lock().len()
    }

    /// Replaces the content of `buf` by up to `size` bytes from `offset`.
    pub fn read(&self, offset: u64, size: usize, buf: &mut Vec<u8>) {
        let text = self.text.lock();
        buf.clear();
        let end = text.len().min(offset.saturating_add(size as u64));
        if offset >= end {
            return;
        }
        buf.resize((text.pad.min(end).saturating_sub(offset)) as usize, b'\n');
        let from = offset.max(text.pad) - text.pad;
        let to = end.max(text.pad) - text.pad;
        buf.extend_from_slice(&text.bytes[from as usize..to as usize]);
    }

    /// Sets the reply to a write that left the descriptor at offset `at`.
    pub fn set_reply(&self, at: u64, bytes: Vec<u8>) {
        let mut text = self.text.lock();
        let before = text.len();
        *text = Text { pad: at, bytes };
        if text.len() == before && !text.bytes.is_empty() {
            // The kernel drops its cached pages only when it sees a different size.
            text.bytes.push(b'\n');
        }
    }

    /// Empties the file, as opening with `O_TRUNC` does.
    pub fn clear(&self) {
        *self.text.lock() = Text::default();
    }
}

/// Location of a file: the directory's number and the name.
type Place = (Ino, Box<[u8]>);

/// The files known to the kernel.
#[derive(Default)]
pub(super) struct Nodes {
    made: AtomicU64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    files: HashMap<Ino, Known>,
    /// The newest text file at each location.
    texts: HashMap<Place, Ino>,
}

struct Known {
    node: Arc<FileNode>,
    /// Look-ups that the kernel has not forgotten.
    references: u64,
    place: Option<Place>,
}

impl Nodes {
    /// Creates a file that accepts commands. The kernel is about to count one reference to it.
    pub fn add_ctl(&self, role: Role) -> Arc<FileNode> {
        self.insert(&mut self.table.lock(), role, Vec::new(), None)
    }

    /// Returns the file at this location if its text is `bytes`, otherwise creates one. The kernel is about
    /// to count one reference to it.
    pub fn add_text(&self, dir: Ino, name: &[u8], bytes: Vec<u8>) -> Arc<FileNode> {
        let place: Place = (dir, name.into());
        let mut table = self.table.lock();
        if let Some(ino) = table.texts.get(&place).copied()
            && let Some(known) = table.files.get_mut(&ino)
            && known.node.text.lock().bytes == bytes
        {
            known.references += 1;
            return known.node.clone();
        }
        self.insert(&mut table, Role::Text, bytes, Some(place))
    }

    fn insert(&self, table: &mut Table, role: Role, bytes: Vec<u8>, place: Option<Place>) -> Arc<FileNode> {
        let ino = self.reserve();
        let text = Mutex::new(Text { pad: 0, bytes });
        let node = Arc::new(FileNode { ino, role, created: Timestamp::now(), text });
        if let Some(place) = &place {
            table.texts.insert(place.clone(), ino);
        }
        table.files.insert(ino, Known { node: node.clone(), references: 1, place });
        node
    }

    /// Returns an unused number, for listings.
    pub fn reserve(&self) -> Ino {
        FILE_BASE + self.made.fetch_add(1, Ordering::Relaxed)
    }

    /// The file with this number.
    ///
    /// # Errors
    /// `Stale` if it was forgotten.
    pub fn get(&self, ino: Ino) -> Result<Arc<FileNode>> {
        self.table.lock().files.get(&ino).map(|known| known.node.clone()).ok_or(Error::Stale)
    }

    /// Forgets `count` look-ups of a node.
    pub fn forget(&self, ino: Ino, count: u64) {
        let mut table = self.table.lock();
        let Some(known) = table.files.get_mut(&ino) else { return };
        known.references = known.references.saturating_sub(count);
        if known.references == 0
            && let Some(place) = table.files.remove(&ino).and_then(|known| known.place)
            && table.texts.get(&place) == Some(&ino)
        {
            table.texts.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(node: &FileNode, offset: u64, size: usize) -> String {
        let mut buf = vec![1, 2, 3];
        node.read(offset, size, &mut buf);
        String::from_utf8(buf).expect("text")
    }

    #[test]
    fn replies_follow_the_write() {
        let nodes = Nodes::default();
        let node = nodes.add_ctl(Role::Ctl);
        assert_eq!((node.size(), read(&node, 0, 100).as_str()), (0, ""));
        node.set_reply(3, b"ok gc\n".to_vec());
        assert_eq!(node.size(), 9);
        assert_eq!(read(&node, 3, 100), "ok gc\n");
        assert_eq!(read(&node, 0, 100), "\n\n\nok gc\n");
        assert_eq!(read(&node, 1, 4), "\n\nok");
        assert_eq!(read(&node, 0, 2), "\n\n");
        assert_eq!(read(&node, 9, 2), "");
        node.set_reply(3, b"ok no\n".to_vec());
        assert_eq!(read(&node, 3, 100), "ok no\n\n", "another size makes the kernel drop its pages");
        node.clear();
        assert_eq!(node.size(), 0);
    }

    #[test]
    fn files_live_as_long_as_the_kernel_knows_them() {
        let nodes = Nodes::default();
        let text = |bytes: &[u8]| nodes.add_text(TOP, b"name", bytes.to_vec()).ino;
        let (a, b) = (nodes.add_ctl(Role::Ctl).ino, nodes.add_ctl(Role::Ctl).ino);
        assert_ne!(a, b);
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_err() && nodes.get(b).is_ok());

        let one = text(b"1");
        assert_eq!(text(b"1"), one, "the same text is the same file");
        let two = text(b"2");
        assert_ne!(one, two);
        nodes.forget(one, 1);
        assert!(nodes.get(one).is_ok(), "it was looked up twice");
        nodes.forget(one, 1);
        assert!(nodes.get(one).is_err());
        assert_eq!(text(b"2"), two);
        nodes.forget(two, 2);
        assert_ne!(text(b"2"), two);
        assert_eq!(nodes.table.lock().texts.len(), 1);
    }

    #[test]
    fn directory_numbers() {
        for dir in [Dir::Top, Dir::Snapshots, Dir::Refs, Dir::Jobs, Dir::Job(1), Dir::Job(77)] {
            assert_eq!(Dir::from_ino(dir.ino()), Some(dir));
        }
        assert_eq!(Dir::from_ino(Nodes::default().reserve()), None);
    }
}
