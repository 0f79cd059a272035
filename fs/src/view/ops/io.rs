//! Reads and writes file content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use karapace_store::content::{BLOCK, FileContent};
use karapace_store::fail;
use karapace_store::inode::Ino;

use crate::error::{Error, Result};
use crate::upper::data::DataFile;
use crate::upper::journal::Room;
use crate::upper::record::Item;
use crate::view::View;
use crate::view::changes::note_data;
use crate::view::node::{BlockBody, FileBody};
use crate::view::ops::resize::{SIZE_MAX, Writable, file_body};
use crate::view::table::State;

/// Where to read a range of a file of blocks from.
enum Source {
    Data,
    Base,
    Zeros,
}

struct Piece {
    offset: u64,
    len: usize,
    source: Source,
}

/// The source of a read's bytes, determined under the state lock and read without it. The data file is opened
/// under the lock, because a commit may move it into the store and remove its name at any time.
enum ReadFrom {
    Nothing,
    Lower(Arc<FileContent>, usize),
    Whole(Arc<File>, usize),
    Blocks(Arc<File>, Arc<FileContent>, Vec<Piece>),
}

/// What a write needs to know about a file of blocks. (Cloning all its blocks could be expensive.)
struct Beneath {
    base: Arc<FileContent>,
    /// Bytes of `base` that are valid.
    limit: u64,
    /// Size of the file in bytes.
    size: u64,
    /// The blocks in the written range that are not in the upper yet, ascending.
    missing: Vec<u64>,
}

impl Beneath {
    /// State for `len` bytes at `offset`. It stays valid as long as the data file's lock is held.
    fn of(state: &State, ino: Ino, offset: u64, len: usize) -> Result<Beneath> {
        let node = state.node(ino)?;
        let FileBody::Blocks(b) = file_body(node)? else { return Err(Error::Stale) };
        let blocks = offset / BLOCK..(offset + len as u64).div_ceil(BLOCK);
        let missing = blocks.filter(|block| !b.dirty.contains(*block)).collect();
        Ok(Beneath { base: b.base.clone(), limit: b.limit, size: node.meta.size, missing })
    }

    fn is_missing(&self, block: u64) -> bool {
        self.missing.binary_search(&block).is_ok()
    }
}

impl View {
    /// Reads up to `size` bytes at `offset` into `buf`, which is cleared first. Reads less only at the end of
    /// the file.
    ///
    /// # Errors
    /// [`Error::Damaged`]; [`Error::IsDirectory`].
    pub fn read(&self, ino: Ino, offset: u64, size: usize, buf: &mut Vec<u8>) -> Result<()> {
        let from = {
            let state = self.state.read();
            state.node(ino)?.mapped.store(true, Ordering::Relaxed);
            self.plan_read(&state, ino, offset, size)?
        };
        self.read_from(from, offset, buf).map_err(|error| self.name_damage(&self.state.read(), ino, error))
    }

