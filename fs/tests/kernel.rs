//! What Karapace assumes about the kernel's FUSE client, one kept test for each assumption (docs/KERNEL.md).
//!
//! Each test serves [`kernel::toy::Toy`], a small in-memory file system that answers the way Karapace
//! answers, through the real /dev/fuse, and asserts on the requests that arrive. Nothing here uses Karapace's
//! own view: when one of these fails and the rest of the suite passes, the kernel has changed, not Karapace.
//!
//! The tests need root and /dev/fuse and fail without them: where they cannot run, nothing is known. Every
//! mount lives in a mount namespace of the test's own thread, so that not even `kill -9` leaves one behind.

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
    mod sys;
    mod toy;
}
