//! The texts of the control directory's files, read by scripts and shown to people unchanged.

use std::os::unix::ffi::OsStrExt;

use parking_lot::Mutex;
use serde::Serialize;

use super::nodes::{Dir, FileNode, Role};
use super::{ControlDir, command};
use crate::attr::{Attr, DiffEntry, HeadRef};
use crate::error::{Error, Result};
use karapace_store::inode::Ino;
use karapace_store::text;

const VERSION: &str = concat!("karapace ", env!("CARGO_PKG_VERSION"), "\n");

/// The text of `help` before and after the list of commands.
const HELP: [&str; 2] = [
    "ctl                write commands, one per line; if a command fails, the write fails\n",
    "                   after a write, reading the same descriptor gives the outcome
last               outcome of the last command: `ok commit <hash>` or `error EINVAL <reason>`
id version         the environment's ids, the version of karapace
status status.json state, head, mount point, uncommitted changes
diff               uncommitted changes, `A|M|D <path>` per line; a path that is not plain text, or begins with a quote,
                   is quoted as git does it: \\n \\t \\\\ \\\", other bytes in octal as \\033
snapshots/         each snapshot as a read-only directory, by hash and by name
                   mkdir snapshots/N commits under the name N, rmdir snapshots/N drops the name
refs/              one line, the hash: head, latest, base and the names
jobs/N/status      `running <command>` or its outcome; `forget` to jobs/N/ctl takes a finished job off the list
",
];

/// Modes of read-only files and of files that accept commands.
const READ_MODE: u32 = libc::S_IFREG | 0o400;
const CTL_MODE: u32 = libc::S_IFREG | 0o600;

/// The files of `.karapace` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopFile {
    Ctl,
    Help,
    Version,
    Id,
    Status,
    StatusJson,
    Last,
    Diff,
}

impl TopFile {
    /// All files by name, in listing order.
    pub const ALL: [(&'static [u8], TopFile); 8] = [
        (b"ctl", TopFile::Ctl),
        (b"diff", TopFile::Diff),
        (b"help", TopFile::Help),
        (b"id", TopFile::Id),
        (b"last", TopFile::Last),
        (b"status", TopFile::Status),
        (b"status.json", TopFile::StatusJson),
        (b"version", TopFile::Version),
    ];

    pub fn from_name(name: &[u8]) -> Option<TopFile> {
        TopFile::ALL.iter().find(|(n, _)| *n == name).map(|(_, file)| *file)
    }
}

/// The last diff, cached while neither the view nor its head changes: using a file often looks it up twice.
#[derive(Default)]
pub(super) struct DiffCache(Mutex<Option<LastDiff>>);

struct LastDiff {
    generation: u64,
    head: HeadRef,
    text: Vec<u8>,
}

#[derive(Serialize)]
struct Status {
    state: String,
    head: String,
    mount: String,
    dirty_files: u64,
    dirty_bytes: u64,
    generation: u64,
    locks: &'static str,
}

impl ControlDir {
    /// Whether looking up this name may take long.
    pub fn is_slow(&self, parent: Ino, name: &[u8]) -> bool {
        match Dir::from_ino(parent) {
            Some(Dir::Top) => name == b"diff",
            // Pins the snapshot's tree in the store, which may be locked.
            Some(Dir::Snapshots) => true,
            _ => false,
        }
    }

    /// The node of a file in `.karapace`, with its current text.
    pub(super) fn open_top(&self, name: &[u8], file: TopFile) -> Result<Attr> {
        let content = match file {
            TopFile::Ctl => return Ok(self.open_ctl(Role::Ctl)),
            TopFile::Help => [HELP[0], command::HELP, HELP[1]].concat().into_bytes(),
            TopFile::Version => VERSION.into(),
            TopFile::Id => self.id_text(),
            TopFile::Status => self.status_text(),
            TopFile::StatusJson => self.status_json()?,
            TopFile::Last => self.last_text(),
            TopFile::Diff => self.diff_text()?,
        };
        Ok(self.open_text(Dir::Top, name, content))
    }

    /// Creates or reuses the node of a file with this text; returns its attributes.
    pub(super) fn open_text(&self, dir: Dir, name: &[u8], text: Vec<u8>) -> Attr {
        self.file_attr(&self.nodes.add_text(dir.ino(), name, text))
    }