    /// Records that mapped pages were written back.
    pub fn note_mapped(&self, ino: Ino) -> Result<()> {
        self.state.read().node(ino)?.mapped.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the kernel may have mapped pages, judging by reads and writeback; resets the flag until the
    /// next of these.
    pub fn take_mapped(&self, ino: Ino) -> Result<bool> {
        let state = self.state.read();
        let node = state.node(ino)?;
        Ok(node.file().is_some() && node.mapped.swap(false, Ordering::Relaxed))
    }

    /// Whether the inode is a lower file whose content is verified in blocks.
    pub fn is_large(&self, ino: Ino) -> bool {
        let state = self.state.read();
        let body = state.node(ino).and_then(file_body);
        matches!(body, Ok(FileBody::Lower(content)) if !content.is_plain())
    }

    /// The object that makes up the whole file, for files where [`View::is_large`], after verifying every
    /// block; `None` if the file has several objects or holes.
    ///
    /// # Errors
    /// [`Error::Damaged`], or an error from reading the object.
    pub fn whole_object(&self, ino: Ino) -> Result<Option<File>> {
        let content = match file_body(self.state.read().node(ino)?)? {
            FileBody::Lower(content) => content.clone(),
            _ => return Ok(None),
        };
        self.content.whole_object(&content).map_err(|error| self.name_damage(&self.state.read(), ino, error))
    }

    /// Adds the file's path to a damage error, and logs it once per object.
    pub(in crate::view) fn name_damage(&self, state: &State, ino: Ino, error: Error) -> Error {
        let Error::Damaged(mut damage) = error else { return error };
        if damage.path.is_none() {
            // An inode with several names has no single path.
            let path = state.path_of(ino).ok().filter(|path| path != b"/");
            damage.path = Some(match path {
                Some(path) => String::from_utf8_lossy(&path).into_owned(),
                None => format!("inode {ino}"),
            });
            damage.environment = self.name.get().cloned();
        }
        if self.content.is_news(&damage.object) {
            tracing::error!("{damage}");
        }
        Error::Damaged(damage)
    }

    fn plan_read(&self, state: &State, ino: Ino, offset: u64, size: usize) -> Result<ReadFrom> {
        let node = state.node(ino)?;
        let body = file_body(node)?;
        if offset >= node.meta.size {
            return Ok(ReadFrom::Nothing);
        }
        let size = usize::try_from(node.meta.size - offset).map_or(size, |left| left.min(size));
        Ok(match body {
            FileBody::Lower(content) => ReadFrom::Lower(content.clone(), size),
            FileBody::Whole(data) => ReadFrom::Whole(self.data_for_reading(data)?, size),
            FileBody::Blocks(b) => {
                ReadFrom::Blocks(self.data_for_reading(&b.data)?, b.base.clone(), pieces(b, offset, size))
            }
        })
    }

    /// Like `read`, for callers that already hold the state lock.
    pub(in crate::view) fn read_locked(
        &self,
        state: &State,
        ino: Ino,
        offset: u64,
        size: usize,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        let from = self.plan_read(state, ino, offset, size)?;
        self.read_from(from, offset, buf).map_err(|error| self.name_damage(state, ino, error))
    }

    fn read_from(&self, from: ReadFrom, offset: u64, buf: &mut Vec<u8>) -> Result<()> {
        buf.clear();
        match from {
            ReadFrom::Nothing => Ok(()),
            ReadFrom::Lower(content, size) => self.content.read(&content, offset, size, buf),
            ReadFrom::Whole(file, size) => {
                buf.resize(size, 0);
                let n = read_full(&file, buf, offset)?;
                buf.truncate(n);
                Ok(())
            }
            ReadFrom::Blocks(file, base, pieces) => {
                for piece in pieces {
                    let start = buf.len();
                    match piece.source {
                        Source::Base => self.content.read(&base, piece.offset, piece.len, buf)?,
                        Source::Zeros => {}
                        Source::Data => {
                            buf.resize(start + piece.len, 0);
                            read_full(&file, &mut buf[start..], piece.offset)?;
                        }
                    }
                    buf.resize(start + piece.len, 0);
                }
                Ok(())
            }
        }
    }

    /// The caller holds the state lock.
    pub(super) fn data_for_reading(&self, data: &DataFile) -> Result<Arc<File>> {
        self.upper.as_ref().ok_or(Error::Stale)?.data.file(data)
    }

    /// Writes at `offset` and returns the number of bytes written, fewer than asked for only if the host ran
    /// out of space midway. `kill_priv`: the writer is not privileged, so set-id bits and capabilities are
    /// dropped.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> {
        self.with_room(|| self.write_once(ino, offset, data, kill_priv))
    }

