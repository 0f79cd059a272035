//! SEEK_DATA and SEEK_HOLE.
//!
//! What is stored through a shared mapping is in the kernel's pages only, until these are written back, and
//! no request says that there is such a mapping. So no hole is reported before the kernel has been made to
//! write back what it has over it. The kernel's WRITE requests are answered meanwhile, and it keeps every
//! other change of the file away until the LSEEK is answered, but for further stores: holes only shrink.

use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyLseek};
use karapace_store::inode::Ino;

use super::nodes::LIVE;
use super::{Node, Shared, guard};
use crate::error::Error;
use crate::view::{Sought, View};

type Outcome<T> = Result<T, Errno>;

/// One LSEEK of a file of a view.
struct Seek {
    node: INodeNo,
    view: Arc<View>,
    ino: Ino,
    offset: u64,
    whence: i32,
}

impl Shared {
    pub(super) fn lseek(self: &Arc<Self>, node: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.node(node).and_then(|at| {
            let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            Ok((at, offset))
        });
        match found {
            Ok((Node::View { index, view, ino }, offset)) => {
                let can_change = index == LIVE && !view.is_read_only();
                let seek = Seek { node, view, ino, offset, whence };
                match seek.look() {
                    Ok(sought) if can_change && !sought.hole.is_empty() => {
                        self.with_request_threads_free(move |shared| {
                            answer(reply, shared.look_again(&seek, sought));
                        });
                    }
                    sought => answer(reply, sought.and_then(|sought| sought.at.ok_or(Errno::ENXIO))),
                }
            }
            Ok((Node::Control(ino), offset)) => answer(reply, self.seek_control(ino, offset, whence)),
            Err(errno) => answer(reply, Err(errno)),
        }
    }

    /// Has what lies over the hole written back, until the answer rests on none that the kernel may have
    /// pages over.
    fn look_again(&self, seek: &Seek, mut sought: Sought) -> Outcome<u64> {
        let mut clean = 0..0;
        while sought.hole.start < clean.start || sought.hole.end > clean.end {
            clean = sought.hole;
            guard("lseek", || self.write_back(seek.node, &clean))?;
            sought = seek.look()?;
        }
        sought.at.ok_or(Errno::ENXIO)
    }

    fn seek_control(&self, ino: Ino, offset: u64, whence: i32) -> Outcome<u64> {
        let control = self.control()?;
        guard("lseek", || match control.size(ino)? {
            size if offset >= size => Err(Error::NoSuchOffset),
            size if whence == libc::SEEK_HOLE => Ok(size),
            _ => Ok(offset),
        })
    }
}

impl Seek {
    fn look(&self) -> Outcome<Sought> {
        guard("lseek", || self.view.seek(self.ino, self.offset, self.whence))
    }
}

fn answer(reply: ReplyLseek, result: Outcome<u64>) {
    match result {
        Ok(offset) => reply.offset(offset as i64),
        Err(errno) => reply.error(errno),
    }
}
