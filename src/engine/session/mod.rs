//! Commands inside an environment: [`enter`] runs one, [`stop`] ends all; `policy` decides what sessions see
//! of the host.
//!
//! May use `mount` (a session may start one), `server` and `instance`.

pub mod enter;
pub(super) mod policy;
pub mod stop;
