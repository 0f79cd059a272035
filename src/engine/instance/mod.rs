//! One environment, open in this process: its view and its record, and what changes both. The lowest wing.
//!
//! [`open`] holds it; [`commit`], [`restore`] and [`snapshots`] work on it, and [`layering`] makes the trees
//! they store. [`reference`] says what a name means, [`diff`] what differs, [`sessions`] who is inside,
//! [`watchers`] tells programs that watch files; `stored` reads a file of a tree, and `damage` names the path
//! that needs what is damaged. May use `description` and the crates below; no other wing.

pub mod commit;
pub(super) mod damage;
pub mod diff;
pub mod layering;
pub mod open;
pub mod reference;
pub mod restore;
pub mod sessions;
pub mod snapshots;
pub(super) mod stored;
pub mod watchers;
