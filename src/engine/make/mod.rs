//! Making environments: from a manifest ([`build`], [`rebuild`], [`pin`], [`new`]), from an image
//! ([`import`]), from another environment ([`clone`]). All end in [`create`].
//!
//! `install` runs the package manager in a temporary environment (`scratch`) and logs its output (`log`);
//! `throw_away` makes such environments for `run`. May
//! use `mount`, `server`, `overlay` and `instance`, and `image` for downloads.

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
pub(super) mod throw_away;
