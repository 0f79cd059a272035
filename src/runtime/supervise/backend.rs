//! What runs sessions: one trait, and the implementation that the manifest names.

use nix::sched::CloneFlags;

use super::join::join;
use super::running::Ended;
use super::start::{self, Started};
use crate::runtime::RuntimeError;
use crate::runtime::inside::init::Preparation;
use crate::runtime::inside::monitor::Command;
use crate::runtime::inside::namespaces::Namespaces;
use crate::runtime::plan::prepare::has_ids;
use crate::runtime::plan::session::Session;

/// Makes insides and runs commands in them.
pub trait Backend {
    /// Makes the inside of a session. What the command is does not matter here.
    ///
    /// `ground`: the user and mount namespace in which the root is mounted, where they are not this process's
    /// own.
    ///
    /// # Errors
    /// [`RuntimeError`]; nothing is left then.
    fn start(&self, session: &Session, ground: Option<Namespaces>) -> Result<Started, RuntimeError>;

    /// Runs the command of a session to its end in an inside that is there. `many_ids`: the inside has more
    /// than one id.
    ///
    /// The calling thread's signal mask is changed meanwhile, and signals to the process are received instead
    /// of acted on; so call it from the main thread of a process that has no others, or none that leave the
    /// forwarded signals unblocked.
    ///
    /// # Errors
    /// [`RuntimeError`]; its [`exit_status`](RuntimeError::exit_status) is what `enter` and `exec` end with.
    fn join(&self, session: &Session, namespaces: Namespaces, many_ids: bool) -> Result<Ended, RuntimeError>;

    /// Runs a session to its end, in an inside of its own. As in [`join`](Backend::join), also what it asks
    /// of the caller.
    ///
    /// # Errors
    /// As [`join`](Backend::join).
    fn run(&self, session: &Session) -> Result<Ended, RuntimeError> {
        let session = Session { seen: Some(session.seen()?), ..session.clone() };
        let mut started = self.start(&session, None)?;
        let namespaces = std::mem::replace(&mut started.namespaces, Namespaces::own(CloneFlags::empty())?);
        let ended = self.join(&session, namespaces, has_ids());
        started.end()?;
        ended
    }
}

/// Namespaces made by karapace itself.
pub(super) struct Namespace;

impl Backend for Namespace {
    fn start(&self, session: &Session, ground: Option<Namespaces>) -> Result<Started, RuntimeError> {
        start::start(Preparation::new(session, ground.is_some())?, ground)
    }

    fn join(&self, session: &Session, namespaces: Namespaces, many_ids: bool) -> Result<Ended, RuntimeError> {
        join(session, namespaces, |terminal, mask| Command::new(session, many_ids, terminal, mask))
    }
}
