//! The toy's replies: ENOSYS to OPEN, OPENDIR, CREATE and FLUSH; EACCES when ACCESS asks to execute a file;
//! infinite times-to-live; inode 0 for absent names; and nothing cached for names that begin with `ctl`.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::kernel::toy::{Node, Op, Seen, Toy, is_control};

impl Filesystem for Toy {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(self.flags)
            .map_err(|lacking| io::Error::other(format!("the kernel does not offer {lacking:?}")))
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.log(req, Op::Lookup, parent, name);
        let name = name.as_bytes();
        if name.len() > 255 {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let mut inner = self.lock();
        if is_control(name) {
            let node = Node { nlink: 1, ..Node::new(FileType::RegularFile, 0o600) };
            let ino = inner.insert(parent.0, name, node);
            inner.node(ino).refs = 1;
            return reply.entry(&Duration::ZERO, &inner.attr(ino), Generation(0));
        }
        match inner.node(parent.0).children.get(name).copied() {
            Some(ino) => {
                inner.node(ino).refs += 1;
                reply.entry(&inner.lifetime, &inner.attr(ino), Generation(0));
            }
            // A negative entry: inode number 0, cached for as long as a positive one.
            None if inner.lifetime.is_zero() => reply.error(Errno::ENOENT),
            None => {
                reply.entry(&inner.lifetime, &FileAttr { ino: INodeNo(0), ..inner.attr(1) }, Generation(0))
            }
        }
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(node) = self.lock().nodes.get_mut(&ino.0) {
            node.refs = node.refs.saturating_sub(nlookup);
        }
        self.note(Seen { count: nlookup, ..Seen::new(req, Op::Forget, ino, OsStr::new("")) });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.log(req, Op::GetAttr, ino, OsStr::new(""));
        let inner = self.lock();
        reply.attr(&inner.lifetime, &inner.attr(ino.0));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.note(Seen { set: (mode, uid, size), ..Seen::new(req, Op::SetAttr, ino, OsStr::new("")) });
        let mut inner = self.lock();
        let node = inner.node(ino.0);
        node.perm = mode.map_or(node.perm, |mode| (mode & 0o7777) as u16);
        node.uid = uid.unwrap_or(node.uid);
        node.gid = gid.unwrap_or(node.gid);
        if let Some(size) = size {
            node.data.resize(size as usize, 0);
        }
        reply.attr(&inner.lifetime, &inner.attr(ino.0));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.log(req, Op::ReadLink, ino, OsStr::new(""));
        reply.data(&self.lock().node(ino.0).data);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.log(req, Op::MkNod, parent, name);
        let kind = match mode & libc::S_IFMT {
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFIFO => FileType::NamedPipe,
            _ => FileType::RegularFile,
        };
        let node = Node { rdev, ..Node::new(kind, (mode & 0o7777) as u16) };
        self.make(req, parent, name, node, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.log(req, Op::MkDir, parent, name);
        self.make(req, parent, name, Node::new(FileType::Directory, (mode & 0o7777) as u16), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.log(req, Op::Unlink, parent, name);
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.log(req, Op::RmDir, parent, name);
        self.remove(parent, name, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.log(req, Op::Rename, parent, name);
        let mut inner = self.lock();
        let Some(ino) = inner.node(parent.0).children.remove(name.as_bytes()) else {
            return reply.error(Errno::ENOENT);
        };
        inner.name(newparent.0, newname.as_bytes(), ino);
        reply.ok();
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.log(req, Op::Link, ino, newname);
        let mut inner = self.lock();
        inner.name(newparent.0, newname.as_bytes(), ino.0);
        let node = inner.node(ino.0);
        node.nlink += 1;
        node.refs += 1;
        reply.entry(&inner.lifetime, &inner.attr(ino.0), Generation(0));
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.log(req, Op::Open, ino, OsStr::new(""));
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.log(req, Op::Read, ino, OsStr::new(""));
        let mut inner = self.lock();
        let data = &inner.node(ino.0).data;
        let start = data.len().min(offset as usize);
        let end = data.len().min(start + size as usize);
        reply.data(&data[start..end]);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let seen = Seen::new(req, Op::Write, ino, OsStr::from_bytes(&data[..data.len().min(16)]));
        self.note(Seen { write: Some((offset, data.len(), write_flags)), ..seen });
        let mut inner = self.lock();
        if data.starts_with(b"nonsense") {
            return reply.error(Errno::EINVAL);
        }
        let node = inner.node(ino.0);
        let end = offset as usize + data.len();
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[offset as usize..end].copy_from_slice(data);
        node.mtime = SystemTime::now();
        if data.starts_with(b"command") {
            node.data.extend_from_slice(b"ok done\n");
        }
        reply.written(data.len() as u32);
    }

    fn flush(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.log(req, Op::Flush, ino, OsStr::new(""));
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.log(req, Op::Release, ino, OsStr::new(""));
        reply.ok();
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.log(req, Op::FSync, ino, OsStr::new(""));
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.log(req, Op::OpenDir, ino, OsStr::new(""));
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _offset: u64, reply: ReplyDirectory) {
        self.log(req, Op::ReadDir, ino, OsStr::new(""));
        reply.error(Errno::EIO);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.log(req, Op::ReadDirPlus, ino, OsStr::new(""));
        let mut inner = self.lock();
        let listing: Vec<(Vec<u8>, u64)> =
            inner.node(ino.0).children.iter().map(|(name, ino)| (name.clone(), *ino)).collect();
        for (index, (name, child)) in listing.iter().enumerate().skip(offset as usize) {
            let attr = inner.attr(*child);
            let name = OsStr::from_bytes(name);
            if reply.add(INodeNo(*child), index as u64 + 1, name, &inner.lifetime, &attr, Generation(0)) {
                break;
            }
            inner.node(*child).refs += 1;
        }
        reply.ok();
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.log(req, Op::ReleaseDir, ino, OsStr::new(""));
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.log(req, Op::StatFs, ino, OsStr::new(""));
        reply.statfs(1, 1, 1, 1, 1, 4096, 255, 4096);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, _size: u32, reply: ReplyXattr) {
        self.log(req, Op::GetXattr, ino, name);
        reply.error(Errno::NO_XATTR);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        self.log(req, Op::Access, ino, OsStr::new(""));
        // chdir(2) asks for execute permission.
        let file = self.lock().node(ino.0).kind != FileType::Directory;
        if file && mask.contains(AccessFlags::X_OK) { reply.error(Errno::EACCES) } else { reply.ok() }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.log(req, Op::Create, parent, name);
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        self.log(req, Op::FAllocate, ino, OsStr::new(""));
        self.lock().node(ino.0).data.resize((offset + length) as usize, 0);
        reply.ok();
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.log(req, Op::LSeek, ino, OsStr::new(""));
        // Pretends that the first 4 KiB of every file are a hole.
        reply.offset(if whence == libc::SEEK_DATA { offset.max(4096) } else { offset });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.log(req, Op::CopyFileRange, ino_in, OsStr::new(""));
        reply.error(Errno::ENOSYS);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.log(req, Op::MkNod, parent, name);
        let node =
            Node { data: target.as_os_str().as_bytes().to_vec(), ..Node::new(FileType::Symlink, 0o777) };
        self.make(req, parent, name, node, reply);
    }
}
