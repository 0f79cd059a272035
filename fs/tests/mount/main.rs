//! Real mounts. They need /dev/fuse and root, and fail without.

mod control;
mod files;
#[path = "../generator/mod.rs"]
mod generator;
mod random;
mod restore;
mod space;
mod support;
#[path = "../sys/mapping.rs"]
mod sys;
mod user;
