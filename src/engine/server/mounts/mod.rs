//! The mounts through which one process serves an environment: the host's, and one for the sessions.
//!
//! Sessions of an ordinary user who has a range of ids have a mount of their own, in a [`Ground`]. Others use
//! the host's mount or, if there is none, one in a private directory. The process ends when nothing is
//! mounted any more and no session is expected.

mod record;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::session::{Flag, LockScope, MountOptions, MountedSession, Serving};
use karapace_store::metadata::{EnvState, Metadata};
use karapace_store::wait::{self, Deadline};
use nix::unistd::geteuid;
use parking_lot::{Condvar, Mutex};

use super::ground::Ground;
use super::info::MountInfo;
use super::mount::Mount;
use crate::engine::instance::open::Instance;
use crate::engine::instance::watchers::Teller;
use crate::engine::mountpoint::{self, SOURCE};
use crate::engine::{Error, Result};
use crate::runtime::ranges;

/// How long a mount may stay in use after it was detached because the process is asked to end.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long a mount that is to be unmounted may be in use.
const MOMENT: Duration = Duration::from_millis(200);

/// The mounts of one environment. Lock order: `making`, `state`.
pub struct Mounts {
    instance: Arc<Instance>,
    serving: Serving,
    teller: Arc<Teller>,
    /// Which locks exclude each other, on all mounts: a kernel that keeps its own asks for none.
    locks: LockScope,
    /// Mounts are made and ended one at a time. Not held while a request of the kernel needs it.
    making: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    host: Option<Arc<Mount>>,
    sessions: Option<Arc<Mount>>,
    /// Mounts of the host that were unmounted, and are still in use.
    detached: Vec<Arc<Mount>>,
    /// The directory that was made for the sessions' mount.
    private: Option<PathBuf>,
    /// How many connections the kernel still has, among them those of mounts that were detached.
    connections: usize,
    /// The number of the mount on which the keeper's inside was made.
    inside: Option<u64>,
    /// The host's mount is being unmounted: no inside is kept that was made on it.
    unmounting: bool,
    /// Sessions were announced, and not all of them have ended.
    expected: bool,
    /// No mount is made any more.
    ended: bool,
    /// What mount.json says.
    described: Option<MountInfo>,
}

impl State {
    /// The existing mount that a session uses ([`Mounts::for_sessions`]): where there is an inside, that of
    /// the inside, so that no mount is made for a session which asks for another inside and is refused.
    /// `None`: one is to be made.
    fn for_sessions(&self, own_id: bool) -> Option<Arc<Mount>> {
        let has_inside = |mount: &&Arc<Mount>| self.inside == Some(mount.id);
        let host = self.host.as_ref();
        // In a ground the caller has no id of their own.
        let own = self.sessions.as_ref().filter(|mount| has_inside(mount) && mount.ground().is_none());
        match host.filter(|host| has_inside(host) || (own_id && own.is_none())) {
            Some(host) => Some(host.as_sessions_see(None)),
            None => self.sessions.clone(),
        }
    }
}

impl Mounts {
    /// The mounts of an open environment; there are none yet. With `for_sessions`, sessions are expected.
    /// `locks`: which locks exclude each other, on all mounts.
    pub fn new(
        instance: &Arc<Instance>,
        serving: Serving,
        for_sessions: bool,
        locks: LockScope,
    ) -> Arc<Mounts> {
        let teller = Arc::new(Teller::new(serving.watchers()));
        instance.attach(serving.invalidator(), teller.clone());
        Arc::new(Mounts {
            instance: instance.clone(),
            serving,
            teller,
            locks,
            making: Mutex::default(),
            state: Mutex::new(State { expected: for_sessions, ..State::default() }),
            changed: Condvar::new(),
        })
    }

