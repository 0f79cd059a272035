//! What the mount must hold: a tree in memory, and operations that are done to both.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir {
        mode: u32,
    },
    /// Which file: names of one number are hard links.
    File {
        file: u32,
    },
    Symlink {
        target: String,
    },
}

/// A file's content and mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub bytes: Arc<Vec<u8>>,
    pub mode: u32,
}

/// A whole tree; names are paths below its root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    pub names: BTreeMap<String, Node>,
    pub files: BTreeMap<u32, Content>,
}

/// One system call (or one that POSIX lets happen in part: `Write`).
#[derive(Clone, Debug)]
pub enum Op {
    Create { path: String, file: u32 },
    Write { path: String, offset: usize, data: Arc<Vec<u8>> },
    Truncate { path: String, size: usize },
    Mkdir { path: String },
    Remove { path: String },
    Rename { from: String, to: String },
    Link { from: String, to: String },
    Symlink { path: String, target: String },
    Chmod { path: String, mode: u32 },
    Fsync { path: String },
}

impl Tree {
    /// What a directory of the host holds, read once: hard links are told by inode number.
    pub fn read(root: &Path) -> io::Result<Tree> {
        let (mut tree, mut inodes) = (Tree::default(), BTreeMap::new());
        tree.read_below(root, "", &mut inodes)?;
        Ok(tree)
    }

    fn read_below(&mut self, root: &Path, dir: &str, inodes: &mut BTreeMap<u64, u32>) -> io::Result<()> {
        for entry in fs::read_dir(root.join(dir))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let full = root.join(&path);
            let meta = full.symlink_metadata()?;
            let mode = meta.mode() & 0o7777;
            if meta.is_dir() {
                self.names.insert(path.clone(), Node::Dir { mode });
                self.read_below(root, &path, inodes)?;
            } else if meta.is_symlink() {
                let target =
                    String::from_utf8_lossy(fs::read_link(&full)?.as_os_str().as_bytes()).into_owned();
                self.names.insert(path, Node::Symlink { target });
            } else {
                let next = inodes.len() as u32;
                let file = *inodes.entry(meta.ino()).or_insert(next);
                self.files.insert(file, Content { bytes: Arc::new(fs::read(&full)?), mode });
                self.names.insert(path, Node::File { file });
            }
        }
        Ok(())
    }

    fn file_of(&self, path: &str) -> Option<u32> {
        match self.names.get(path) {
            Some(Node::File { file }) => Some(*file),
            _ => None,
        }
    }

    pub fn content(&self, path: &str) -> Option<&Content> {
        self.file_of(path).and_then(|file| self.files.get(&file))
    }

    /// Does to the model what the operation does to the mount.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { path, file } => {
                self.names.insert(path.clone(), Node::File { file: *file });
                self.files.insert(*file, Content { bytes: Arc::default(), mode: 0o644 });
            }
            Op::Write { path, offset, data } => self.edit(path, |bytes| {
                bytes.resize(bytes.len().max(offset + data.len()), 0);
                bytes[*offset..offset + data.len()].copy_from_slice(data);
            }),
            Op::Truncate { path, size } => self.edit(path, |bytes| bytes.resize(*size, 0)),
            Op::Mkdir { path } => {
                self.names.insert(path.clone(), Node::Dir { mode: 0o755 });
            }
            Op::Remove { path } => {
                self.names.remove(path);
                self.drop_unnamed();
            }
            Op::Rename { from, to } => self.rename(from, to),
            Op::Link { from, to } => {
                let node = self.names[from].clone();
                self.names.insert(to.clone(), node);
            }
            Op::Symlink { path, target } => {
                self.names.insert(path.clone(), Node::Symlink { target: target.clone() });
            }
            Op::Chmod { path, mode } => match self.names.get_mut(path) {
                Some(Node::Dir { mode: old }) => *old = *mode,
                Some(Node::File { file }) => {
                    if let Some(content) = self.files.get_mut(file) {
                        content.mode = *mode;
                    }
                }
                _ => {}
            },
            Op::Fsync { .. } => {}
        }
    }

    fn edit(&mut self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(content) = self.file_of(path).and_then(|file| self.files.get_mut(&file)) {
            change(Arc::make_mut(&mut content.bytes));
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        let below = format!("{from}/");
        let moved: Vec<String> =
            self.names.keys().filter(|name| *name == from || name.starts_with(&below)).cloned().collect();
        for name in moved {
            if let Some(node) = self.names.remove(&name) {
                self.names.insert(format!("{to}{}", &name[from.len()..]), node);
            }
        }
        self.drop_unnamed();
    }

    fn drop_unnamed(&mut self) {
        let named: Vec<u32> = self.names.keys().filter_map(|path| self.file_of(path)).collect();
        self.files.retain(|file, _| named.contains(file));
    }

    /// Whether two trees are the same to who looks at them: numbers of files only tell which names are links.
    pub fn difference(&self, other: &Tree) -> Option<String> {
        if let Some(shape) = self.shape_difference(other) {
            return Some(shape);
        }
        for path in self.names.keys() {
            let (a, b) = (self.content(path), other.content(path));
            if let (Some(a), Some(b)) = (a, b)
                && a.bytes != b.bytes
            {
                let at = a.bytes.iter().zip(b.bytes.iter()).position(|(a, b)| a != b);
                return Some(format!(
                    "{path}: {} bytes and {} bytes, first difference {at:?}",
                    a.bytes.len(),
                    b.bytes.len()
                ));
            }
        }
        None
    }

    /// Like `difference`, but for the contents of files.
    pub fn shape_difference(&self, other: &Tree) -> Option<String> {
        for path in self.names.keys().chain(other.names.keys()) {
            let (a, b) = (self.names.get(path), other.names.get(path));
            let same = match (a, b) {
                (Some(Node::File { file: x }), Some(Node::File { file: y })) => {
                    let modes = |tree: &Tree, file| tree.files.get(file).map(|c| c.mode);
                    modes(self, x) == modes(other, y) && self.links(*x) == other.links(*y)
                }
                (a, b) => a == b,
            };
            if !same {
                return Some(format!("{path}: {a:?} and {b:?}"));
            }
        }
        None
    }

    /// Whether a path is a file of the root that another tree has under this name only, or not at all: who
    /// takes this one file into the other changes nothing else there.
    pub fn stands_alone(&self, path: &str, other: &Tree) -> bool {
        let Some(file) = self.file_of(path).filter(|_| !path.contains('/')) else { return false };
        let replaced = match other.names.get(path) {
            None => true,
            Some(Node::File { file }) => other.links(*file).len() == 1,
            Some(_) => false,
        };
        replaced && self.links(file).len() == 1 && other.links(file).iter().all(|name| *name == path)
    }

    /// This tree with one file as it is in another.
    pub fn with_file_of(&self, other: &Tree, path: &str) -> Tree {
        let mut tree = self.clone();
        if let (Some(file), Some(content)) = (other.file_of(path), other.content(path)) {
            tree.names.insert(path.to_owned(), Node::File { file });
            tree.files.insert(file, content.clone());
            tree.drop_unnamed();
        }
        tree
    }

    fn links(&self, file: u32) -> Vec<&String> {
        self.names.iter().filter(|(_, n)| **n == Node::File { file }).map(|(path, _)| path).collect()
    }
}