    fn write_once(&self, ino: Ino, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= SIZE_MAX);
        end.ok_or(Error::FileTooBig)?;
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let ready = self.writable_data(&mut state, ino, u64::MAX, Room::Ordinary)?;
        if kill_priv {
            self.kill_privileges(&mut state, ino, true, Room::Ordinary)?;
        }
        let is_blocks = matches!(file_body(state.node(ino)?)?, FileBody::Blocks(_));
        let written = if !is_blocks {
            drop(state);
            let written = write_full(&ready.file, data, offset);
            written.map_err(|e| self.write_failed(&ready.data, e))?
        } else if let Some(_lock) = ready.data.lock.try_lock() {
            let beneath = Beneath::of(&state, ino, offset, data.len())?;
            drop(state);
            self.write_over(ino, &ready, beneath, offset, data)?
        } else {
            // Whoever holds the file's lock may be waiting for the state lock, so release that first.
            drop(state);
            self.write_blocks(ino, &ready, offset, data)?
        };
        let mut state = self.state.write();
        state.generation += 1;
        let node = state.node_mut(ino)?;
        node.meta.size = node.meta.size.max(offset + written as u64);
        node.stale_times = true;
        node.unsynced = true;
        node.version += 1;
        note_data(ino);
        Ok(written)
    }

    fn write_failed(&self, data: &DataFile, error: io::Error) -> Error {
        match &self.upper {
            Some(upper) => Error::host("write", &upper.data.path(data), error),
            None => Error::Io(error),
        }
    }

    /// Writes to a file of blocks. The first partial write to a block fills the rest from the base. A block
    /// is journalled only after its bytes are in the data file.
    pub(super) fn write_blocks(&self, ino: Ino, ready: &Writable, offset: u64, data: &[u8]) -> Result<usize> {
        let _lock = ready.data.lock.lock();
        let beneath = Beneath::of(&self.state.read(), ino, offset, data.len())?;
        self.write_over(ino, ready, beneath, offset, data)
    }

    /// Like `write_blocks`, for callers that have held the data file's lock since before they computed
    /// `beneath`.
    fn write_over(
        &self,
        ino: Ino,
        ready: &Writable,
        mut beneath: Beneath,
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        let size = beneath.size;
        if !beneath.missing.is_empty() {
            self.writable()?.make_room()?;
        }
        if data.is_empty() || offset + data.len() as u64 <= size {
            return self.write_parts(ino, ready, &beneath, offset, data);
        }
        let ahead = self.count_ahead(ino, ready, &mut beneath)?;
        let done = self.write_parts(ino, ready, &beneath, offset, data);
        let written = done.as_ref().map_or(0, |written| *written);
        if ahead && written < data.len() {
            // Drops the blocks beyond the end.
            let items = vec![Item::Cut { ino, size: size.max(offset + written as u64) }];
            let mut state = self.state.write();
            if let Err(error) = self.change_in(&mut state, items.clone(), Room::Reserved) {
                tracing::warn!("{error}");
                state.apply(items)?;
            }
        }
        done
    }

    /// Writes block by block, and journals the blocks that were added.
    fn write_parts(
        &self,
        ino: Ino,
        ready: &Writable,
        beneath: &Beneath,
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        let size = beneath.size;
        let mut written = 0;
        let mut fresh: Vec<u64> = Vec::new();
        while written < data.len() {
            let at = offset + written as u64;
            let block = at / BLOCK;
            let len = ((block + 1) * BLOCK - at).min((data.len() - written) as u64) as usize;
            let part = &data[written..written + len];
            let done = if !beneath.is_missing(block) {
                write_full(&ready.file, part, at).map_err(|e| self.write_failed(&ready.data, e))
            } else {
                let done = self.write_fresh_block(beneath, ready, at, part);
                done.map_err(|error| match error {
                    error @ Error::Damaged(_) => self.name_damage(&self.state.read(), ino, error),
                    error => error,
                })
            };
            match done {
                Ok(n) => written += n,
                Err(error) => {
                    self.cut_excess(ready, size.max(at))?;
                    if written == 0 {
                        return Err(error);
                    }
                    break;
                }
            }
            if beneath.is_missing(block) {
                fresh.push(block);
            } else if written as u64 + offset < at + len as u64 {
                break;
            }
        }
        if !fresh.is_empty()
            && let Err(error) = self.count_blocks(ino, ready, beneath.limit, &fresh)
        {
            self.cut_excess(ready, size)?;
            return Err(error);
        }
        Ok(written)
    }

    /// Before a write extends the file: copies the blocks that reach past the current end into the upper and
    /// journals them. Returns whether there were any. After a kill the file's length is that of the data
    /// file; without this, a block whose write is not journalled yet would read as zeros.
    fn count_ahead(&self, ino: Ino, ready: &Writable, beneath: &mut Beneath) -> Result<bool> {
        let size = beneath.size;
        let (ahead, missing): (Vec<u64>, Vec<u64>) =
            beneath.missing.iter().partition(|block| (**block + 1) * BLOCK > size);
        for block in &ahead {
            let bytes = self.compose(beneath, *block);
            let bytes = bytes.map_err(|error| self.name_damage(&self.state.read(), ino, error))?;
            let written = write_full(&ready.file, &bytes, block * BLOCK);
            if written.map_err(|e| self.write_failed(&ready.data, e))? < bytes.len() {
                return Err(self.write_failed(&ready.data, io::Error::from_raw_os_error(libc::ENOSPC)));
            }
        }
        if !ahead.is_empty() {
            self.count_blocks(ino, ready, beneath.limit, &ahead)?;
            beneath.missing = missing;
        }
        Ok(!ahead.is_empty())
    }

    /// Journals blocks that were just written. Blocks that replace bytes in the store count once they are on
    /// disk, or at once as fresh blocks; fresh blocks are synced later, by fsync or `View::maintain`.
    fn count_blocks(&self, ino: Ino, ready: &Writable, limit: u64, blocks: &[u64]) -> Result<()> {
        let upper = self.writable()?;
        // A block that the base covers only in part cannot be fresh: bytes appended to it would read as zeros
        // if lost.
        let can_wait = |block: u64| (block + 1) * BLOCK <= limit || block * BLOCK >= limit;
        let boot = upper.boot.filter(|_| blocks.iter().all(|block| can_wait(*block)));
        if boot.is_none() && blocks.iter().any(|block| block * BLOCK < limit) {
            self.sync_fresh_of(ino)?;
            upper.data.sync(&ready.data, &ready.file)?;
        }
        let item = |(first, count): (u64, u64)| match boot {
            Some(boot) if first * BLOCK < limit => Item::Fresh { ino, boot, first, count },
            _ => Item::Blocks { ino, first, count },
        };
        let (over, beyond): (Vec<u64>, Vec<u64>) = blocks.iter().partition(|block| **block * BLOCK < limit);
        let items = [over, beyond].iter().flat_map(|blocks| runs(blocks)).map(item).collect();
        self.change_in(&mut self.state.write(), items, Room::Reserved)
    }

    /// After a failed write: removes what it wrote beyond the end of the file, because after a crash the data
    /// file's length becomes the file's.
    pub(super) fn cut_excess(&self, ready: &Writable, size: u64) -> Result<()> {
        let cut = || match ready.file.metadata()?.len() > size {
            true => ready.file.set_len(size),
            false => Ok(()),
        };
        cut().map_err(|e| self.write_failed(&ready.data, e))
    }

    /// Writes `part` at `at` into a block that is not in the upper yet: all of it or nothing.
    fn write_fresh_block(&self, beneath: &Beneath, ready: &Writable, at: u64, part: &[u8]) -> Result<usize> {
        let size = beneath.size;
        let start = at / BLOCK * BLOCK;
        let within = (at - start) as usize;
        let covers = within == 0 && (part.len() as u64 == BLOCK || at + part.len() as u64 >= size);
        let composed;
        let bytes = if covers {
            part
        } else {
            let mut bytes = self.compose(beneath, start / BLOCK)?;
            bytes.resize(bytes.len().max(within + part.len()), 0);
            bytes[within..within + part.len()].copy_from_slice(part);
            composed = bytes;
            &composed[..]
        };
        let failed = |e| self.write_failed(&ready.data, e);
        if write_full(&ready.file, bytes, start).map_err(failed)? < bytes.len() {
            return Err(failed(io::Error::from_raw_os_error(libc::ENOSPC)));
        }
        Ok(part.len())
    }

    /// The bytes of a block that is not in the upper yet, up to the end of the file.
    fn compose(&self, beneath: &Beneath, block: u64) -> Result<Vec<u8>> {
        let start = block * BLOCK;
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        let from_base = beneath.limit.saturating_sub(start).min(BLOCK) as usize;
        if from_base > 0 {
            self.content.read(&beneath.base, start, from_base, &mut bytes)?;
        }
        bytes.resize(beneath.size.saturating_sub(start).min(BLOCK) as usize, 0);
        Ok(bytes)
    }
}

