//! The store as a whole: garbage ([`gc`]), snapshots that are too many ([`retention`]), damage ([`verify`]), sizes ([`du`]).
//!
//! May use `instance`, and `image` for what was downloaded.

pub mod du;
pub mod gc;
pub mod retention;
pub mod verify;
