//! Content-addressed store.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

pub mod acl;
pub mod atomic;
pub mod batch;
pub mod codec;
pub mod compress;
pub mod content;
pub mod deep;
pub mod durability;
pub mod error;
pub mod fail;
pub mod files;
pub mod gc;
mod held;
mod host;
pub mod id;
pub mod import;
pub mod inode;
pub mod input;
pub mod integrity;
pub mod layer;
pub mod layout;
pub mod lock;
mod marks;
pub mod metadata;
pub mod object;
pub mod open;
pub mod parallel;
pub mod paths;
pub mod pins;
pub mod progress;
pub mod quarantine;
mod reach;
pub mod rfc3339;
pub mod root;
mod staging;
pub mod supply;
pub mod tar;
pub mod text;
pub mod tree;
pub mod usage;
pub mod wal;

pub use error::{Result, StoreError};
pub use open::Store;
