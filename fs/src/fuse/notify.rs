//! Notifications sent to the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use karapace_store::wait;
use nix::errno::Errno;
use nix::poll::PollFlags;
use parking_lot::Mutex;

use crate::attr::Invalidation;

/// Notification codes and flags (`fuse_notify_*` in linux/fuse.h).
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// Expire the entry instead of dropping it: dropping it would unmount what is mounted there.
const EXPIRE_ONLY: u32 = 1;
/// `struct fuse_out_header`: length, code, unique.
const HEADER: usize = 16;

/// At how many looks a notification may still not have been taken. Looks are counted, not time, for the
/// server may have been stopped.
const LOOKS: u32 = 4;

/// One connection's device, for notifications. fuser offers no way to send one with flags.
pub(crate) struct Kernel {
    device: Arc<File>,
    /// The notifications that the kernel has not taken yet, by the thread that sends one.
    sending: Mutex<HashMap<ThreadId, Sending>>,
}

struct Sending {
    /// The inode of which pages may have to be written back before it is taken.
    node: Option<u64>,
    /// At how many looks it was there since the last such page.
    looks: u32,
}

impl Kernel {
    pub(crate) fn new(device: Arc<File>) -> Kernel {
        Kernel { device, sending: Mutex::default() }
    }

    /// Whether the connection has ended. The kernel reports an error on its device then.
    pub(super) fn is_gone(&self) -> bool {
        // An error is reported even if no event is asked for.
        wait::for_event(&*self.device, PollFlags::empty(), Duration::ZERO).unwrap_or(false)
    }

    /// Notes that the kernel writes back a page of an inode.
    pub(super) fn note_writes_back(&self, node: u64) {
        let mut sending = self.sending.lock();
        let waits = sending.values_mut().filter(|sending| sending.node == Some(node));
        waits.for_each(|sending| sending.looks = 0);
    }

    /// Whether a notification has not been taken at this look nor at the last ones, and no page that it may
    /// ask for was written back in between.
    pub(super) fn is_stuck(&self) -> bool {
        let mut sending = self.sending.lock();
        sending.values_mut().for_each(|sending| sending.looks += 1);
        sending.values().any(|sending| sending.looks > LOOKS)
    }

    /// Sends notifications, and goes on after one that the kernel refuses. It is not an error if it does not
    /// know a name or inode.
    ///
    /// # Errors
    /// The last refusal.
    pub(super) fn send(&self, invalidations: &[Invalidation]) -> io::Result<()> {
        let mut result = Ok(());
        for invalidation in invalidations {
            match self.invalidate(invalidation) {
                Ok(()) => {}
                Err(errno) if is_unknown(errno) => {}
                // The mount is gone, and with it everything that had to be forgotten.
                Err(Errno::ENODEV | Errno::ENOTCONN) => return Ok(()),
                Err(errno) => {
                    tracing::error!(?invalidation, %errno, "the kernel refused an invalidation");
                    result = Err(errno.into());
                }
            }
        }
        result
    }

    /// Sends one notification.
    ///
    /// # Errors
    /// `ENOENT` or `ENOTDIR` if the kernel does not know what it is about.
    pub(super) fn invalidate(&self, invalidation: &Invalidation) -> Result<(), Errno> {
        // The live view's node ids are its inode numbers.
        match invalidation {
            Invalidation::Entry { parent, name } => self.notify(None, &entry(*parent, name, EXPIRE_ONLY)),
            Invalidation::Inode { ino } => self.notify(Some(*ino), &inode(*ino, &(0..0))),
        }
    }

    /// Drops a name, with what is mounted on it. A name that is only expired becomes valid again if an answer
    /// about it is on its way that was given before.
    ///
    /// # Errors
    /// As of [`Kernel::invalidate`].
    pub(super) fn drop_name(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        self.notify(None, &entry(parent, name, 0))
    }

    /// Makes the kernel write back data stored through mappings in this byte range (the whole file if `range`
    /// is empty), and drop those pages and the attributes. Returns after the writes have been answered, so
    /// other threads must be there to answer them.
    ///
    /// # Errors
    /// `ENOENT` if the kernel does not know the inode; others if it refuses, or the mount is gone.
    pub(super) fn write_back(&self, node: u64, range: &Range<u64>) -> Result<(), Errno> {
        self.notify(Some(node), &inode(node, range))
    }

    /// Makes the kernel request an inode's attributes again. Its pages stay.
    ///
    /// # Errors
    /// If the kernel refuses, or the mount is gone.
    pub(super) fn forget_attributes(&self, node: u64) -> io::Result<()> {
        match self.notify(None, &attributes(node)) {
            Err(errno) if !is_unknown(errno) => Err(errno.into()),
            _ => Ok(()),
        }
    }

    /// `node`: of which pages are to be written back.
    fn notify(&self, node: Option<u64>, message: &[u8]) -> Result<(), Errno> {
        let thread = thread::current().id();
        self.sending.lock().insert(thread, Sending { node, looks: 0 });
        let sent = nix::unistd::write(&*self.device, message);
        self.sending.lock().remove(&thread);
        sent.map(drop)
    }
}

/// Whether a notification failed because the kernel does not know the inode, or the name is below something
/// that is not a directory to it.
pub(super) fn is_unknown(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}

fn entry(parent: u64, name: &[u8], flags: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + name.len() + 1);
    body.extend_from_slice(&parent.to_ne_bytes());
    body.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(name);
    body.push(0);
    message(NOTIFY_INVAL_ENTRY, &body)
}

/// Invalidates attributes, and the data of `range`; all data if it is empty and starts at 0.
fn inode(node: u64, range: &Range<u64>) -> Vec<u8> {
    inode_message([node, range.start, range.end - range.start])
}

/// Invalidates only attributes: a negative offset means no data.
fn attributes(node: u64) -> Vec<u8> {
    inode_message([node, u64::MAX, 0])
}

/// `struct fuse_notify_inval_inode_out`.
fn inode_message(fields: [u64; 3]) -> Vec<u8> {
    message(NOTIFY_INVAL_INODE, &fields.map(u64::to_ne_bytes).concat())
}

fn message(code: i32, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&code.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_as_the_kernel_reads_them() {
        let name = entry(7, b"ab", EXPIRE_ONLY);
        assert_eq!(name.len(), 16 + 16 + 3);
        assert_eq!(name[..4], 35u32.to_ne_bytes());
        assert_eq!(name[4..8], 3i32.to_ne_bytes());
        assert_eq!(name[16..24], 7u64.to_ne_bytes());
        assert_eq!(name[24..28], 2u32.to_ne_bytes());
        assert_eq!(name[28..32], 1u32.to_ne_bytes());
        assert_eq!(&name[32..], b"ab\0");
        let all = inode(9, &(0..0));
        assert_eq!(all.len(), 16 + 24);
        assert_eq!(all[16..24], 9u64.to_ne_bytes());
        assert_eq!(all[24..], [0; 16]);
        assert_eq!(attributes(9)[24..], [(-1i64).to_ne_bytes(), [0; 8]].concat());
        let part = inode(9, &(4096..5000));
        assert_eq!(part[24..], [4096u64.to_ne_bytes(), 904u64.to_ne_bytes()].concat());
    }
}
