//! The crate's unsafe code.

/// Returns memory that the allocator holds for reuse to the system. Takes milliseconds.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, may be called at any time from any thread, and leaves all that is
    // allocated as it is.
    unsafe {
        libc::malloc_trim(0);
    }
}
