//! Karapace's own side: makes the processes, and lives on beside them.
//!
//! [`backend`] is the trait that the engine calls, with `mock` beside it; [`start`] makes an inside,
//! [`running`] looks after a command in one, and [`terminal`] shares the terminal. [`refusal`] says why a
//! kernel refuses, and [`ranges`] gives a user namespace its ids. May use all of the runtime.

pub(super) mod backend;
pub(super) mod join;
mod mock;
pub(super) mod namespaces;
mod oci;
pub mod ranges;
pub(super) mod refusal;
pub(super) mod running;
pub(super) mod start;
pub(super) mod terminal;

use crate::description::manifest;
use backend::{Backend, Namespace};

/// The backend of this name.
pub fn backend(name: manifest::Backend) -> &'static dyn Backend {
    match name {
        manifest::Backend::Namespace => &Namespace,
        manifest::Backend::Oci => &oci::Oci,
        manifest::Backend::Mock => &mock::Mock,
    }
}
