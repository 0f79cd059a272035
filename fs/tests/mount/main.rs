//! Real mounts. They need /dev/fuse and root, and fail without.

#[path = "../commit/mod.rs"]
mod commit;
mod control;
mod differences;
mod files;
#[path = "../generator/mod.rs"]
mod generator;
mod large;
mod passthrough;
mod random;
mod restore;
mod space;
mod support;
mod surface;
#[path = "../sys/mapping.rs"]
mod sys;
mod user;
mod watchers;
