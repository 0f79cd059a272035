//! A file system of a lower that never changes and an upper that takes the changes; and its mount.
//!
//! ```text
//! session            mounts; what is done to a mount from outside of its requests
//!   fuse             the kernel's requests, decoded; answers, encoded; what the kernel is told unasked
//!     control        the directory /.karapace; asks the engine through a trait, `ControlPlane`
//!       view         the two merged: inode table, operations, commit, restore, differences
//!         upper      what was changed, on disk: checkpoint, journal, data files
//!           karapace-store
//! ```
//!
//! Each uses what stands below it, and nothing above. `view` and `upper` know nothing of FUSE and are tested
//! without a kernel (tests/view, tests/model.rs); fuser's types stay in `fuse`. [`attr`] has the types that
//! operations take and give, [`error`] what they fail with, [`errno`] the number that this becomes. `sys` has
//! all the unsafe code.
//!
//! The engine (the crate above) makes a [`view::View`], gives it to a [`session`], and implements
//! [`control::ControlPlane`]. A stranger to an upper, such as gc, reads it through [`mod@check`].
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod attr;
pub mod control;
pub mod errno;
pub mod error;
mod fuse;
pub mod pid_namespace;
pub mod session;
mod sys;
pub(crate) mod upper;
pub mod view;

pub use error::{Error, Result};
pub use upper::check;
#[doc(hidden)]
pub use upper::fuzzing;
