//! What Karapace assumes about the kernel's FUSE client, with one test per assumption (docs/KERNEL.md).
//!
//! Each test serves [`kernel::toy::Toy`], a small in-memory file system that replies the way Karapace does,
//! through the real /dev/fuse, and checks the requests that arrive. Karapace's own view is not used: if one
//! of these tests fails and the rest of the suite passes, the kernel has changed, not Karapace.
//!
//! The tests need root and /dev/fuse, and fail without them, so that an assumption is never skipped
//! unnoticed. Every mount is in a mount namespace of the test's thread, so that not even `kill -9` leaves one
//! behind.

mod common;

mod kernel {
    mod attributes;
    mod callers;
    mod control;
    mod data;
    mod entries;
    mod harness;
    mod invalidate;
    mod lifetime;
    mod no_open;
    mod serve;
    mod several;
    mod sys;
    mod toy;
}
