//! What asks for unsafe code.

/// Gives memory back to the system that the allocator keeps for later; it takes milliseconds.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, may be called at any time from any thread, and leaves all that is
    // allocated as it is.
    unsafe {
        libc::malloc_trim(0);
    }
}
