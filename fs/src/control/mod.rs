//! The control directory `/.karapace` of a mount.

pub mod command;
mod plane;

pub use command::{Command, parse_commands};
pub use plane::{CommandError, ControlId, ControlPlane, SnapshotInfo};
