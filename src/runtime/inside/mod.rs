//! What runs after `clone`, in copies of karapace that have one thread: process 1, monitors, and the helpers
//! that make them.
//!
//! Nothing here may allocate, take a lock, print or panic: another thread may have held the allocator's lock,
//! or any other, when the copy was made. So a room of its own: what is needed is worked out before (`plan`),
//! and arrives as the types that stand here. May use `channel` and `sys`, of which the same holds, and
//! nothing else of the runtime.

pub(super) mod account;
pub(super) mod bundle;
pub(super) mod capabilities;
pub(super) mod conceal;
pub(super) mod helper;
pub(super) mod init;
pub(super) mod keyboard;
pub(super) mod lookup;
pub(super) mod monitor;
pub(super) mod mounts;
pub(super) mod namespaces;
pub(super) mod network;
pub(super) mod resize;
pub(super) mod terminal;
