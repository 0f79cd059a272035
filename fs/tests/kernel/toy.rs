//! The throw-away file system: an in-memory table and a log of the requests received. `serve.rs` answers
//! them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, InitFlags, ReplyEmpty, ReplyEntry, Request, WriteFlags,
};

/// Karapace's time-to-live of entries and attributes: effectively infinite for a test.
const FOREVER: Duration = Duration::from_secs(86_400);

/// Kind of a request, with the protocol's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    ReadLink,
    MkNod,
    MkDir,
    Unlink,
    RmDir,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Flush,
    Release,
    FSync,
    OpenDir,
    ReadDir,
    ReadDirPlus,
    ReleaseDir,
    StatFs,
    GetXattr,
    Access,
    Create,
    FAllocate,
    LSeek,
    CopyFileRange,
}

/// One request as received.
#[derive(Clone, Debug)]
pub struct Seen {
    pub op: Op,
    pub ino: u64,
    /// The name in the request; for GETXATTR the attribute's name; empty if there is none.
    pub name: Vec<u8>,
    /// Caller, in the ids of the mount's user namespace.
    pub uid: u32,
    /// SETATTR: mode, uid and size, as far as the kernel sent them.
    pub set: (Option<u32>, Option<u32>, Option<u64>),
    /// WRITE: offset, length and flags.
    pub write: Option<(u64, usize, WriteFlags)>,
    /// FORGET: number of references.
    pub count: u64,
}

/// One inode.
pub struct Node {
    pub kind: FileType,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    pub mtime: SystemTime,
    /// File content or link target.
    pub data: Vec<u8>,
    pub children: BTreeMap<Vec<u8>, u64>,
    /// References that the kernel holds.
    pub refs: u64,
}

impl Node {
    pub fn new(kind: FileType, perm: u16) -> Node {
        let nlink = if kind == FileType::Directory { 2 } else { 1 };
        Node {
            kind,
            perm,
            uid: 0,
            gid: 0,
            nlink,
            rdev: 0,
            mtime: SystemTime::now(),
            data: Vec::new(),
            children: BTreeMap::new(),
            refs: 0,
        }
    }
}

/// A request to hold back until [`Toy::release`].
type Hold = (Op, Vec<u8>);

/// The table, the log and the requests held back.
pub struct Inner {
    pub nodes: BTreeMap<u64, Node>,
    /// Time-to-live of entries and attributes. An absent name has ENOENT if it is zero.
    pub lifetime: Duration,
    next: u64,
    log: Vec<Seen>,
    holds: Vec<Hold>,
    held: usize,
}

/// Handle on the file system. Clones share it, so a test can inspect what it serves.
#[derive(Clone)]
pub struct Toy {
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Condvar>,
    pub flags: InitFlags,
}

impl Toy {
    /// Creates an empty tree. `flags` are requested from the kernel at INIT; if one is missing, the mount
    /// fails.
    pub fn new(flags: InitFlags) -> Toy {
        let mut nodes = BTreeMap::new();
        nodes.insert(1, Node::new(FileType::Directory, 0o755));
        let inner = Inner { nodes, lifetime: FOREVER, next: 2, log: Vec::new(), holds: Vec::new(), held: 0 };
        Toy { inner: Arc::new(Mutex::new(inner)), changed: Arc::new(Condvar::new()), flags }
    }

