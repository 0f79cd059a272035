//! How commands reach an environment that another process serves, and what they may ask there.
//!
//! [`socket`] is the protocol and its server, [`client`] the other end; [`access`] asks the server if there
//! is one and opens the environment here if not. [`control`] answers the control files, and [`keeper`] keeps
//! the inside that sessions share. [`info`] is what is known of a mount; `peer` says who may ask. May use
//! `instance`, and `upkeep` for the control files.

pub mod access;
pub mod client;
pub mod control;
pub mod info;
pub mod keeper;
pub(super) mod peer;
pub mod socket;
