//! Serving an environment through FUSE.
//!
//! [`options`] describes a mount. [`serve`] serves an environment in this process, [`background`] in another
//! one or, for a mount beside that of sessions, asks the one that serves those; [`all`] serves every
//! environment, as the [`supervisor`]. [`umount`] and [`force`] end a mount, and `holders` finds what keeps
//! it alive; [`idle`] refuses operations on an environment in use; [`mod@unit`] writes a systemd unit. Which
//! mounts a serving process has is decided in `server`. May use `server` and `instance`.

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
