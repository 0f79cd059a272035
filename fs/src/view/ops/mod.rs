//! File operations of a view, one file per family.
//!
//! Each operation runs under the state lock in three steps: check, journal the items that describe the
//! result, apply them (see `table`). So an operation that fails changes nothing, and one that has returned
//! survives the process. Bytes are read and written without that lock.
//!
//! Operations use the table, the upper and each other. Commit, restore and diff use only their reading and
//! syncing parts.

mod acl;
pub(super) mod adopt;
mod attr;
mod create;
mod dir;
mod io;
mod link;
mod remove;
mod rename;
mod resize;
mod seek;
mod sync;
mod xattr;

pub use seek::Sought;
