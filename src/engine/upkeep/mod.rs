//! Operations on the whole store: garbage collection ([`gc`]), verification ([`verify`]), sizes ([`du`]).
//!
//! May use `instance`, and `image` to find downloads.

pub mod du;
pub mod gc;
pub mod verify;
