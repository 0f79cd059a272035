//! Reaching an environment that another process serves.
//!
//! [`socket`] is the protocol and its server, [`client`] the other end; [`access`] asks the server if there
//! is one, and otherwise opens the environment in this process. [`mod@perform`] performs commands,
//! [`control`] serves the control directory, [`keeper`] keeps the inside that sessions share, [`mounts`] are
//! those through which one process serves the environment, one of them perhaps in a [`ground`], [`info`]
//! records facts about a mount, and `peer` decides who may send requests. May use `instance`, and `upkeep`
//! for the control files.

pub mod access;
pub mod client;
pub mod control;
pub mod ground;
pub mod info;
pub mod keeper;
mod mount;
pub mod mounts;
pub(super) mod peer;
pub mod perform;
mod session_dir;
pub mod socket;
