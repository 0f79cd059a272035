//! Serving an environment through FUSE.
//!
//! [`serve`] serves it in this process, [`background`] in another, [`all`] every environment there is; [`point`] knows directories to mount
//! on and what is mounted; [`umount`] and [`force`] end a mount, and `holders` says who keeps it; [`unit`] writes one for systemd.
//! May use `server` and `instance`.

pub mod all;
pub mod background;
pub mod force;
pub(super) mod holders;
pub mod point;
pub mod serve;
pub mod umount;
pub mod unit;