    /// Creates a node that accepts commands; returns its attributes.
    pub(super) fn open_ctl(&self, role: Role) -> Attr {
        self.file_attr(&self.nodes.add_ctl(role))
    }

    /// The current attributes of a file node.
    pub(super) fn file_attr(&self, node: &FileNode) -> Attr {
        let mode = if node.role == Role::Text { READ_MODE } else { CTL_MODE };
        self.attr(node.ino, mode, node.size(), node.created)
    }

    /// Reads a file node. `offset` and `size` are in bytes.
    pub fn read(&self, ino: Ino, offset: u64, size: usize, buf: &mut Vec<u8>) -> Result<()> {
        if Dir::from_ino(ino).is_some() {
            return Err(Error::IsDirectory);
        }
        self.nodes.get(ino)?.read(offset, size, buf);
        Ok(())
    }

    /// Size of a file node in bytes.
    pub fn size(&self, ino: Ino) -> Result<u64> {
        Ok(self.nodes.get(ino)?.size())
    }

    /// Forgets `count` look-ups of a node.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.nodes.forget(ino, count);
    }

    fn id_text(&self) -> Vec<u8> {
        let id = self.plane.id();
        format!(
            "env_id: {}\nshort_id: {}\nname: {}\ninstance: {}\n",
            id.env_id, id.short_id, id.name, id.instance
        )
        .into_bytes()
    }

    fn last_text(&self) -> Vec<u8> {
        let last = self.last.lock().clone();
        if last.is_empty() { Vec::new() } else { (last + "\n").into_bytes() }
    }

    fn status(&self) -> Status {
        let (dirty_files, dirty_bytes) = self.plane.uncommitted(&self.view);
        Status {
            state: self.plane.state(),
            head: self.plane.head(),
            mount: self.mountpoint.to_string_lossy().into_owned(),
            dirty_files,
            dirty_bytes,
            generation: self.view.stats().generation,
            locks: self.locks.word(),
        }
    }

    fn status_text(&self) -> Vec<u8> {
        let s = self.status();
        let mount = text::path(self.mountpoint.as_os_str().as_bytes());
        format!(
            "state: {}\nhead: {}\nmount: {mount}\ndirty_files: {}\ndirty_bytes: {}\ngeneration: {}\nlocks: {}\n",
            s.state, s.head, s.dirty_files, s.dirty_bytes, s.generation, s.locks
        )
        .into_bytes()
    }

    fn status_json(&self) -> Result<Vec<u8>> {
        let document = serde_json::to_string(&self.status()).map_err(|e| Error::Io(e.into()))?;
        Ok(format!("{}\n", text::json(&document)).into_bytes())
    }

    fn diff_text(&self) -> Result<Vec<u8>> {
        let (generation, head) = (self.view.stats().generation, self.view.head());
        if let Some(last) = &*self.diff.0.lock()
            && (last.generation, last.head) == (generation, head)
        {
            return Ok(last.text.clone());
        }
        let text = format_diff(&self.plane.diff(&self.view)?);
        // Stored under the generation read before: after a concurrent change the next look-up computes it
        // again.
        *self.diff.0.lock() = Some(LastDiff { generation, head, text: text.clone() });
        Ok(text)
    }
}

/// One line per entry: `A|M|D <path>`.
fn format_diff(entries: &[DiffEntry]) -> Vec<u8> {
    let mut lines = String::new();
    for entry in entries {
        lines.push(entry.kind.letter());
        lines.push(' ');
        lines.push_str(&text::path(&entry.path));
        lines.push('\n');
    }
    lines.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::DiffKind;

    #[test]
    fn diff_lines() {
        let entry = |kind, path: &[u8]| DiffEntry { kind, path: path.to_vec() };
        let entries = [
            entry(DiffKind::Added, b"/a b"),
            entry(DiffKind::Deleted, b"/\xff\\"),
            entry(DiffKind::Modified, b"/x\ny\"\\"),
            entry(DiffKind::Added, b"/\x1b[2J"),
        ];
        let expected = b"A /a b\nD \"/\\377\\\\\"\nM \"/x\\ny\\\"\\\\\"\nA \"/\\033[2J\"\n";
        assert_eq!(format_diff(&entries), expected);
        assert_eq!(format_diff(&[]), b"");
    }

    #[test]
    fn listing_order() {
        let names: Vec<_> = TopFile::ALL.iter().map(|(n, _)| *n).collect();
        assert!(names.is_sorted());
    }
}
