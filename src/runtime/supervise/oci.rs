//! The backend that runs commands with an OCI runtime of the host.

use super::backend::Backend;
use super::join::join;
use super::running::Ended;
use super::start::{self, Started, Told};
use crate::runtime::RuntimeError;
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::plan::oci::{Runtime, command, preparation};
use crate::runtime::plan::session::Session;

/// Drives the preferred runtime among those on PATH.
pub(super) struct Oci;

impl Backend for Oci {
    fn start(
        &self,
        session: &Session,
        ground: Option<Namespaces>,
        told: Told<'_>,
    ) -> Result<Started, RuntimeError> {
        let runtime = Runtime::on_path()?;
        start::start(preparation(session, &runtime, ground.is_some())?, ground, told)
    }

    fn join(&self, session: &Session, namespaces: Namespaces, many_ids: bool) -> Result<Ended, RuntimeError> {
        let runtime = Runtime::on_path()?;
        join(session, namespaces, |terminal, mask| command(session, &runtime, many_ids, terminal, mask))
    }
}
