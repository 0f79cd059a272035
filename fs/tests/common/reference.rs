//! The reference: a file system as a plain in-memory map, which returns the errors of Linux.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use karapace_fs::attr::RenameMode;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::batch::Batch;
use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, FileKind, Ino, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use karapace_store::root::Root;

type Id = usize;
type Path = [Vec<u8>];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink(Vec<u8>),
    Fifo,
    Whiteout,
}

#[derive(Clone, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    data: Arc<Vec<u8>>,
    entries: BTreeMap<Vec<u8>, Id>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Model {
    inodes: BTreeMap<Id, Inode>,
    next: Id,
}

/// What is visible at a path.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    kind: char,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    data: Arc<Vec<u8>>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shown { kind, mode, uid, gid, nlink, data, xattrs } = self;
        let sum = ObjectId::of(data).to_hex();
        let n = data.len();
        write!(f, "{kind} {mode:o} {uid}:{gid} x{nlink} {n} bytes {} {:?}", &sum[..8], xattrs.keys())
    }
}

const ROOT: Id = 0;

impl Model {
    pub fn new() -> Model {
        let mut model = Model { inodes: BTreeMap::new(), next: 0 };
        model.insert(Kind::Dir, 0o755);
        model
    }

    fn insert(&mut self, kind: Kind, mode: u32) -> Id {
        let id = self.next;
        self.next += 1;
        let data = match &kind {
            Kind::Symlink(target) => Arc::new(target.clone()),
            _ => Arc::default(),
        };
        let (entries, xattrs) = (BTreeMap::new(), BTreeMap::new());
        self.inodes.insert(id, Inode { kind, mode, uid: 0, gid: 0, data, entries, xattrs });
        id
    }

    fn parent(&self, path: &Path) -> Result<(Id, Vec<u8>), i32> {
        let (last, dirs) = path.split_last().unwrap();
        let mut at = ROOT;
        for part in dirs {
            at = *self.inodes[&at].entries.get(part).ok_or(libc::ENOENT)?;
            if self.inodes[&at].kind != Kind::Dir {
                return Err(libc::ENOTDIR);
            }
        }
        Ok((at, last.clone()))
    }

    fn find(&self, path: &Path) -> Result<Id, i32> {
        let (dir, name) = self.parent(path)?;
        self.inodes[&dir].entries.get(&name).copied().ok_or(libc::ENOENT)
    }

    fn inode(&mut self, path: &Path) -> Result<&mut Inode, i32> {
        let id = self.find(path)?;
        Ok(self.inodes.get_mut(&id).unwrap())
    }

    fn file(&mut self, path: &Path) -> Result<&mut Vec<u8>, i32> {
        let inode = self.inode(path)?;
        match inode.kind {
            Kind::File => Ok(Arc::make_mut(&mut inode.data)),
            Kind::Dir => Err(libc::EISDIR),
            _ => Err(libc::EINVAL),
        }
    }

    fn is_dir(&self, id: Id) -> bool {
        self.inodes[&id].kind == Kind::Dir
    }

    fn entry(&mut self, dir: Id, name: &[u8], to: Option<Id>) {
        let entries = &mut self.inodes.get_mut(&dir).unwrap().entries;
        match to {
            Some(id) => entries.insert(name.to_vec(), id),
            None => entries.remove(name),
        };
    }

    pub fn make(&mut self, path: &Path, kind: Kind, mode: u32) -> Result<(), i32> {
        let (dir, name) = self.parent(path)?;
        if self.inodes[&dir].entries.contains_key(&name) {
            return Err(libc::EEXIST);
        }
        self.make_in(dir, &name, kind, mode);
        Ok(())
    }

    fn make_in(&mut self, dir: Id, name: &[u8], kind: Kind, mode: u32) {
        let (set_gid, gid) = (self.inodes[&dir].mode & libc::S_ISGID, self.inodes[&dir].gid);
        let inherited = if kind == Kind::Dir { set_gid } else { 0 };
        let id = self.insert(kind, mode | inherited);
        if set_gid != 0 {
            self.inodes.get_mut(&id).unwrap().gid = gid;
        }
        self.entry(dir, name, Some(id));
    }

    pub fn link(&mut self, from: &Path, to: &Path) -> Result<(), i32> {
        let id = self.find(from)?;
        let (dir, name) = self.parent(to)?;
        if self.is_dir(id) {
            return Err(libc::EPERM);
        }
        if self.inodes[&dir].entries.contains_key(&name) {
            return Err(libc::EEXIST);
        }
        self.entry(dir, &name, Some(id));
        Ok(())
    }

