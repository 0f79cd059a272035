//! Commands inside an environment: [`enter`] runs one, [`stop`] ends all; `policy` is what of the host the
//! manifest lets in.
//!
//! May use `mount`, which a session starts, `server` and `instance`.

pub mod enter;
pub(super) mod policy;
pub mod stop;