impl Op {
    /// Does the operation below `root`.
    pub fn run(&self, root: &Path) -> io::Result<()> {
        match self {
            Op::Create { path, .. } => {
                let path = root.join(path);
                File::create_new(&path)?;
                Ok(())
            }
            Op::Write { path, offset, data } => {
                let file = OpenOptions::new().write(true).open(root.join(path))?;
                file.write_all_at(data, *offset as u64)
            }
            Op::Truncate { path, size } => {
                OpenOptions::new().write(true).open(root.join(path))?.set_len(*size as u64)
            }
            Op::Mkdir { path } => fs::create_dir(root.join(path)),
            Op::Remove { path } => {
                let path = root.join(path);
                if path.symlink_metadata()?.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }
            }
            Op::Rename { from, to } => fs::rename(root.join(from), root.join(to)),
            Op::Link { from, to } => fs::hard_link(root.join(from), root.join(to)),
            Op::Symlink { path, target } => std::os::unix::fs::symlink(target, root.join(path)),
            Op::Chmod { path, mode } => fs::set_permissions(root.join(path), Permissions::from_mode(*mode)),
            Op::Fsync { path } => File::open(root.join(path))?.sync_all(),
        }
    }
}

/// A generator of numbers that gives the same ones for the same seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 16) % n.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len())]) }
    }

    fn bytes(&mut self, n: usize) -> Arc<Vec<u8>> {
        let mut bytes = Vec::with_capacity(n + 8);
        while bytes.len() < n {
            // Never zero: a hole where data should be is seen.
            bytes.extend(self.next().to_le_bytes().map(|b| b | 1));
        }
        bytes.truncate(n);
        Arc::new(bytes)
    }
}

/// Makes operations that fit a tree.
#[derive(Clone, Debug)]
pub struct Generator {
    pub random: Random,
    next_file: u32,
    next_name: u32,
    /// The rest of a sequence that was begun.
    queue: Vec<Op>,
}

/// Files above so many bytes are kept by blocks once they were committed.
const LARGE: usize = 1 << 20;

/// A tree has about so many names; above, more is removed than made.
const NAMES: usize = 40;

impl Generator {
    pub fn new(seed: u64) -> Generator {
        Generator { random: Random::new(seed), next_file: 1000, next_name: 0, queue: Vec::new() }
    }

    /// Forgets a sequence that was begun: the tree is another one now.
    pub fn restart(&mut self) {
        self.queue.clear();
    }

    fn fresh_file(&mut self) -> u32 {
        self.next_file += 1;
        self.next_file
    }

