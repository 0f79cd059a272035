//! Real mounts. They need /dev/fuse and root, and fail without.

mod control;
mod files;
mod restore;
mod space;
mod support;
mod user;
