//! Copies file data up into the upper, and changes file lengths.
//!
//! Copy-up works per inode: data first, then the record. A small file is copied whole. For a large file
//! nothing is copied: the upper gets a sparse file of the same length, which receives the blocks that are
//! written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use karapace_store::content::{BLOCK, SMALL_MAX};
use karapace_store::fail;
use karapace_store::inode::Ino;

use crate::error::At as _;
use crate::error::{Error, Result};
use crate::upper::data::DataFile;
use crate::upper::journal::Room;
use crate::upper::record::{DataState, Item, no_content, safe_blocks};
use crate::view::View;
use crate::view::node::{FileBody, Meta, Node, NodeBody};
use crate::view::table::{State, attr_item};

/// Largest file size in bytes: the limit of the kernel's offsets.
pub(super) const SIZE_MAX: u64 = i64::MAX as u64;

/// A file's data in the upper, ready to be written.
pub(super) struct Writable {
    pub data: Arc<DataFile>,
    pub file: Arc<File>,
}

impl View {
    /// The data file of a regular file, ready for writing: created by copy-up if there is none, copied if a
    /// commit has sealed it. `keep`: how many bytes of the current content are still needed. `room`: for the
    /// `Touched` item, if that is the only record needed.
    pub(super) fn writable_data(
        &self,
        state: &mut State,
        ino: Ino,
        keep: u64,
        room: Room,
    ) -> Result<Writable> {
        let upper = self.writable()?;
        let node = state.node(ino)?;
        let body = file_body(node)?;
        if let Some(data) = body.data().cloned() {
            let file = upper.data.file(&data)?;
            if !data.is_sealed() {
                if !node.touched {
                    self.change_in(state, vec![Item::Touched { ino }], room)?;
                }
                return Ok(Writable { data, file });
            }
            let copy = upper.data.unseal(&data, keep)?;
            if let Err(error) = self.record_data(state, ino, &copy, keep) {
                upper.data.remove(&copy);
                return Err(error);
            }
            match &mut state.deferred {
                Some(deferred) => deferred.push(data),
                None => upper.bury([data]),
            }
            return self.reopened(state, ino);
        }
        let FileBody::Lower(content) = body else { return Err(Error::Stale) };
        let content = content.clone();
        let data = DataFile::new(ino, 0);
        let file = upper.data.create_file(&data)?;
        fail::point("copyup.fill")?;
        let filled = if content.size > SMALL_MAX && keep > 0 {
            file.set_len(content.size).at("extend", &upper.data.path(&data))
        } else {
            let mut bytes = Vec::new();
            let read = self.content.read(&content, 0, content.size.min(keep) as usize, &mut bytes);
            read.map_err(|error| self.name_damage(state, ino, error))
                .and_then(|()| file.write_all_at(&bytes, 0).at("write", &upper.data.path(&data)))
        };
        // These bytes are safe in the store, so they must be durable here before the record refers to this
        // copy. Blocks are not copied yet, so for those it can wait for a sync.
        let waits = content.size.min(keep) == 0 || (content.size > SMALL_MAX && upper.boot.is_some());
        let safe = filled.and_then(|()| if waits { Ok(()) } else { upper.data.sync_with_name(&data, &file) });
        if let Err(e) = safe.and_then(|()| self.record_data(state, ino, &data, keep)) {
            upper.data.remove(&data);
            return Err(e);
        }
        self.reopened(state, ino)
    }

    /// The data file that the table now holds for `ino`.
    fn reopened(&self, state: &State, ino: Ino) -> Result<Writable> {
        let data = file_body(state.node(ino)?)?.data().cloned().ok_or(Error::Stale)?;
        let file = self.writable()?.data.file(&data)?;
        Ok(Writable { data, file })
    }

