//! Content-addressed store.
#![forbid(unsafe_code)]

pub mod atomic;
pub mod codec;
pub mod content;
pub mod error;
pub mod id;
pub mod inode;
pub mod layout;
pub mod object;
pub mod open;
pub mod root;
pub mod tree;

pub use error::{Result, StoreError};
pub use open::Store;
pub mod tar;
