//! The code that runs after `clone`, in single-threaded copies of karapace: process 1, monitors, and the
//! helpers that make them.
//!
//! Nothing here may allocate, take a lock, print or panic: another thread may have held the allocator's lock,
//! or any other, when the copy was made. That is why this is a module of its own: everything it needs is
//! worked out beforehand (`plan`) and arrives as types that are defined here. Of the rest of the runtime it
//! may use only `channel` and `sys`, which keep the same rule.

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
pub(super) mod overlay;
pub(super) mod points;
pub(super) mod resize;
pub(super) mod terminal;
