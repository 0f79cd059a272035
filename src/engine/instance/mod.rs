//! One environment, open in this process: its view, its record, and the operations that change both. This is
//! the lowest wing.
//!
//! [`open`] holds it; [`commit`], [`restore`] and [`snapshots`] work on it, and [`layering`] makes the trees
//! they store. [`mod@reference`] resolves the name of a snapshot, [`diff`] lists differences, [`sessions`]
//! tracks running sessions, [`watchers`] notifies programs that watch files; `stored` reads single files of a
//! tree, and `damage` names the paths that need a damaged object. May use `description` and the crates below;
//! no other wing.

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
