//! fuser's trait: opens a span for each request and passes it to `requests`, `listing` and the like.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig, LockOwner,
    OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::locks::Asked;
use super::nodes::split;
use super::reply::{set_time, timestamp};
use super::{Server, Shared};
use crate::attr::SetAttr;

/// Attributes everything logged until the end of the block to this request: operation, caller and node.
macro_rules! span {
    ($operation:literal, $request:ident, $node:ident $(, $($fields:tt)+)?) => {
        tracing::trace_span!(
            "request",
            unique = $request.unique().0,
            operation = $operation,
            node = $node.0,
            pid = $request.pid(),
            errno = tracing::field::Empty,
            $($($fields)+)?
        )
        .entered()
    };
}

impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.0.configure(config)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _span = span!("lookup", req, parent, name = ?name);
        self.0.lookup(req, parent, name.as_bytes(), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let (index, ino) = split(ino.0);
        self.0.forget(index, ino, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _span = span!("getattr", req, ino);
        self.0.getattr(ino, reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _span = span!("setattr", req, ino);
        let ids = &self.0.ids;
        let mut set = SetAttr {
            mode,
            without: 0,
            uid: uid.map(|uid| ids.stored_uid(uid)),
            gid: gid.map(|gid| ids.stored_gid(gid)),
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(timestamp),
            kill_priv: false,
        };
        // With HANDLE_KILLPRIV_V2 it is up to us to drop set-user-id: on a change of owner, and on a change
        // of size by a caller without CAP_FSETID. fuser does not expose FATTR_KILL_SUIDGID, so "not root"
        // stands for the latter.
        set.kill_priv = uid.is_some() || gid.is_some() || (size.is_some() && Shared::caller_uid(req) != 0);
        self.0.setattr(req, ino, &set, reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _span = span!("readlink", req, ino);
        self.0.readlink(ino, reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _span = span!("mknod", req, parent, name = ?name);
        self.0.mknod(req, parent, name.as_bytes(), (mode, umask, rdev), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _span = span!("mkdir", req, parent, name = ?name);
        self.0.mkdir(req, parent, name.as_bytes(), (mode, umask), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = span!("unlink", req, parent, name = ?name);
        self.0.unlink(req, parent, name.as_bytes(), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = span!("rmdir", req, parent, name = ?name);
        self.0.rmdir(req, parent, name.as_bytes(), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _span = span!("symlink", req, parent, name = ?link_name);
        self.0.symlink(req, parent, link_name.as_bytes(), target.as_os_str().as_bytes(), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _span = span!("rename", req, parent, name = ?name, to = newparent.0, new = ?newname);
        self.0.rename(req, (parent, name.as_bytes()), (newparent, newname.as_bytes()), flags, reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _span = span!("link", req, ino, to = newparent.0, new = ?newname);
        self.0.link(ino, newparent, newname.as_bytes(), reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _span = span!("open", req, ino);
        self.0.open(ino, reply);
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _span = span!("release", req, ino);
        self.0.release(ino, fh);
        reply.ok();
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let _span = span!("flush", req, ino);
        self.0.flush(ino, fh, owner, reply);
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let _span = span!("getlk", req, ino, start, end, typ);
        self.0.getlk(ino, &Asked { owner, handle: fh, range: (start, end), typ, pid }, reply);
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let _span = span!("setlk", req, ino, start, end, typ, sleep);
        self.0.setlk(req, ino, &Asked { owner, handle: fh, range: (start, end), typ, pid }, sleep, reply);
    }

    // One ENOSYS from each of these (from open only without passthrough and without shared locks, from
    // opendir only if no other mount may come) makes the kernel do without them for the whole mount, as one
    // from flush does: it opens files by itself, creates with MKNOD, and sends no FLUSH.

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.opendir(ino) {
            Some(flags) => reply.opened(FileHandle(0), flags),
            None => reply.error(Errno::ENOSYS),
        }
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let _span = span!("access", req, ino);
        self.0.access(ino, mask, reply);
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
        let _span = span!("read", req, ino, offset, size);
        self.0.read(ino, offset, size as usize, reply);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _span = span!("write", req, ino, offset, size = data.len());
        let appends = flags.0 & libc::O_APPEND != 0;
        self.0.write(req, ino, (offset, data), (write_flags, appends), reply);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _span = span!("fsync", req, ino);
        self.0.fsync(ino, reply);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let _span = span!("fsyncdir", req, ino);
        self.0.fsync(ino, reply);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let _span = span!("readdir", req, ino, offset);
        self.0.readdir(req, ino, offset, reply);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _span = span!("readdirplus", req, ino, offset);
        self.0.readdirplus(req, ino, offset, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let _span = span!("statfs", req, ino);
        self.0.statfs(ino, reply);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _span = span!("setxattr", req, ino, name = ?name);
        self.0.setxattr(req, ino, name.as_bytes(), value, flags, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _span = span!("getxattr", req, ino, name = ?name);
        self.0.getxattr(ino, name.as_bytes(), size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _span = span!("listxattr", req, ino);
        self.0.listxattr(req, ino, size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _span = span!("removexattr", req, ino, name = ?name);
        self.0.removexattr(ino, name.as_bytes(), reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _span = span!("fallocate", req, ino, offset, length, mode);
        self.0.fallocate(req, ino, (offset, length), mode, reply);
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
        let _span = span!("lseek", req, ino, offset, whence);
        self.0.lseek(ino, offset, whence, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel then copies through its page cache.
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: fuser::ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }
}
