//! Locks on files, on a mount whose kernel does not keep them itself.

use std::io::IoSliceMut;
use std::sync::Arc;

use fuser::{Errno, FileHandle, INodeNo, LockOwner, ReplyEmpty, ReplyLock, Request};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::getpid;

use super::Shared;
use super::nodes::{LIVE, split};
use crate::locks::{Else, File, Kind, Lock, LockScope, Mode, Owner};

/// What a request asks of a lock, in the kernel's terms.
pub(super) struct Asked {
    pub owner: LockOwner,
    pub handle: FileHandle,
    /// The first and the last byte.
    pub range: (u64, u64),
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub typ: i32,
    pub pid: u32,
}

impl Shared {
    /// Whether this mount's locks are kept here.
    pub(super) fn shares_locks(&self) -> bool {
        self.options.locks == LockScope::Shared
    }

    pub(super) fn getlk(&self, node: INodeNo, asked: &Asked, reply: ReplyLock) {
        if !self.shares_locks() {
            return reply.error(Errno::ENOSYS);
        }
        let Some(lock) = self.lock(asked) else { return reply.error(Errno::EINVAL) };
        match self.links.locks.against(self.locked_file(node), &lock) {
            Some(Lock { mode, range, pid, .. }) => {
                let typ = if mode == Mode::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
                reply.locked(range.0, range.1, typ, pid);
            }
            None => reply.locked(asked.range.0, asked.range.1, libc::F_UNLCK, 0),
        }
    }

    pub(super) fn setlk(
        self: &Arc<Self>,
        req: &Request,
        node: INodeNo,
        asked: &Asked,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        if !self.shares_locks() {
            return reply.error(Errno::ENOSYS);
        }
        let Some(kind) = kind(std::ptr::from_ref(req).addr(), req.unique().0, asked) else {
            tracing::error!("a request for a lock is not where it was expected");
            return reply.error(Errno::ENOLCK);
        };
        let file = self.locked_file(node);
        if asked.typ == libc::F_UNLCK {
            self.links.locks.give_back(file, kind, self.owner(asked.owner), asked.range);
            return reply.ok();
        }
        let Some(lock) = self.lock(asked) else { return reply.error(Errno::EINVAL) };
        let thread = if self.link.our_processes { req.pid() } else { 0 };
        let otherwise = if waits { Else::Wait(thread) } else { Else::Refuse };
        let answer = Box::new(move |result| match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        });
        self.links.locks.take(file, kind, lock, otherwise, answer);
    }

    /// A descriptor was closed.
    pub(super) fn flush(&self, node: INodeNo, handle: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        if !self.shares_locks() {
            return reply.error(Errno::ENOSYS);
        }
        self.links.locks.closed(self.locked_file(node), self.owner(owner), handle.0);
        reply.ok();
    }

    /// An open file has ended.
    pub(super) fn release_locks(&self, node: INodeNo, handle: FileHandle) {
        if self.shares_locks() {
            self.links.locks.released(self.locked_file(node), self.link.number, handle.0);
        }
    }

    fn owner(&self, owner: LockOwner) -> Owner {
        Owner { link: self.link.number, number: owner.0 }
    }

    /// Each connection has its own node ids for what is not in the live view.
    fn locked_file(&self, node: INodeNo) -> File {
        let is_live = split(node.0).0 == LIVE;
        File { link: (!is_live).then_some(self.link.number), node: node.0 }
    }

    /// The lock that a request asks for; `None` if it is of no kind that there is.
    fn lock(&self, asked: &Asked) -> Option<Lock> {
        let mode = match asked.typ {
            libc::F_RDLCK => Mode::Shared,
            libc::F_WRLCK => Mode::Exclusive,
            _ => return None,
        };
        let pid = if self.link.our_processes { asked.pid } else { 0 };
        let (owner, handle) = (self.owner(asked.owner), asked.handle.0);
        Some(Lock { owner, mode, range: asked.range, pid, handle, closed: None })
    }
}

/// The sizes, in bytes, of `fuse_in_header` and of `fuse_lk_in`, which follows it.
const HEADER: usize = 40;
const BODY: usize = 48;

/// `FUSE_LK_FLOCK`.
const FLOCK: u32 = 1;

/// Which kind of lock a request is about. fuser 0.18 does not pass that on, but its `Request` is the header
/// in the buffer with the kernel's message, at this address. The rest is read from there as another process
/// would read it, so that a fuser that keeps it elsewhere is no danger: `None` then.
fn kind(address: usize, unique: u64, asked: &Asked) -> Option<Kind> {
    let mut message = [0; HEADER + BODY];
    let remote = [RemoteIoVec { base: address, len: message.len() }];
    let read = process_vm_readv(getpid(), &mut [IoSliceMut::new(&mut message)], &remote);
    if read != Ok(message.len()) {
        return None;
    }
    let (numbers, _) = message.as_chunks::<8>();
    let number = |at: usize| u64::from_ne_bytes(numbers[at]);
    let expected = [asked.handle.0, asked.owner.0, asked.range.0, asked.range.1];
    let is_it = number(1) == unique && (5..9).map(number).eq(expected);
    let (halves, _) = message.as_chunks::<4>();
    let flags = u32::from_ne_bytes(halves[(HEADER + BODY) / 4 - 2]);
    is_it.then_some(if flags & FLOCK == 0 { Kind::Posix } else { Kind::Flock })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_read_from_the_message() {
        let asked =
            Asked { owner: LockOwner(6), handle: FileHandle(5), range: (7, 8), typ: libc::F_WRLCK, pid: 9 };
        for (flags, expected) in [(0u64, Kind::Posix), (1, Kind::Flock)] {
            let message: [u64; 11] = [31 << 32 | 88, 4, 1, 0, 0, 5, 6, 7, 8, 9 << 32 | 1, flags];
            let address = message.as_ptr().addr();
            assert_eq!(kind(address, 4, &asked), Some(expected));
            assert_eq!(kind(address, 3, &asked), None);
            assert_eq!(kind(address, 4, &Asked { handle: FileHandle(1), range: (7, 8), ..asked }), None);
            assert_eq!(kind(8, 4, &asked), None);
        }
    }
}