/// Splits a range of a file of blocks, clamped to its size, by source.
fn pieces(body: &BlockBody, offset: u64, size: usize) -> Vec<Piece> {
    let end = offset + size as u64;
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = offset;
    while at < end {
        let block_end = ((at / BLOCK + 1) * BLOCK).min(end);
        let (source, stop) = if body.dirty.contains(at / BLOCK) {
            (Source::Data, block_end)
        } else if at < body.limit {
            (Source::Base, block_end.min(body.limit))
        } else {
            (Source::Zeros, block_end)
        };
        match pieces.last_mut() {
            Some(last) if std::mem::discriminant(&last.source) == std::mem::discriminant(&source) => {
                last.len += (stop - at) as usize;
            }
            _ => pieces.push(Piece { offset: at, len: (stop - at) as usize, source }),
        }
        at = stop;
    }
    pieces
}

fn runs(blocks: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *block => *count += 1,
            _ => runs.push((*block, 1)),
        }
    }
    runs
}

/// Fills `buf`, up to the end of the file.
fn read_full(file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::Io(e)),
        }
    }
    Ok(done)
}

/// Writes as much as the host accepts. Fails only if that is nothing.
fn write_full(file: &File, data: &[u8], offset: u64) -> io::Result<usize> {
    fail::point("data.write")?;
    let mut done = 0;
    while done < data.len() {
        match file.write_at(&data[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}
