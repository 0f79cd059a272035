//! The keeper, a part of the serving process. It holds the namespaces in which the environment's sessions
//! run, hands them to sessions that join, and ends the inside when the last session is gone, even if that
//! session was killed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::session::UnmountHandle;
use karapace_store::id::InstanceId;
use karapace_store::wait;
use nix::poll::PollFlags;
use nix::sched::CloneFlags;
use parking_lot::Mutex;
use rustix::process::{Signal, pidfd_send_signal};

use super::control::Admitted;
use super::socket::{Answer, Entrance, Reply, Shape};
use crate::engine::At as _;
use crate::engine::instance::sessions;
use crate::engine::{Engine, Error, Result};
use crate::runtime::{Namespaces, Seen};

/// The option in a [`Shape`] that shows sessions the control directory.
pub(in crate::engine) const SHOWS_CONTROL: &str = "--ctl";

/// How long process 1 may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long process 1 may take to die after SIGKILL: processes inside may hang in the kernel.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mount, as far as the keeper needs to know it.
pub struct Place {
    /// The mount point.
    pub dir: PathBuf,
    /// The mount is for sessions, and ends with the last one.
    pub session: bool,
    /// The serving process is in its own namespaces, which sessions must enter first.
    pub has_ground: bool,
}

/// The keeper of one environment's inside.
pub struct Keeper {
    engine: Engine,
    instance: InstanceId,
    place: Place,
    handle: UnmountHandle,
    admitted: Arc<Admitted>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    inside: Option<Held>,
    /// A thread is waiting for the last session to end.
    watched: bool,
    /// The lock that keeps new sessions away while the mount ends.
    _last: Option<File>,
}

/// An inside.
struct Held {
    shape: Shape,
    namespaces: Namespaces,
    init: OwnedFd,
    lifeline: OwnedFd,
}

impl Keeper {
    /// The keeper for the mount of `instance` at `place`. Sets in `admitted` who may use the control
    /// directory from inside. A mount for sessions is watched from now on, because the session that made it
    /// has already joined.
    pub fn new(
        engine: &Engine,
        instance: InstanceId,
        place: Place,
        handle: UnmountHandle,
        admitted: Arc<Admitted>,
    ) -> Arc<Keeper> {
        let state = Mutex::default();
        let keeper = Keeper { engine: engine.clone(), instance, place, handle, admitted, state };
        let keeper = Arc::new(keeper);
        if keeper.place.session {
            keeper.clone().watch();
        }
        keeper
    }

    /// The mount point.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Whether the mount is for sessions, and ends with the last one.
    pub fn is_for_sessions(&self) -> bool {
        self.place.session
    }

    /// Answers [`Request::Enter`](super::socket::Request::Enter).
    pub fn entrance(&self, user: Option<&str>) -> Result<Reply> {
        let kinds = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
        let ground = Namespaces::own(if self.place.has_ground { kinds } else { CloneFlags::empty() })?;
        let seen = if self.place.has_ground { Some(Seen::look(&self.place.dir, user)?) } else { None };
        let mut state = self.state.lock();
        self.forget_dead(&mut state);
        let inside = state.inside.as_ref();
        let kept = inside.iter().flat_map(|held| held.namespaces.descriptors());
        let descriptors: std::io::Result<Vec<_>> =
            ground.descriptors().chain(kept).map(|fd| fd.try_clone_to_owned()).collect();
        let descriptors = descriptors.at("copy the namespaces of", &self.place.dir)?;
        let entrance = Entrance {
            dir: self.place.dir.clone(),
            session: self.place.session,
            ground: ground.names(),
            seen: seen.map(Box::new),
            inside: inside.map(|held| (held.shape.clone(), held.namespaces.names())),
        };
        Ok(Reply { answer: Answer::Entrance(entrance), descriptors })
    }

    /// Answers [`Request::Hold`](super::socket::Request::Hold).
    pub fn hold(
        self: &Arc<Keeper>,
        shape: Shape,
        names: &[String],
        descriptors: Vec<OwnedFd>,
    ) -> Result<Reply> {
        let mut descriptors = descriptors.into_iter();
        let (Some(lifeline), Some(init)) = (descriptors.next(), descriptors.next()) else {
            return Err(Error::Invalid("there is no process 1 inside".to_owned()));
        };
        let namespaces = Namespaces::from_parts(names, descriptors)
            .ok_or_else(|| Error::Invalid("the namespaces do not match their names".to_owned()))?;
        let mut state = self.state.lock();
        self.forget_dead(&mut state);
        if state.inside.is_some() {
            return Ok(Answer::Taken.into());
        }
        let shows_control = shape.get(SHOWS_CONTROL).is_some_and(|value| value == "true");
        self.admitted.set(namespaces.of_processes().filter(|_| shows_control));
        state.inside = Some(Held { shape, namespaces, init, lifeline });
        drop(state);
        self.clone().watch();
        Ok(Answer::Held.into())
    }

    /// Drops an inside whose process 1 was killed.
    fn forget_dead(&self, state: &mut State) {
        if state.inside.as_ref().is_some_and(|held| is_over(&held.init, Duration::ZERO)) {
            // Before the namespace is released, because its number can then be reused.
            self.admitted.set(None);
            state.inside = None;
        }
    }

    /// Ends the inside, if there is one. Returns when no process is left in it.
    pub fn end(&self) {
        let mut state = self.state.lock();
        self.admitted.set(None);
        let held = state.inside.take();
        drop(state);
        let Some(held) = held else { return };
        let Held { namespaces, init, lifeline, .. } = held;
        drop((namespaces, lifeline));
        // Process 1 has to clean up, which can hang like everything that uses the mount.
        if is_over(&init, FAREWELL) {
            return;
        }
        match pidfd_send_signal(&init, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => tracing::warn!("cannot kill process 1 of the sessions: {errno}"),
        }
        if !is_over(&init, PATIENCE) {
            tracing::warn!("processes inside do not end: they hang in the kernel");
        }
    }

    /// Starts a thread that waits until no session is left, unless one already does.
    fn watch(self: Arc<Keeper>) {
        if std::mem::replace(&mut self.state.lock().watched, true) {
            return;
        }
        let keeper = self.clone();
        let watch = move || match sessions::wait_for_last(&keeper.engine, &keeper.instance) {
            Ok(last) => keeper.clear_up(last),
            Err(error) => {
                keeper.state.lock().watched = false;
                tracing::error!("cannot clean up after killed sessions: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("karapace-sessions".to_owned());
        if let Err(error) = thread.spawn(watch) {
            self.state.lock().watched = false;
            tracing::error!("cannot start a thread to clean up after killed sessions: {error}");
        }
    }

    /// Called when no session is left. None can begin while `last` is open.
    fn clear_up(&self, last: File) {
        self.end();
        let mut state = self.state.lock();
        state.watched = false;
        if !self.place.session {
            drop(last);
            return;
        }
        state._last = Some(last);
        drop(state);
        if let Err(error) = self.handle.unmount().or_else(|_| self.handle.detach()) {
            tracing::error!("cannot end the mount of the sessions: {error}");
        }
    }
}

/// Waits up to `patience` for the process of a pidfd to end. Returns whether it has ended.
pub(in crate::engine) fn is_over(process: &OwnedFd, patience: Duration) -> bool {
    wait::for_event(process, PollFlags::POLLIN, patience).unwrap_or(false)
}
