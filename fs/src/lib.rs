//! A file system made of an immutable lower and an upper that receives the changes; and its mount.
//!
//! ```text
//! session            serving, and handling a mount outside of its requests
//!   mounting         mounting a device, and unmounting
//!   fuse             decoding requests, encoding replies, notifying the kernel
//!     control        the directory /.karapace; calls the engine through a trait, `ControlPlane`
//!       view         lower and upper merged: inode table, operations, commit, restore, diff
//!         upper      the changes on disk: checkpoint, journal, data files
//!           karapace-store
//! ```
//!
//! Each module uses those below it, and none above. `view` and `upper` know nothing of FUSE and are tested
//! without a kernel (tests/view, tests/model.rs); fuser's types stay in `fuse`. [`attr`] has the argument and
//! result types of operations, [`error`] their errors, [`errno`] the mapping of errors to numbers,
//! [`path_text`] paths in JSON. `sys` contains all unsafe code.
//!
//! The engine (the crate above) creates a [`view::View`], passes it to a [`session`], and implements
//! [`control::ControlPlane`]. Code that does not serve an upper, such as gc, reads it through [`mod@check`].
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod attr;
pub mod control;
pub mod errno;
pub mod error;
mod fuse;
mod locks;
mod mounting;
pub mod path_text;
pub mod pid_namespace;
pub mod session;
mod sys;
pub(crate) mod upper;
pub mod view;

pub use error::{Error, Result};
pub use upper::check;
#[doc(hidden)]
pub use upper::fuzzing;
