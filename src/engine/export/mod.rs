//! Exports: an image ([`image`]; `defaults` reads its defaults), or entries of the desktop's menu ([`app`]).
//!
//! May use `server` and `instance`, and `oci` to write images.

pub mod app;
pub(super) mod defaults;
pub mod image;
