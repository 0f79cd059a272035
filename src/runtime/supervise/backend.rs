//! The trait that runs sessions, and its implementations.

use nix::sched::CloneFlags;

use super::join::join;
use super::running::Ended;
use super::start::{self, Started, Told};
use crate::runtime::RuntimeError;
use crate::runtime::inside::init::Preparation;
use crate::runtime::inside::monitor::Command;
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::plan::prepare::has_ids;
use crate::runtime::plan::session::Session;

/// Makes insides and runs commands in them.
pub trait Backend {
    /// Makes the inside of a session; the session's command does not matter here.
    ///
    /// `ground`: the user and mount namespace in which the root is mounted, if they are not this process's
    /// own.
    ///
    /// `told` gets process 1, which is a child of this process, before it does anything: it makes the mount
    /// points that the root lacks, and whoever serves the root may have to know it for that.
    ///
    /// # Errors
    /// [`RuntimeError`], also for an error of `told`; then nothing is left behind but mount points, if the
    /// root has kept them.
    fn start(
        &self,
        session: &Session,
        ground: Option<Namespaces>,
        told: Told<'_>,
    ) -> Result<Started, RuntimeError>;

    /// Runs a session's command to its end in an existing inside. `many_ids`: the inside has more than one
    /// id.
    ///
    /// This changes the calling thread's signal mask for the duration, and receives signals sent to the
    /// process instead of letting them act. So call it from the main thread of a process that has no other
    /// threads, or none that leave the forwarded signals unblocked.
    ///
    /// # Errors
    /// [`RuntimeError`]; `enter` and `exec` exit with its [`exit_status`](RuntimeError::exit_status).
    fn join(&self, session: &Session, namespaces: Namespaces, many_ids: bool) -> Result<Ended, RuntimeError>;

    /// Runs a session to its end, in an inside of its own. The requirements of [`join`](Backend::join) apply.
    ///
    /// # Errors
    /// Those of [`start`](Backend::start) and [`join`](Backend::join).
    fn run(&self, session: &Session) -> Result<Ended, RuntimeError> {
        let session = Session { seen: Some(session.seen()?), ..session.clone() };
        let mut started = self.start(&session, None, &mut |_| Ok(()))?;
        let namespaces = std::mem::replace(&mut started.namespaces, Namespaces::own(CloneFlags::empty())?);
        let ended = self.join(&session, namespaces, has_ids());
        started.end()?;
        ended
    }
}

/// The backend in which karapace makes the namespaces itself.
pub(super) struct Namespace;

impl Backend for Namespace {
    fn start(
        &self,
        session: &Session,
        ground: Option<Namespaces>,
        told: Told<'_>,
    ) -> Result<Started, RuntimeError> {
        start::start(Preparation::new(session, ground.is_some())?, ground, told)
    }

    fn join(&self, session: &Session, namespaces: Namespaces, many_ids: bool) -> Result<Ended, RuntimeError> {
        join(session, namespaces, |terminal, mask| Command::new(session, many_ids, terminal, mask))
    }
}
