//! Stores through a mapping, which have no safe wrapper.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};

/// A multiple of the page size of every machine that tests run on.
const PAGE: u64 = 65536;

/// A shared mapping, unmapped on drop.
pub struct Mapping {
    at: NonNull<c_void>,
    length: usize,
}

impl Mapping {
    /// Maps `file`, which extends at least to `offset` plus the length of `text`, and stores `text` there.
    /// Closes the descriptor.
    pub fn store(file: File, offset: u64, text: &[u8]) -> io::Result<Mapping> {
        let start = offset / PAGE * PAGE;
        let skip = (offset - start) as usize;
        let length = NonZeroUsize::new(skip + text.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else in this process knows it.
        let at = unsafe { mmap(None, length, prot, MapFlags::MAP_SHARED, file.as_fd(), start as i64)? };
        let to = at.as_ptr().cast::<u8>();
        // SAFETY: the mapping is `skip + text.len()` bytes long and writable, and nothing else overlaps it.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to.add(skip), text.len()) };
        Ok(Mapping { at, length: length.get() })
    }

    /// msync(MS_SYNC).
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: exactly the mapping made in `store`, which lives as long as we.
        unsafe { msync(self.at, self.length, MsFlags::MS_SYNC)? };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `store`, not used afterwards.
        unsafe { munmap(self.at, self.length) }.expect("our own mapping");
    }
}
