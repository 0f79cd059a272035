//! The store as a whole: garbage ([`gc`]), damage ([`verify`]), sizes ([`du`]).
//!
//! May use `instance`, and `image` for what was downloaded.

pub mod du;
pub mod gc;
pub mod verify;
