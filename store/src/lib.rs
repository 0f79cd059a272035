//! The store: what environments are made of, each thing stored once, under the hash of its bytes.
//!
//! ```text
//! usage, gc, integrity          disk usage; collection; verification and repair
//! import, layer                 archives and images into trees; the records of layers
//! tar, wal, reach               tar streams; operations in progress; everything that roots refer to
//! tree, root, metadata          directories as objects; whole trees; the records of environments
//! inode, paths, quarantine      attributes of files; chosen paths; damaged files set aside
//! content                       the content of regular files
//! batch, lock, pins, staging    writing objects together; locks; what gc must keep; dead batches
//! open                          opening and creating a store
//! object, layout, files         objects by their hash; paths in a store; opening and making its files
//! id, codec, text, wait, …      independent of a store
//! ```
//!
//! A module uses those below it, and some beside it without a circle; never one above. Nothing here knows of
//! mounts or of environments in use: the caller passes in what an upper refers to ([`gc::UpperRoots`]) and
//! what is wrong with it.
//!
//! Three rules hold everywhere. The store's files are opened and made through [`files::Files`], which trusts
//! no path. What is read by hash is verified against it. When a function returns, what it wrote is durable
//! ([`durability`] says how); a caller that refers to an object that already existed holds the store's lock
//! ([`lock`]) until that reference is durable.
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
/// The files of the on-disk format, for tests that look at them; everything else asks [`Store`].
#[doc(hidden)]
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
pub mod wait;
pub mod wal;

pub use error::{Result, StoreError};
pub use open::Store;