    fn new_path(&mut self, tree: &Tree) -> String {
        let mut dirs: Vec<&str> = vec![""];
        dirs.extend(
            tree.names.iter().filter(|(_, n)| matches!(n, Node::Dir { .. })).map(|(p, _)| p.as_str()),
        );
        dirs.retain(|dir| dir.matches('/').count() < 3);
        let dir = self.random.pick(&dirs).map_or("", |dir| *dir).to_owned();
        self.next_name += 1;
        let name = format!("n{}", self.next_name);
        if dir.is_empty() { name } else { format!("{dir}/{name}") }
    }

    /// The next operation on `tree`.
    pub fn next(&mut self, tree: &Tree) -> Op {
        if let Some(op) = self.queue.pop() {
            return op;
        }
        loop {
            if let Some(op) = self.attempt(tree) {
                return op;
            }
        }
    }

    /// A write into a file that may be kept by blocks, and some more into it: over the same bytes and
    /// elsewhere, synced in between or not.
    fn write_into_large(&mut self, tree: &Tree) -> Option<Op> {
        let is_large = |path: &&String| tree.content(path).is_some_and(|content| content.bytes.len() > LARGE);
        let large: Vec<&String> = tree.names.keys().filter(is_large).collect();
        let path = (*self.random.pick(&large)?).clone();
        let size = tree.content(&path)?.bytes.len();
        let mut at = self.random.below(size);
        for _ in 0..self.random.below(5) {
            let most = if self.random.below(3) == 0 { 200_000 } else { 4000 };
            let n = 1 + self.random.below(most);
            let data = self.random.bytes(n);
            self.queue.push(Op::Write { path: path.clone(), offset: at, data });
            match self.random.below(4) {
                0 => self.queue.push(Op::Fsync { path: path.clone() }),
                1 => {}
                _ => at = self.random.below(size),
            }
        }
        let n = 1 + self.random.below(3000);
        let data = self.random.bytes(n);
        Some(Op::Write { path, offset: at, data })
    }

    fn attempt(&mut self, tree: &Tree) -> Option<Op> {
        let files: Vec<String> = tree
            .names
            .iter()
            .filter(|(_, n)| matches!(n, Node::File { .. }))
            .map(|(p, _)| p.clone())
            .collect();
        let dirs: Vec<String> = tree
            .names
            .iter()
            .filter(|(_, n)| matches!(n, Node::Dir { .. }))
            .map(|(p, _)| p.clone())
            .collect();
        let crowded = tree.names.len() > NAMES;
        let file = self.random.pick(&files).cloned();
        Some(match self.random.below(if crowded { 120 } else { 100 }) {
            0..=14 => {
                let path = self.new_path(tree);
                let n = 1 + self.random.below(6000);
                let data = self.random.bytes(n);
                if self.random.below(3) == 0 {
                    self.queue.push(Op::Fsync { path: path.clone() });
                }
                self.queue.push(Op::Write { path: path.clone(), offset: 0, data });
                Op::Create { path, file: self.fresh_file() }
            }
            15..=20 => self.write_into_large(tree)?,
            21..=34 => {
                let path = file?;
                let size = tree.content(&path)?.bytes.len();
                let offset = self.random.below(size + 100);
                let n = 1 + self.random.below(if size > 1 << 20 { 150_000 } else { 4000 });
                let data = self.random.bytes(n);
                if self.random.below(3) == 0 {
                    self.queue.push(Op::Fsync { path: path.clone() });
                }
                Op::Write { path, offset, data }
            }
            35..=40 => {
                let path = file?;
                let size = tree.content(&path)?.bytes.len();
                Op::Truncate { path, size: self.random.below(size + size / 3 + 1) }
            }
            41..=46 => Op::Mkdir { path: self.new_path(tree) },
            47..=56 => {
                let to = file?;
                // The usual way to replace a file: without an fsync.
                let path = self.new_path(tree);
                let n = 1 + self.random.below(6000);
                let data = self.random.bytes(n);
                self.queue.push(Op::Rename { from: path.clone(), to });
                self.queue.push(Op::Write { path: path.clone(), offset: 0, data });
                Op::Create { path, file: self.fresh_file() }
            }
            57..=64 => Op::Rename { from: file?, to: self.new_path(tree) },
            65..=68 => {
                let (from, to) = (self.random.pick(&dirs)?.clone(), self.new_path(tree));
                if to.starts_with(&format!("{from}/")) {
                    return None;
                }
                Op::Rename { from, to }
            }
            69..=72 => Op::Link { from: file?, to: self.new_path(tree) },
            73..=75 => Op::Symlink { path: self.new_path(tree), target: format!("t{}", self.next_name) },
            76..=80 => {
                let names: Vec<&String> = files.iter().chain(dirs.iter()).collect();
                let path = (*self.random.pick(&names)?).clone();
                Op::Chmod { path, mode: 0o700 | self.random.below(0o100) as u32 }
            }
            81..=92 => Op::Fsync { path: file.or_else(|| dirs.first().cloned())? },
            _ => {
                let names: Vec<&String> = tree.names.keys().collect();
                let path = (*self.random.pick(&names)?).clone();
                let below = format!("{path}/");
                if names.iter().any(|name| name.starts_with(&below)) {
                    return None;
                }
                Op::Remove { path }
            }
        })
    }
}
