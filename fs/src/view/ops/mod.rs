//! What can be done with a view's files, one file a family of operations.
//!
//! Each operation works under the state lock in three steps: check, journal the items that state the result,
//! apply them (see `table`); so an error changes nothing, and what returned survives the process. Bytes are
//! read and written without that lock.
//!
//! Operations use the table, the upper and each other; commit, restore and the comparison use of them what
//! reads and what syncs.

mod acl;
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