    /// Mounts on `dir` for the host. `None`: the process is ending.
    ///
    /// # Errors
    /// [`Error::Mounted`] if the host has a mount already, and those of [`Serving::mount`].
    pub fn mount(self: &Arc<Self>, dir: &Path, options: &MountOptions) -> Result<Option<PathBuf>> {
        let _one_at_a_time = self.making.lock();
        let env = self.instance.metadata();
        let is_second = {
            let mut state = self.state.lock();
            if state.ended {
                return Ok(None);
            }
            if let Some(host) = &state.host {
                let (dir, pid) = (host.dir.clone(), std::process::id());
                return Err(Error::Mounted { env: env.name, dir, pid });
            }
            // Counted from now on, so that the process does not end meanwhile.
            state.connections += 1;
            state.connections > 1
        };
        let made = self.mount_on_host(dir, options, is_second, &env);
        let (mount, session) = made.inspect_err(|_| self.uncount())?;
        let dir = mount.dir.clone();
        self.add(mount, session, false)?;
        self.guard();
        Ok(Some(dir))
    }

    fn mount_on_host(
        &self,
        dir: &Path,
        options: &MountOptions,
        is_second: bool,
        env: &Metadata,
    ) -> Result<(Mount, MountedSession)> {
        let dir = mountpoint::prepare(dir)?;
        let options = self.host_options(options, is_second, env)?;
        let session = self.serving.mount(&dir, &source(env), &options)?;
        let device = mountpoint::fuse_device(&dir)?;
        Ok((Mount::new(dir, device, options.shares), session))
    }

    /// The options for a mount of the host. Beside the sessions' mount the view stays writable.
    fn host_options(&self, asked: &MountOptions, is_second: bool, env: &Metadata) -> Result<MountOptions> {
        if asked.locks != self.locks {
            let (name, locks) = (&env.name, self.locks.word());
            return Err(Error::Invalid(format!(
                "the locks of {name}'s sessions are {locks}, and a mount beside them must have the same: mount with \
                 --locks {locks}, or end the sessions first (`karapace stop {name}`)"
            )));
        }
        let mut options = asked.clone();
        options.shares = is_second || has_range();
        if is_second {
            if options.passthrough {
                let name = &env.name;
                return Err(Error::Invalid(format!(
                    "{name} has sessions, which may write to it: --passthrough does not work before they end (`karapace stop \
                     {name}`)"
                )));
            }
            if options.read_only {
                options.flags.push(Flag::ReadOnly);
            }
            options.read_only = self.instance.view().is_read_only();
            if options.read_only && !asked.read_only && env.state == EnvState::Built {
                let name = &env.name;
                return Err(Error::Invalid(format!(
                    "{name} has sessions that may not write to it, because it was mounted with --read-only: end them first \
                     (`karapace stop {name}`), or mount with --read-only"
                )));
            }
        }
        Ok(options)
    }

    /// The mount that a session uses, made now if there is none. With `own_id`, it is the host's if there is
    /// one, where an ordinary user has a single id. `None`: the process is ending.
    ///
    /// # Errors
    /// If the mount cannot be made.
    pub fn for_sessions(self: &Arc<Self>, own_id: bool) -> Result<Option<Arc<Mount>>> {
        let _one_at_a_time = self.making.lock();
        let host = {
            let mut state = self.state.lock();
            if state.ended {
                return Ok(None);
            }
            state.expected = true;
            if let Some(mount) = state.for_sessions(own_id) {
                drop(state);
                self.guard();
                return Ok(Some(mount));
            }
            state.host.clone()
        };
        let reason = match self.ranges(host.as_deref()) {
            Ok(None) => None,
            Ok(Some(ranges)) => match self.mount_in_ground(&ranges) {
                Ok(mount) => return Ok(Some(mount)),
                Err(error) => Some(error.to_string()),
            },
            Err(reason) => Some(reason),
        };
        let one_id = reason.map(|reason| format!("only one id inside: {reason}"));
        if let Some(host) = host {
            return Ok(Some(host.as_sessions_see(one_id)));
        }
        let dir = self.private_dir()?;
        let options = MountOptions { for_sessions: true, ..self.options() };
        let session = self.serving.mount(&dir, &source(&self.instance.metadata()), &options)?;
        let device = mountpoint::fuse_device(&dir)?;
        self.add(Mount { one_id, ..Mount::new(dir, device, false) }, session, true).map(Some)
    }

