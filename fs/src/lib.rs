//! The view (lower + upper merged) and its FUSE front-end.
//!
//! `view` and `upper` hold the semantics and know nothing of FUSE; `fuse` decodes what the kernel asks and
//! answers it; `control` is the directory `/.karapace`; `session` mounts.
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
