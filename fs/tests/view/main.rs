//! Promises of the view that need no mount, one by one.

mod attributes;
#[path = "../commit/mod.rs"]
mod commit;
mod damage;
mod data;
#[cfg(feature = "failpoints")]
mod fresh;
mod listing;
mod names;
#[allow(dead_code, reason = "the model test uses the rest")]
#[path = "../reference/mod.rs"]
mod reference;
mod restore;
mod support;
mod walk;
