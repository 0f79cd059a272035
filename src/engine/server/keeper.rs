//! The keeper, a part of the serving process. It holds the namespaces in which the environment's sessions
//! run, hands them to sessions that join, and ends the inside when the last session is gone, even if that
//! session was killed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use karapace_store::id::InstanceId;
use karapace_store::wait;
use nix::poll::PollFlags;
use parking_lot::Mutex;
use rustix::process::{Signal, pidfd_send_signal};

use super::control::Admitted;
use super::mounts::Mounts;
use super::socket::{Answer, Entrance, Reply, Shape};
use crate::engine::At as _;
use crate::engine::instance::sessions;
use crate::engine::{Engine, Error, Result};
use crate::runtime::Namespaces;

/// The option in a [`Shape`] that shows sessions the control directory.
pub(in crate::engine) const SHOWS_CONTROL: &str = "--ctl";

/// How long process 1 may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long process 1 may take to die after SIGKILL: processes inside may hang in the kernel.
const PATIENCE: Duration = Duration::from_secs(20);

/// The keeper of one environment's inside.
pub struct Keeper {
    engine: Engine,
    instance: InstanceId,
    mounts: Arc<Mounts>,
    admitted: Arc<Admitted>,
    /// Held while an inside is ended because its mount is lost; locked before `state`.
    losing: Mutex<()>,
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
    /// The keeper for sessions of `instance`. Sets in `admitted` who may use the control directory from
    /// inside.
    pub fn new(
        engine: &Engine,
        instance: InstanceId,
        mounts: Arc<Mounts>,
        admitted: Arc<Admitted>,
    ) -> Arc<Keeper> {
        Arc::new(Keeper {
            engine: engine.clone(),
            instance,
            mounts,
            admitted,
            losing: Mutex::default(),
            state: Mutex::default(),
        })
    }

    /// Answers [`Request::Enter`](super::socket::Request::Enter).
    pub fn entrance(self: &Arc<Self>, user: Option<&str>, own_id: bool) -> Result<Reply> {
        self.end_lost();
        let (mount, seen, state) = loop {
            self.forget_dead(&mut self.state.lock());
            let before = self.mounts.inside();
            let mount = self.mounts.for_sessions(own_id);
            if !matches!(mount, Ok(None)) {
                // Whoever asks has joined the sessions already, and may be killed at any time. Also if there
                // is no mount.
                self.watch();
            }
            let Some(mount) = mount? else { return Ok(Answer::Ending.into()) };
            let seen = mount.ground().map(|ground| ground.look(user)).transpose()?;
            let mut state = self.state.lock();
            self.forget_dead(&mut state);
            // Which mount it is depends on the inside.
            if self.mounts.inside() == before {
                break (mount, seen, state);
            }
        };
        let ground = mount.ground();
        let inside = state.inside.as_ref();
        let own = ground.iter().flat_map(|ground| ground.namespaces().descriptors());
        let kept = inside.iter().flat_map(|held| held.namespaces.descriptors());
        let descriptors: std::io::Result<Vec<_>> =
            own.chain(kept).map(|fd| fd.try_clone_to_owned()).collect();
        let descriptors = descriptors.at("copy the namespaces of", &mount.dir)?;
        let entrance = Entrance {
            dir: mount.dir.clone(),
            mount: Some(mount.id),
            ground: ground.as_ref().map_or_else(Vec::new, |ground| ground.namespaces().names()),
            seen: seen.map(Box::new),
            one_id: mount.one_id.clone(),
            inside: inside.map(|held| (held.shape.clone(), held.namespaces.names())),
        };
        Ok(Reply { answer: Answer::Entrance(entrance), descriptors })
    }

    /// Answers [`Request::Inside`](super::socket::Request::Inside).
    pub fn inside(&self) -> Result<Reply> {
        let mut state = self.state.lock();
        self.forget_dead(&mut state);
        let inside = state.inside.as_ref();
        let namespaces = inside.map_or_else(Vec::new, |held| held.namespaces.names());
        let kept = inside.iter().flat_map(|held| held.namespaces.descriptors());
        let descriptors: std::io::Result<Vec<_>> = kept.map(|fd| fd.try_clone_to_owned()).collect();
        let descriptors = descriptors.at("copy the namespaces of", Path::new("the sessions"))?;
        Ok(Reply { answer: Answer::Inside { namespaces }, descriptors })
    }

    /// Ends an inside whose mount has ended, or nobody can look into any more.
    fn end_lost(&self) {
        let _one_at_a_time = self.losing.lock();
        if self.mounts.has_lost_inside() {
            tracing::warn!("ending the sessions, because their mount is gone or the process that holds it");
            self.end();
        }
        self.mounts.drop_unheld();
    }

    /// Answers [`Request::Hold`](super::socket::Request::Hold).
    pub fn hold(
        self: &Arc<Keeper>,
        (shape, mount): (Shape, Option<u64>),
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
        if state.inside.is_some() || !self.mounts.begin_inside(mount) {
            return Ok(Answer::Taken.into());
        }
        let shows_control = shape.get(SHOWS_CONTROL).is_some_and(|value| value == "true");
        self.admitted.set(namespaces.of_processes().filter(|_| shows_control));
        state.inside = Some(Held { shape, namespaces, init, lifeline });
        drop(state);
        self.watch();
        Ok(Answer::Held.into())
    }

    /// Drops an inside whose process 1 was killed.
    fn forget_dead(&self, state: &mut State) {
        if state.inside.as_ref().is_some_and(|held| is_over(&held.init, Duration::ZERO)) {
            // Before the namespace is released, because its number can then be reused.
            self.admitted.set(None);
            state.inside = None;
            self.mounts.end_inside();
        }
    }

    /// Ends the inside, if there is one. Returns when no process is left in it.
    pub fn end(&self) {
        let mut state = self.state.lock();
        self.admitted.set(None);
        let held = state.inside.take();
        self.mounts.end_inside();
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
    pub fn watch(self: &Arc<Self>) {
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
        // Before: whoever enters from here on has the next ones watched.
        self.state.lock().watched = false;
        if self.mounts.end_sessions() {
            self.state.lock()._last = Some(last);
        }
    }
}

/// Waits up to `patience` for the process of a pidfd to end. Returns whether it has ended.
pub(in crate::engine) fn is_over(process: &OwnedFd, patience: Duration) -> bool {
    wait::for_event(process, PollFlags::POLLIN, patience).unwrap_or(false)
}
