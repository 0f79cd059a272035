//! The mounts through which one process serves an environment: the host's, and one for the sessions.
//!
//! Sessions of an ordinary user who has a range of ids have a mount of their own, in a [`Ground`]. Others use the
//! host's mount or, if there is none, one in a private directory. The process ends when nothing is mounted any
//! more and no session is expected.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karapace_fs::session::{Flag, LockScope, MountOptions, MountedSession, Serving};
use karapace_store::metadata::{EnvState, Metadata};
use karapace_store::wait::Deadline;
use nix::unistd::geteuid;
use parking_lot::{Condvar, Mutex};

use super::ground::{Ground, Guard};
use super::info::{MountInfo, info_path};
use super::mount::Mount;
use crate::engine::instance::open::Instance;
use crate::engine::instance::watchers::{Place, Teller};
use crate::engine::mountpoint::{self, SOURCE};
use crate::engine::{Error, Result};
use crate::runtime::ranges;

/// How long a mount may stay in use after it was detached because the process is asked to end.
pub const GRACE: Duration = Duration::from_secs(5);

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
    /// The directory that was made for the sessions' mount.
    private: Option<PathBuf>,
    /// How many connections the kernel still has, among them those of mounts that were detached.
    connections: usize,
    /// Sessions use the host's mount.
    on_host: bool,
    /// The mount that the sessions use has ended by itself.
    lost: bool,
    /// Sessions were announced, and not all of them have ended.
    expected: bool,
    /// No mount is made any more.
    ended: bool,
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
        self.guard_sessions();
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

    /// A connection has ended, or was not made.
    fn uncount(&self) {
        self.state.lock().connections -= 1;
        self.changed.notify_all();
    }

    /// Has the sessions' mount guarded, now that the host's is beside it. One in a ground is already.
    fn guard_sessions(&self) {
        let sessions = self.state.lock().sessions.clone();
        let Some(mount) = sessions.filter(|mount| mount.ground().is_none()) else { return };
        let mut guard = mount.guard.lock();
        if guard.is_some() {
            return;
        }
        match Guard::of(&mount.dir, mount.device) {
            Ok(made) => *guard = Some(made),
            Err(error) => tracing::warn!("if the server is killed, sessions may hang: {error}"),
        }
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

    /// The mount that a session uses, made now if there is none. With `own_id`, it is the host's if there is one,
    /// where an ordinary user has a single id. `None`: the process is ending.
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
            let host = state.host.clone();
            match (&state.sessions, &host) {
                (_, Some(host)) if own_id => {
                    state.on_host = true;
                    return Ok(Some(host.as_sessions_see(None)));
                }
                (Some(mount), _) => return Ok(Some(mount.clone())),
                (None, _) => {}
            }
            host
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
            self.state.lock().on_host = true;
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

    /// Records a mount, and waits for its end in a thread.
    fn add(
        self: &Arc<Self>,
        mount: Mount,
        session: MountedSession,
        for_sessions: bool,
    ) -> Result<Arc<Mount>> {
        let handle = session.unmount_handle();
        *mount.handle.lock() = Some(handle.clone());
        let mount = Arc::new(mount);
        let namespaces = mount.ground().map_or_else(Vec::new, |ground| ground.namespace_paths());
        self.teller.add(Place { dir: mount.dir.clone(), namespaces });
        let mut state = self.state.lock();
        // That of the host is counted already.
        state.connections += usize::from(for_sessions);
        let slot = if for_sessions { &mut state.sessions } else { &mut state.host };
        *slot = Some(mount.clone());
        drop(state);
        let (mounts, ended) = (self.clone(), mount.clone());
        let wait = move || {
            if let Err(error) = session.wait() {
                tracing::error!("serving {}: {error}", ended.dir.display());
            }
            let was_known = mounts.forget(&ended);
            let mut state = mounts.state.lock();
            state.lost |= was_known && (for_sessions || state.on_host);
            drop(state);
            mounts.uncount();
        };
        let thread = std::thread::Builder::new().name("karapace-mount".to_owned()).spawn(wait);
        if let Err(error) = thread {
            self.uncount();
            return Err(Error::Invalid(format!("cannot start a thread: {error}")));
        }
        if let Err(error) = self.write_info() {
            if let Err(error) = handle.detach() {
                tracing::error!("cannot detach the mount: {error}");
            }
            return Err(error);
        }
        tracing::info!(dir = %mount.dir.display(), "mounted");
        Ok(mount)
    }

    /// Forgets a mount that is no longer there, or was detached. Returns whether it was known.
    fn forget(&self, mount: &Arc<Mount>) -> bool {
        let (mut was_known, mut ended) = (false, None);
        let mut state = self.state.lock();
        let State { host, sessions, .. } = &mut *state;
        for slot in [host, sessions] {
            if slot.as_ref().is_some_and(|known| Arc::ptr_eq(known, mount)) {
                *slot = None;
                was_known = true;
                mount.ground.lock().take();
                ended = mount.guard.lock().take();
                self.teller.remove(&mount.dir);
            }
        }
        drop(state);
        // Waits for the process that it is.
        drop(ended);
        if was_known && let Err(error) = self.write_info() {
            tracing::error!("{error}");
        }
        was_known
    }

    /// Whether sessions were expected and their mount has ended, or the process that holds it.
    pub fn has_lost_sessions(&self) -> bool {
        let (lost, mount) = {
            let state = self.state.lock();
            (state.lost, state.sessions.clone())
        };
        lost || mount.and_then(|mount| mount.ground()).is_some_and(|ground| !ground.is_held())
    }

    /// Gives the sessions' mount up, which nobody can unmount: it ends with the last process that uses it.
    pub fn drop_sessions(&self) {
        let mount = {
            let mut state = self.state.lock();
            (state.lost, state.on_host) = (false, false);
            state.sessions.clone()
        };
        if let Some(mount) = mount {
            self.forget(&mount);
        }
    }

    /// Unmounts the host's mount, if there is one.
    ///
    /// # Errors
    /// [`Error::DirBusy`] while it is in use.
    pub fn unmount(&self) -> Result<()> {
        let _one_at_a_time = self.making.lock();
        let host = self.state.lock().host.clone();
        let Some(host) = host else { return Ok(()) };
        match host.unmount(false) {
            Ok(()) => {}
            Err(karapace_fs::Error::Busy) => {
                return Err(Error::DirBusy { dir: host.dir.clone(), users: String::new() });
            }
            Err(error) => return Err(error.into()),
        }
        if self.state.lock().sessions.is_some() {
            // Otherwise the end of the connection forgets it, and until then it is known who holds it.
            self.forget(&host);
        }
        Ok(())
    }

    /// Ends the mount of the sessions, of which none is left. Returns whether the process ends with it.
    pub fn end_sessions(&self) -> bool {
        let _one_at_a_time = self.making.lock();
        let mut state = self.state.lock();
        let mount = state.sessions.clone();
        (state.expected, state.on_host, state.lost) = (false, false, false);
        // From here on no mount is made beside one that ends the process.
        state.ended |= state.host.is_none();
        let ended = state.ended;
        drop(state);
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
            // Even when unmounted here, it may still be mounted in another mount namespace, or have been detached
            // while files were open.
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

    /// Writes mount.json, which describes the mounts as they are.
    fn write_info(&self) -> Result<()> {
        let engine = self.instance.engine();
        let instance = self.instance.metadata().instance;
        let state = self.state.lock();
        let Some(info) = info(&state) else { return Ok(()) };
        let bytes = serde_json::to_vec(&info)
            .map_err(|e| Error::Invalid(format!("cannot encode the description of the mount: {e}")))?;
        // Under the lock, so that the last description written is the last one made.
        engine.store().files().write(&info_path(engine, &instance), &bytes)?;
        Ok(())
    }
}

/// What mount.json says; `None` if nothing is mounted.
fn info(state: &State) -> Option<MountInfo> {
    let (mount, session) = match (&state.host, &state.sessions) {
        (Some(host), _) => (host, false),
        (None, sessions) => (sessions.as_ref()?, true),
    };
    let beside = state.sessions.as_ref().filter(|_| !session);
    Some(MountInfo {
        dir: mount.dir.clone(),
        pid: std::process::id(),
        session,
        device: mount.device,
        sessions_dir: beside.map(|mount| mount.dir.clone()),
    })
}

/// Whether this ordinary user has a range of ids, so that sessions get a mount of their own.
fn has_range() -> bool {
    !geteuid().is_root() && ranges::available().is_ok()
}

/// What mount(8) and df show as the source of the environment's mounts.
pub fn source(env: &Metadata) -> String {
    format!("{SOURCE}{}", env.name)
}
