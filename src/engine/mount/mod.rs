//! Serving an environment through FUSE.
//!
//! [`options`] say how. [`serve`] serves it in this process, [`background`] in another, [`all`] every
//! environment there is, as the [`supervisor`]. [`umount`] and [`force`] end a mount, and `holders` says who
//! keeps it; [`idle`] refuses what may not be done to an environment in use; [`unit`] writes one for systemd.
//! May use `server` and `instance`.

pub mod all;
pub mod background;
pub mod force;
pub(super) mod holders;
pub mod idle;
pub mod options;
pub mod serve;
pub mod supervisor;
pub mod umount;
pub mod unit;
