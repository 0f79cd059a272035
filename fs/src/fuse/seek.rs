//! SEEK_DATA and SEEK_HOLE.
//!
//! Data stored through a shared mapping is only in the kernel's pages until they are written back, and no
//! request tells that such a mapping exists. So before a hole is reported, the kernel is made to write back
//! its pages over it. Its WRITE requests are answered meanwhile. Until the LSEEK is answered the kernel keeps
//! out all other changes to the file, except further stores through mappings, so holes can only shrink.

use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyLseek};
use karapace_store::inode::Ino;

use super::nodes::LIVE;
use super::{Node, Shared, guard};
use crate::error::Error;
use crate::view::{Sought, View};

type Outcome<T> = Result<T, Errno>;

/// One LSEEK request for a file in a view.
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
            Ok((Node::Placeholder(number), offset)) => {
                let size = self.link.placeholders.attr(number).map(|attr| attr.size);
                answer(
                    reply,
                    size.and_then(|size| {
                        in_data(size, offset, whence).map_err(|e| Errno::from_i32(e.errno()))
                    }),
                );
            }
            Err(errno) => answer(reply, Err(errno)),
        }
    }

    /// Makes the kernel write back its pages over the hole, and repeats the search until the answer depends
    /// only on a hole that has been written back.
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
        guard("lseek", || in_data(control.size(ino)?, offset, whence))
    }
}

/// The answer for a file without holes.
fn in_data(size: u64, offset: u64, whence: i32) -> Result<u64, Error> {
    match whence {
        _ if offset >= size => Err(Error::NoSuchOffset),
        libc::SEEK_HOLE => Ok(size),
        _ => Ok(offset),
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
