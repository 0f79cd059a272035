//! The view (lower + upper merged) and its FUSE front-end.

pub mod attr;
pub mod control;
pub mod errno;
pub mod error;
pub(crate) mod upper;
pub mod view;

pub use error::{Error, Result};