    pub fn unlink(&mut self, path: &Path) -> Result<(), i32> {
        let id = self.find(path)?;
        if self.is_dir(id) {
            return Err(libc::EISDIR);
        }
        let (dir, name) = self.parent(path)?;
        self.entry(dir, &name, None);
        Ok(())
    }

    pub fn rmdir(&mut self, path: &Path) -> Result<(), i32> {
        let id = self.find(path)?;
        if !self.is_dir(id) {
            return Err(libc::ENOTDIR);
        }
        if !self.inodes[&id].entries.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        let (dir, name) = self.parent(path)?;
        self.entry(dir, &name, None);
        Ok(())
    }

    fn is_below(&self, id: Id, ancestor: Id) -> bool {
        id == ancestor || self.inodes[&ancestor].entries.values().any(|child| self.is_below(id, *child))
    }

    pub fn rename(&mut self, from: &Path, to: &Path, mode: RenameMode) -> Result<(), i32> {
        let (dir, name) = self.parent(from)?;
        let (new_dir, new_name) = self.parent(to)?;
        let id = self.find(from)?;
        let target = self.find(to).ok();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(libc::EEXIST),
            (RenameMode::Exchange, None) => return Err(libc::ENOENT),
            _ => {}
        }
        if self.is_dir(id) && self.is_below(new_dir, id) {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            if mode == RenameMode::Exchange {
                if self.is_dir(target) && self.is_below(dir, target) {
                    return Err(libc::EINVAL);
                }
                self.entry(dir, &name, Some(target));
                self.entry(new_dir, &new_name, Some(id));
                return Ok(());
            }
            match (self.is_dir(id), self.is_dir(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if target != id && !self.inodes[&target].entries.is_empty() => {
                    return Err(libc::ENOTEMPTY);
                }
                _ => {}
            }
            if target == id {
                return Ok(());
            }
        }
        self.entry(dir, &name, None);
        self.entry(new_dir, &new_name, Some(id));
        if mode == RenameMode::Whiteout {
            self.make_in(dir, &name, Kind::Whiteout, 0);
        }
        Ok(())
    }