    /// Journals that the bytes of `ino` are now in `data`.
    fn record_data(&self, state: &mut State, ino: Ino, data: &DataFile, keep: u64) -> Result<()> {
        fail::point("copyup.record")?;
        let mut items = Vec::new();
        if let Some(place) = &state.node(ino)?.place {
            state.dirty_chain(place.parent, &mut items)?;
        }
        let mut put = state.put_item(ino)?;
        let generation = data.generation;
        let size = state.node(ino)?.meta.size;
        let mut blocks = Vec::new();
        put.data = match file_body(state.node(ino)?)? {
            FileBody::Lower(content) if content.size > SMALL_MAX && keep > 0 => {
                let limit = content.size;
                match self.writable()?.boot {
                    Some(boot) => DataState::FreshBlocks { generation, size, limit, boot },
                    None => DataState::Blocks { generation, size, limit },
                }
            }
            FileBody::Blocks(b) => {
                blocks = safe_blocks(ino, &b.dirty);
                DataState::Blocks { generation, size, limit: b.limit }
            }
            FileBody::Lower(_) | FileBody::Whole(_) => {
                put.record.body = no_content();
                DataState::Whole { generation, size: size.min(keep) }
            }
        };
        items.push(Item::Put(Box::new(put)));
        items.extend(blocks);
        self.change(state, items)
    }

    /// Sets the length of a regular file. To extend it, the caller must have reserved journal space.
    pub(super) fn truncate(&self, state: &mut State, ino: Ino, size: u64) -> Result<()> {
        if size > SIZE_MAX {
            return Err(Error::FileTooBig);
        }
        file_body(state.node(ino)?)?;
        let before = state.node(ino)?.meta.size;
        let Writable { data, file } = self.writable_data(state, ino, size, Room::Reserved)?;
        if let FileBody::Blocks(b) = file_body(state.node(ino)?)?
            && b.fresh_since.is_some()
        {
            // A truncated file cannot be fresh: the base has another length.
            self.writable()?.data.sync_with_name(&data, &file)?;
            let items = state.synced_items(ino, &b.fresh)?;
            self.change_in(state, items, Room::Reserved)?;
        }
        let path = self.writable()?.data.path(&data);
        let set_len = |size| file.set_len(size).at("truncate", &path);
        fail::point("data.truncate").at("truncate", &path)?;
        set_len(size)?;
        let mut items = Vec::new();
        if let FileBody::Blocks(b) = file_body(state.node(ino)?)?
            && size < before
        {
            // The record drops blocks; none of them may come back as zeros.
            self.writable()?.data.sync(&data, &file)?;
            items = safe_blocks(ino, &b.fresh);
        }
        items.push(Item::Cut { ino, size });
        if let Err(error) = self.change_in(state, items.clone(), Room::Reserved) {
            if size > before {
                set_len(before)?;
            } else {
                // The truncated bytes are gone, and after a crash the data file's length counts, so apply the
                // change here too.
                state.apply(items)?;
            }
            return Err(error);
        }
        let node = state.node_mut(ino)?;
        node.stale_times = true;
        node.unsynced = true;
        Ok(())
    }

