//! How environments come to be: from a manifest ([`build`], [`rebuild`], [`pin`], [`new`]), from an image
//! ([`import`]), from another ([`clone`]). All end in [`create`].
//!
//! `install` runs the package manager in an environment of its own (`scratch`) and keeps what it said
//! (`log`). May use `mount`, `server` and `instance`, and `image` for what is downloaded.

pub mod build;
pub mod clone;
pub mod create;
pub mod import;
pub(super) mod install;
pub(super) mod log;
pub mod new;
pub mod pin;
pub mod rebuild;
pub(super) mod scratch;