    /// The ids for a ground: none are needed by root.
    ///
    /// # Errors
    /// Why there is none, and what helps.
    fn ranges(&self, host: Option<&Mount>) -> std::result::Result<Option<ranges::Ranges>, String> {
        if geteuid().is_root() {
            return Ok(None);
        }
        match ranges::available() {
            Ok(_) if host.is_some_and(|host| !host.shares) => {
                Err("it was mounted before there were more: unmount it, and mount it again".to_owned())
            }
            Ok(ranges) => Ok(Some(ranges)),
            Err(reason) => Err(format!("{reason}; to fix it, run as root: {}", reason.cure())),
        }
    }

    fn private_dir(&self) -> Result<PathBuf> {
        let dir =
            mountpoint::prepare(&self.instance.engine().session_dir(&self.instance.metadata().instance)?)?;
        self.state.lock().private = Some(dir.clone());
        Ok(dir)
    }

    fn mount_in_ground(self: &Arc<Self>, ranges: &ranges::Ranges) -> Result<Arc<Mount>> {
        let dir = self.private_dir()?;
        let (ground, device) = Ground::make(&dir, &source(&self.instance.metadata()), ranges)?;
        let handover = ground.handover(device);
        let options = MountOptions { for_sessions: true, ..self.options() };
        let session = self.serving.take_over(handover, &options)?;
        let device = ground.connection();
        let ground = Mutex::new(Some(Arc::new(ground)));
        self.add(Mount { ground, ..Mount::new(dir, device, false) }, session, true)
    }

    fn options(&self) -> MountOptions {
        let read_only = self.instance.view().is_read_only();
        MountOptions { read_only, locks: self.locks, ..MountOptions::default() }
    }

    /// Notes that the keeper holds an inside, made on the mount with this number; `None` stands for the mount
    /// that sessions use. Returns false if that mount has ended or is ending: then the inside is of no use.
    pub fn begin_inside(&self, mount: Option<u64>) -> bool {
        let mut state = self.state.lock();
        let host = state.host.as_ref().filter(|_| !state.unmounting);
        let mut known = state.sessions.iter().chain(host).map(|mount| mount.id);
        let made_on = known.find(|id| mount.is_none_or(|mount| mount == *id));
        if made_on.is_some() {
            self.note_inside(&mut state, made_on);
        }
        made_on.is_some()
    }

    /// Notes that the keeper holds no inside any more.
    pub fn end_inside(&self) {
        let mut state = self.state.lock();
        self.note_inside(&mut state, None);
    }

    /// The number of the mount on which the keeper's inside was made, if it holds one.
    pub fn inside(&self) -> Option<u64> {
        self.state.lock().inside
    }

    /// Whether the inside's mount has ended, or the process that holds it.
    pub fn has_lost_inside(&self) -> bool {
        let state = self.state.lock();
        let mut known = state.host.iter().chain(&state.sessions);
        state.inside.is_some_and(|id| known.find(|mount| mount.id == id).is_none_or(|mount| !mount.is_held()))
    }

    /// Gives the sessions' mount up if the process that holds it has ended, so that nobody can unmount it: it
    /// ends with the last process that uses it.
    pub fn drop_unheld(&self) {
        let mount = self.state.lock().sessions.clone();
        if let Some(mount) = mount.filter(|mount| !mount.is_held()) {
            self.forget(&mount);
        }
    }

