//! What leaves the store: an image ([`image`]; `defaults` is what it says of itself), or entries of the
//! desktop's menu ([`app`]).
//!
//! May use `server` and `instance`, and `oci` for how an image is written.

pub mod app;
pub(super) mod defaults;
pub mod image;
