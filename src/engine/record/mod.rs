//! What an environment's record says, shown ([`list`], [`inspect`]) and changed ([`rename`], [`state`],
//! snapshots that are too many: [`retention`]), to its end ([`destroy`]).
//!
//! May use `mount`, `server`, `upkeep` and `instance`.

pub mod destroy;
pub mod inspect;
pub mod list;
pub mod rename;
pub mod retention;
pub mod state;
