//! Karapace's own side: it makes the processes, and runs beside them.
//!
//! [`backend`] is the trait that the engine calls, with `mock` beside it; [`start`] makes an inside,
//! [`running`] supervises a command in one, and [`terminal`] shares the terminal. [`refusal`] explains why a
//! kernel refuses, and [`ranges`] maps ids into a user namespace. May use all of the runtime.

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