    pub fn write(&mut self, path: &Path, offset: usize, bytes: &[u8]) -> Result<(), i32> {
        let data = self.file(path)?;
        data.resize(data.len().max(offset + bytes.len()), 0);
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    pub fn truncate(&mut self, path: &Path, size: usize) -> Result<(), i32> {
        self.file(path)?.resize(size, 0);
        Ok(())
    }

    pub fn punch(&mut self, path: &Path, offset: usize, len: usize) -> Result<(), i32> {
        let data = self.file(path)?;
        let end = data.len().min(offset + len);
        if offset < end {
            data[offset..end].fill(0);
        }
        Ok(())
    }

    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, i32> {
        Ok(self.file(path)?.clone())
    }

    pub fn chmod(&mut self, path: &Path, mode: u32) -> Result<(), i32> {
        let inode = self.inode(path)?;
        if matches!(inode.kind, Kind::Symlink(_)) {
            return Err(libc::EOPNOTSUPP);
        }
        inode.mode = mode & 0o7777;
        Ok(())
    }

    pub fn chown(&mut self, path: &Path, uid: u8, gid: u8) -> Result<(), i32> {
        let inode = self.inode(path)?;
        inode.uid = uid.into();
        inode.gid = gid.into();
        if inode.kind != Kind::Dir {
            inode.mode &= !libc::S_ISUID;
            if inode.mode & libc::S_IXGRP != 0 {
                inode.mode &= !libc::S_ISGID;
            }
        }
        Ok(())
    }

    pub fn setxattr(&mut self, path: &Path, name: &str, value: &[u8]) -> Result<(), i32> {
        self.inode(path)?.xattrs.insert(name.to_owned(), value.to_vec());
        Ok(())
    }

    pub fn removexattr(&mut self, path: &Path, name: &str) -> Result<(), i32> {
        self.inode(path)?.xattrs.remove(name).map(drop).ok_or(libc::ENODATA)
    }

    pub fn dump(&self) -> BTreeMap<Vec<u8>, Shown> {
        let mut links: BTreeMap<Id, u32> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        self.count(ROOT, &mut links, &mut seen);
        let mut out = BTreeMap::new();
        self.dump_into(ROOT, b"".to_vec(), &links, &mut out);
        out
    }

    fn count(&self, id: Id, links: &mut BTreeMap<Id, u32>, seen: &mut BTreeSet<Id>) {
        if !seen.insert(id) {
            return;
        }
        for child in self.inodes[&id].entries.values() {
            *links.entry(*child).or_default() += 1;
            self.count(*child, links, seen);
        }
    }

    fn dump_into(
        &self,
        id: Id,
        path: Vec<u8>,
        links: &BTreeMap<Id, u32>,
        out: &mut BTreeMap<Vec<u8>, Shown>,
    ) {
        let inode = &self.inodes[&id];
        let (kind, nlink) = match inode.kind {
            Kind::Dir => ('d', 2 + inode.entries.values().filter(|c| self.is_dir(**c)).count() as u32),
            Kind::File => ('f', links[&id]),
            Kind::Symlink(_) => ('l', links[&id]),
            Kind::Fifo => ('p', links[&id]),
            Kind::Whiteout => ('c', links[&id]),
        };
        let Inode { mode, uid, gid, .. } = *inode;
        let (data, xattrs) = (inode.data.clone(), inode.xattrs.clone());
        out.insert(path.clone(), Shown { kind, mode, uid, gid, nlink, data, xattrs });
        for (name, child) in &inode.entries {
            let below = [&path[..], b"/", name].concat();
            self.dump_into(*child, below, links, out);
        }
    }

    pub fn same(&self, other: &Model) -> bool {
        self.dump() == other.dump()
    }

    /// A, M and D lines as in `diff`, sorted.
    pub fn diff(&self, new: &Model) -> Vec<(char, Vec<u8>)> {
        let (old, new) = (self.dump(), new.dump());
        let mut changes = Vec::new();
        let root = |path: &Vec<u8>| if path.is_empty() { b"/".to_vec() } else { path.clone() };
        for (path, before) in &old {
            match new.get(path) {
                None => changes.push(('D', root(path))),
                Some(after) if after.kind != before.kind => {
                    changes.push(('D', root(path)));
                    changes.push(('A', root(path)));
                }
                Some(after) => {
                    let mut after = after.clone();
                    after.nlink = before.nlink;
                    if after != *before {
                        changes.push(('M', root(path)));
                    }
                }
            }
        }
        changes.extend(new.keys().filter(|path| !old.contains_key(*path)).map(|path| ('A', root(path))));
        changes.sort();
        changes
    }
}

/// The view's contents in the model's terms.
pub fn dump(view: &View) -> BTreeMap<Vec<u8>, Shown> {
    let mut out = BTreeMap::new();
    dump_dir(view, ROOT_INO, b"".to_vec(), &mut out);
    out
}

fn dump_dir(view: &View, ino: Ino, path: Vec<u8>, out: &mut BTreeMap<Vec<u8>, Shown>) {
    let attr = view.getattr(ino).unwrap();
    let kind = FileKind::from_mode(attr.mode).unwrap();
    let mut data = Vec::new();
    let letter = match kind {
        FileKind::Directory => 'd',
        FileKind::Regular => {
            view.read(ino, 0, 16 << 20, &mut data).unwrap();
            assert_eq!(data.len() as u64, attr.size);
            'f'
        }
        FileKind::Symlink => {
            data = view.readlink(ino).unwrap();
            'l'
        }
        FileKind::Fifo => 'p',
        _ => 'c',
    };
    let names = view.listxattr(ino, true).unwrap();
    let names = names.split(|b| *b == 0).filter(|n| !n.is_empty());
    let xattrs =
        names.map(|n| (String::from_utf8_lossy(n).into_owned(), view.getxattr(ino, n).unwrap())).collect();
    let shown = Shown {
        kind: letter,
        mode: attr.mode & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        nlink: attr.nlink,
        data: Arc::new(data),
        xattrs,
    };
    out.insert(path.clone(), shown);
    if kind != FileKind::Directory {
        return;
    }
    let mut names = Vec::new();
    view.readdir(ino, 0, false, &mut |item| {
        names.push(item.name.to_vec());
        true
    })
    .unwrap();
    for name in names.into_iter().filter(|n| n != b"." && n != b"..") {
        let child = view.lookup(ino, &name).unwrap();
        dump_dir(view, child.ino, [&path[..], b"/", &name].concat(), out);
        view.forget(child.ino, 1);
    }
}

/// The base of an environment with nothing in it.
pub fn empty_root(store: &Arc<Store>) -> ObjectId {
    let zero = Timestamp { secs: 0, nanos: 0 };
    let inode = InodeRecord {
        ino: ROOT_INO,
        mode: libc::S_IFDIR | 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        xattrs: Xattrs::default(),
        body: Body::Directory { tree: None, links: false },
    };
    let mut batch = Batch::new(store).unwrap();
    let root = Root { inode, links: None, next_ino: 2 }.write(&mut batch).unwrap();
    batch.commit().unwrap();
    root
}