    /// `fallocate(2)`: modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; `offset` and `len` in bytes. Does not
    /// reserve space in a large file that is partly in the store.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for other modes, and for those that the host lacks; [`Error::Invalid`] for an
    /// empty range; [`Error::FileTooBig`].
    pub fn fallocate(&self, ino: Ino, mode: i32, offset: u64, len: u64) -> Result<()> {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let zero = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => false,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => true,
            libc::FALLOC_FL_ZERO_RANGE => true,
            _ => return Err(Error::NotSupported),
        };
        let end = offset.checked_add(len).filter(|end| *end <= SIZE_MAX).ok_or(Error::FileTooBig)?;
        if len == 0 {
            return Err(Error::Invalid("an empty range"));
        }
        let upper = self.writable()?;
        let _gate = self.gate.read();
        let punches = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let (ready, blocks, size) = {
            let mut state = self.state.write();
            if !punches {
                upper.make_room()?;
            }
            let ready = self.writable_data(&mut state, ino, u64::MAX, Room::Reserved)?;
            let node = state.node(ino)?;
            (ready, matches!(file_body(node)?, FileBody::Blocks(_)), node.meta.size)
        };
        let grows = !keep_size && end > size;
        if blocks {
            if zero {
                self.zero_blocks(ino, &ready, offset, end.min(size.max(offset)))?;
            }
            if grows {
                self.truncate(&mut self.state.write(), ino, end)?;
            }
        } else {
            // Undo what the host did before it ran out of space.
            let allocated = self.fallocate_whole(&ready, mode, offset, len);
            allocated.or_else(|e| self.cut_excess(&ready, size).and(Err(e)))?;
        }
        let mut state = self.state.write();
        state.generation += 1;
        let node = state.node_mut(ino)?;
        if grows {
            node.meta.size = node.meta.size.max(end);
        }
        node.stale_times = true;
        node.unsynced = true;
        node.version += 1;
        // fallocate may leave the host file's times unchanged, so set them.
        let now = karapace_store::inode::Timestamp::now();
        self.set_data_times(&state, ino, now)?;
        let meta = Meta { ctime: now, ..state.node(ino)?.meta };
        self.change_in(&mut state, vec![attr_item(ino, &meta)], Room::Reserved)
    }

    fn fallocate_whole(&self, ready: &Writable, mode: i32, offset: u64, len: u64) -> Result<()> {
        let flags = nix::fcntl::FallocateFlags::from_bits_retain(mode);
        let range = |v: u64| i64::try_from(v).map_err(|_| Error::FileTooBig);
        match nix::fcntl::fallocate(&ready.file, flags, range(offset)?, range(len)?) {
            Ok(()) => Ok(()),
            // The host does not support it (as tmpfs does not ZERO_RANGE); pass that on.
            Err(nix::errno::Errno::EOPNOTSUPP) => Err(Error::NotSupported),
            Err(e) => Err(Error::host("allocate", &self.writable()?.data.path(&ready.data), e.into())),
        }
    }

    /// Makes bytes `from..to` of a file of blocks read as zeros. Whole blocks become holes in the data file;
    /// they come last, because that needs no space.
    fn zero_blocks(&self, ino: Ino, ready: &Writable, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let (first, last) = (from.div_ceil(BLOCK), to / BLOCK);
        let zeros = [0; BLOCK as usize];
        let head_end = (first * BLOCK).min(to);
        if from < head_end {
            self.write_blocks(ino, ready, from, &zeros[..(head_end - from) as usize])?;
        }
        let tail = (last * BLOCK).max(head_end);
        if tail < to {
            self.write_blocks(ino, ready, tail, &zeros[..(to - tail) as usize])?;
        }
        if first < last {
            let _lock = ready.data.lock.lock();
            // No block may be fresh: if the process is killed before the record, recovery must tell the
            // punched holes from blocks lost by the disk.
            self.sync_fresh_of(ino)?;
            let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (at, len) = ((first * BLOCK) as i64, ((last - first) * BLOCK) as i64);
            match nix::fcntl::fallocate(&ready.file, flags, at, len) {
                Ok(()) => {}
                Err(nix::errno::Errno::EOPNOTSUPP) => return Err(Error::NotSupported),
                Err(e) => return Err(Error::Io(e.into())),
            }
            let counted = vec![Item::Blocks { ino, first, count: last - first }];
            self.change_in(&mut self.state.write(), counted, Room::Reserved)?;
        }
        Ok(())
    }

    /// Sets the modification time of the data file, from which the next open reads it.
    pub(super) fn set_data_times(
        &self,
        state: &State,
        ino: Ino,
        mtime: karapace_store::inode::Timestamp,
    ) -> Result<()> {
        let Some(data) = state.node(ino)?.file().and_then(FileBody::data) else { return Ok(()) };
        let upper = self.writable()?;
        let file = upper.data.file(data)?;
        let time = nix::sys::time::TimeSpec::new(mtime.secs, i64::from(mtime.nanos));
        nix::sys::stat::futimens(&file, &nix::sys::time::TimeSpec::UTIME_OMIT, &time)
            .map_err(|e| Error::host("set times of", &upper.data.path(data), e.into()))
    }
}

/// The content of a regular file; the error depends on the inode's type.
pub(super) fn file_body(node: &Node) -> Result<&FileBody> {
    match &node.body {
        NodeBody::File(body) => Ok(body),
        NodeBody::Dir(_) => Err(Error::IsDirectory),
        _ => Err(Error::Invalid("not a regular file")),
    }
}