    /// Unmounts the host's mount, if there is one.
    ///
    /// # Errors
    /// [`Error::DirBusy`] while it is in use, and [`Error::Running`] while sessions beside another mount use
    /// it.
    pub fn unmount(&self) -> Result<()> {
        let _one_at_a_time = self.making.lock();
        let host = {
            let mut state = self.state.lock();
            let Some(host) = state.host.clone() else { return Ok(()) };
            if state.sessions.is_some() && state.inside == Some(host.id) {
                return Err(Error::Running { env: self.instance.metadata().name });
            }
            state.unmounting = true;
            host
        };
        // Busy for a moment, too, while some program looks at the directory.
        let unmounted = wait::until(MOMENT, || match host.unmount(false) {
            Err(karapace_fs::Error::Busy) => Ok(None),
            other => other.map(Some),
        });
        let unmounted = unmounted.and_then(|done| done.ok_or(karapace_fs::Error::Busy));
        // Otherwise the end of the connection forgets it, and until then it is known who holds it.
        if unmounted.is_ok() && self.state.lock().sessions.is_some() {
            self.forget(&host);
        }
        self.state.lock().unmounting = false;
        match unmounted {
            Err(karapace_fs::Error::Busy) => {
                Err(Error::DirBusy { dir: host.dir.clone(), users: String::new() })
            }
            other => Ok(other?),
        }
    }

    /// Ends the mount of the sessions, of which none is left. Returns whether the process ends with it.
    pub fn end_sessions(&self) -> bool {
        let _one_at_a_time = self.making.lock();
        let mut state = self.state.lock();
        let (host, mount) = (state.host.clone(), state.sessions.clone());
        state.expected = false;
        // From here on no mount is made beside one that ends the process. A mount that was detached and is
        // still in use does not end it, so new sessions are served.
        state.ended |= host.is_none() && state.connections <= usize::from(mount.is_some());
        let ended = state.ended;
        drop(state);
        // Nothing is beside it any more.
        host.iter().for_each(|host| host.end_guard());
        if let Some(mount) = mount {
            self.forget(&mount);
            if let Err(error) = mount.unmount(false).or_else(|_| mount.unmount(true)) {
                tracing::error!("cannot end the mount of the sessions: {error}");
            }
        }
        self.changed.notify_all();
        ended
    }

    /// Ends all mounts. Those that are in use are detached; returns whether all have ended after the grace
    /// period.
    pub fn end(&self) -> bool {
        let mut state = self.state.lock();
        (state.ended, state.expected) = (true, false);
        let mounts: Vec<_> = state.host.iter().chain(&state.sessions).cloned().collect();
        drop(state);
        self.changed.notify_all();
        for mount in mounts {
            // Even when unmounted here, it may still be mounted in another mount namespace, or have been
            // detached while files were open.
            if let Err(error) = mount.unmount(false) {
                tracing::info!("detaching the mount, because it cannot be unmounted: {error}");
                if let Err(error) = mount.unmount(true) {
                    tracing::error!("cannot detach the mount: {error}");
                }
            }
        }
        let deadline = Deadline::after(GRACE);
        let mut state = self.state.lock();
        while state.connections > 0 && !deadline.has_passed() {
            self.changed.wait_for(&mut state, GRACE.saturating_sub(deadline.waited()));
        }
        state.connections == 0
    }

    /// Waits until nothing is mounted any more and no session is expected.
    pub fn wait(&self) {
        let mut state = self.state.lock();
        while state.connections > 0 || state.expected {
            self.changed.wait(&mut state);
        }
        state.ended = true;
    }

    /// Removes the directory that was made for the sessions' mount. Call it when nothing is mounted any more.
    pub fn clear(&self) {
        if let Some(dir) = self.state.lock().private.take()
            && let Err(error) = fs::remove_dir(&dir)
        {
            tracing::debug!("cannot remove {}: {error}", dir.display());
        }
    }

    /// Whether the host has a mount.
    pub fn has_host(&self) -> bool {
        self.state.lock().host.is_some()
    }
}

/// Whether this ordinary user has a range of ids, so that sessions get a mount of their own.
fn has_range() -> bool {
    !geteuid().is_root() && ranges::available().is_ok()
}

/// What mount(8) and df show as the source of the environment's mounts.
pub fn source(env: &Metadata) -> String {
    format!("{SOURCE}{}", env.name)
}
