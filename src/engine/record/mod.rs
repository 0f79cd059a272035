//! Operations on an environment's record: showing it ([`list`], [`inspect`]), changing it ([`rename`],
//! [`state`], and [`retention`], which removes old snapshots) and removing it ([`destroy`]).
//!
//! May use `mount`, `server`, `upkeep` and `instance`.

pub mod destroy;
pub mod inspect;
pub mod list;
pub mod rename;
pub mod retention;
pub mod state;