    /// Locks the table.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a handler of the toy panicked")
    }

    /// Adds a node behind the kernel's back, as a restore does, and returns its number.
    pub fn add(&self, parent: u64, name: &str, kind: FileType, perm: u16, data: &[u8]) -> u64 {
        let mut inner = self.lock();
        let ino = inner.insert(parent, name.as_bytes(), Node::new(kind, perm));
        inner.node(ino).data = data.to_vec();
        ino
    }

    /// Adds a regular file, mode 0666, to the root.
    pub fn file(&self, name: &str, data: &[u8]) -> u64 {
        self.add(1, name, FileType::RegularFile, 0o666, data)
    }

    /// Clears the log.
    pub fn clear(&self) {
        self.lock().log.clear();
    }

    /// The requests of one kind since the last [`Toy::clear`].
    pub fn seen(&self, op: Op) -> Vec<Seen> {
        self.lock().log.iter().filter(|seen| seen.op == op).cloned().collect()
    }

    /// Number of requests of one kind since the last [`Toy::clear`].
    pub fn count(&self, op: Op) -> usize {
        self.seen(op).len()
    }

    /// All requests since the last [`Toy::clear`].
    pub fn all(&self) -> Vec<Seen> {
        self.lock().log.clone()
    }

    /// Waits until `done` returns true for the state; returns false after a minute.
    pub fn wait(&self, mut done: impl FnMut(&mut Inner) -> bool) -> bool {
        let guard = self.lock();
        let limit = Duration::from_secs(60);
        let (_guard, timeout) = self
            .changed
            .wait_timeout_while(guard, limit, |inner| !done(inner))
            .expect("a handler of the toy panicked");
        !timeout.timed_out()
    }

    /// Holds back requests of this kind about this name until [`Toy::release`].
    pub fn hold(&self, op: Op, name: &str) {
        self.lock().holds.push((op, name.into()));
    }

    /// Waits until one request is being held back.
    pub fn wait_held(&self) {
        assert!(self.wait(|inner| inner.held > 0), "the request that was to be held back never arrived");
    }

    /// Releases all requests held back.
    pub fn release(&self) {
        self.lock().holds.clear();
        self.changed.notify_all();
    }

    /// Logs a request, and holds it back if a test asked for that.
    pub fn note(&self, seen: Seen) {
        let hold = (seen.op, seen.name.clone());
        let mut inner = self.lock();
        inner.log.push(seen);
        self.changed.notify_all();
        if inner.holds.contains(&hold) {
            inner.held += 1;
            self.changed.notify_all();
            let mut inner = self
                .changed
                .wait_while(inner, |inner| inner.holds.contains(&hold))
                .expect("a handler of the toy panicked");
            inner.held -= 1;
        }
    }

    /// Logs a request without further details.
    pub fn log(&self, req: &Request, op: Op, ino: INodeNo, name: &OsStr) {
        self.note(Seen::new(req, op, ino, name));
    }

    /// Creates a node owned by the caller and replies with it.
    pub fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, mut node: Node, reply: ReplyEntry) {
        let mut inner = self.lock();
        node.uid = req.uid();
        node.gid = req.gid();
        let ino = inner.insert(parent.0, name.as_bytes(), node);
        inner.node(ino).refs += 1;
        reply.entry(&inner.lifetime, &inner.attr(ino), Generation(0));
    }

    /// Removes a name and replies.
    pub fn remove(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.lock().take(parent.0, name.as_bytes()) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }
}

impl Seen {
    pub fn new(req: &Request, op: Op, ino: INodeNo, name: &OsStr) -> Seen {
        let name = name.as_bytes().to_vec();
        Seen { op, ino: ino.0, name, uid: req.uid(), set: (None, None, None), write: None, count: 0 }
    }
}

impl Inner {
    /// The node with this number.
    pub fn node(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).expect("a request about an inode that the kernel had forgotten")
    }

    /// Number of references returned for an inode.
    pub fn forgotten(&self, ino: u64) -> u64 {
        self.log.iter().filter(|seen| seen.op == Op::Forget && seen.ino == ino).map(|seen| seen.count).sum()
    }

    /// Puts a node under a name and returns its number.
    pub fn insert(&mut self, parent: u64, name: &[u8], node: Node) -> u64 {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, node);
        self.name(parent, name, ino);
        ino
    }

    /// Adds a name for an inode.
    pub fn name(&mut self, parent: u64, name: &[u8], ino: u64) {
        let parent = self.node(parent);
        parent.children.insert(name.into(), ino);
        parent.mtime = SystemTime::now();
    }

    /// Removes a name; the node stays until the kernel forgets it.
    pub fn take(&mut self, parent: u64, name: &[u8]) -> Option<u64> {
        let parent = self.node(parent);
        let ino = parent.children.remove(name)?;
        parent.mtime = SystemTime::now();
        self.node(ino).nlink -= 1;
        Some(ino)
    }

    /// Attributes of a node.
    pub fn attr(&self, ino: u64) -> FileAttr {
        let node = &self.nodes[&ino];
        FileAttr {
            ino: INodeNo(ino),
            size: node.data.len() as u64,
            blocks: (node.data.len() as u64).div_ceil(512),
            atime: node.mtime,
            mtime: node.mtime,
            ctime: node.mtime,
            crtime: node.mtime,
            kind: node.kind,
            perm: node.perm,
            nlink: node.nlink,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Names treated like Karapace's control files: nothing is cached, and each look-up returns a new inode.
pub fn is_control(name: &[u8]) -> bool {
    name.starts_with(b"ctl")
}
