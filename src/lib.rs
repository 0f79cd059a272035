//! Karapace keeps Linux environments in a content-addressed store and serves them as directories through
//! FUSE.
//!
//! The library is the program: `src/main.rs` only calls [`cli`]. From top to bottom:
//!
//! | | |
//! |---|---|
//! | [`cli`] | arguments, output, exit status; one command a file |
//! | [`engine`] | what each command does, in wings |
//! | [`runtime`] | commands inside an environment: namespaces, mounts, signals |
//! | [`image`] | where a base image comes from: names, downloads, their cache |
//! | [`oci`] | images as they are exported |
//! | [`description`] | manifest, lock file, identity: what an environment is made of, as text |
//! | [`report`] | how long work tells of its progress |
//! | [`process`] | this process: limits, signals, descriptors |
//!
//! Each module uses only those below it, and the crates `karapace-fs` (the view, FUSE) and `karapace-store`
//! below them all; runtime, image, oci and description know nothing of a view. The table in
//! `scripts/lib/layers` has the exact rules, and `scripts/check` enforces them. Each room's `mod.rs` begins
//! with what is in it and what it may use.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod description;
pub mod engine;
pub mod image;
pub mod oci;
mod private_dir;
pub mod process;
pub mod report;
pub mod runtime;
