//! What an environment is made of, as text: the manifest that a person writes, the lock file that it resolves
//! to, and what is derived from them.
//!
//! No store, no processes, no network; only [`manifest::Manifest::read`] and [`locked::LockFile::read`]
//! open a file. The engine, `image` and the runtime may use this; it uses only `karapace-store`.

pub mod identity;
pub mod lifecycle;
pub mod locked;
pub mod lockfile;
pub mod manifest;
pub mod packages;
pub mod pin;
