//! What an environment is made of, as text: the manifest a person writes, the lock file it resolves to, and
//! what follows from them.
//!
//! Pure: no store, no process and no network; only [`manifest::Manifest::read`] and
//! [`lockfile::LockFile::read`] open a file. May be used by the engine, by `image` and by the runtime; uses
//! only `karapace-store`.

pub mod identity;
pub mod lifecycle;
pub mod locked;
pub mod lockfile;
pub mod manifest;
pub mod packages;
pub mod pin;
