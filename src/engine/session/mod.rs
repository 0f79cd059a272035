//! Commands inside an environment: [`enter`] runs one, [`mod@run`] in a temporary copy, [`stop`] ends all;
//! `policy` decides what sessions see of the host.
//!
//! May use `make` (for the temporary copy), `mount` (a session may start one), `server` and `instance`.

pub mod enter;
pub(super) mod policy;
pub mod run;
pub mod stop;
