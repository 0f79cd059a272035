//! Karapace keeps Linux environments in a content-addressed store and serves them as directories through FUSE.
//!
//! The library is the program: `src/main.rs` only calls [`cli`]. Layers, top to bottom: [`cli`] (arguments,
//! output, exit status), [`engine`] (what each command does), [`oci`] (images as they are exported), and
//! [`description`] (manifest and lock file). Below stand the crates `karapace-fs` (the view) and `karapace-store`.
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
