//! Serving an environment through FUSE: in this process, or in one of its own in the background.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use karapace_fs::control::ControlPlane;
use karapace_fs::session::{CtlDir, Flag, MountOptions, MountedSession, UnmountHandle};
use karapace_fs::view::View;
use karapace_store::atomic;
use karapace_store::id::InstanceId;
use karapace_store::layer::LayerRecord;
use karapace_store::lock::{EnvLock, StoreLock};
use karapace_store::metadata::Metadata;
use karapace_store::pins::Pin;
use karapace_store::tree::Trees;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::background::{Background, spawn};
use super::point;
use crate::description::lifecycle;
use crate::engine::instance::open::Instance;
use crate::engine::instance::watchers::Teller;
use crate::engine::instance::{reference, sessions};
use crate::engine::server::access::perform;
use crate::engine::server::client::Client;
use crate::engine::server::control::{Admitted, Plane};
use crate::engine::server::keeper::{Keeper, Place};
use crate::engine::server::socket::{Answer, Request, Server};
use crate::engine::{Engine, Error, Result};
use crate::process;
use crate::runtime::ranges::Ranges;

/// How long users of a mount may keep it after it was detached on a signal.
const GRACE: Duration = Duration::from_secs(5);

/// The largest mount.json that is read, in bytes.
const MAX_INFO: u64 = 64 << 10;

/// What the source of every mount begins with; the environment's name follows. With a colon, as of `host:directory`, df and du
/// would take the mount for a remote one: `df --local` left it out, and du called a bind mount inside a damaged file system
/// (`ME_REMOTE` of gnulib's mountlist.c).
pub const SOURCE: &str = "karapace+";

/// Threads that serve a mount unless told otherwise: one caller is not served faster by more, and two keep a slow request
/// (a cold read) from holding up the others.
pub const DEFAULT_THREADS: usize = 2;

/// How to mount.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where.
    pub dir: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// What the kernel is to see to.
    pub flags: Vec<Flag>,
    /// Mount this snapshot, read-only, instead of the environment's view.
    pub snapshot: Option<String>,
    /// How the control directory shows.
    pub ctl_dir: CtlDir,
    /// Let other users in.
    pub allow_other: bool,
    /// Serving threads.
    pub threads: usize,
    /// Let the kernel read large files by itself; read-only, and by root.
    pub passthrough: bool,
    /// Let root make id-mapped mounts of it, which has no control directory then; by root.
    pub idmap: bool,
    /// The mount is for `enter` and `exec` only and ends with the last of them.
    pub session: bool,
    /// Serve in a user and mount namespace of its own that has these ids.
    pub ranges: Option<Ranges>,
    /// The process is in such namespaces.
    pub has_ground: bool,
}

impl Options {
    /// The defaults, on `dir`.
    pub fn new(dir: PathBuf) -> Options {
        Options {
            dir,
            read_only: false,
            flags: Vec::new(),
            snapshot: None,
            ctl_dir: CtlDir::default(),
            allow_other: false,
            threads: DEFAULT_THREADS,
            passthrough: false,
            idmap: false,
            session: false,
            ranges: None,
            has_ground: false,
        }
    }
}

/// `env/<instance>/mount.json`: where a mount is and who serves it. Believed only while the control socket answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountInfo {
    /// The mount point.
    pub dir: PathBuf,
    /// The serving process.
    pub pid: u32,
    /// Made for `enter` and `exec`.
    #[serde(default)]
    pub session: bool,
    /// The minor device number of the mount, by which it is found wherever it still is. Not shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
}

impl MountInfo {
    /// Whether a live mount is one that this process sees: it may be in another mount namespace, as those are that are
    /// made inside a user namespace.
    pub(in crate::engine) fn is_seen_here(&self) -> bool {
        point::is_ours(&self.dir)
    }
}

/// The log of an environment's background mounts.
pub fn log_path(engine: &Engine, instance: &InstanceId) -> PathBuf {
    engine.env_dir(instance).join("mount.log")
}

fn info_path(engine: &Engine, instance: &InstanceId) -> PathBuf {
    engine.env_dir(instance).join("mount.json")
}

/// Where an environment is mounted when nothing else is said: `~/karapace/<name>`.
pub fn default_dir(env: &Metadata) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let home =
        home.ok_or_else(|| Error::Invalid("HOME is not set: name a directory to mount on".to_owned()))?;
    Ok(PathBuf::from(home).join("karapace").join(&env.name))
}

impl Engine {
    /// The environment's mount, if a process serves it now.
    pub fn live_mount(&self, instance: &InstanceId) -> Result<Option<MountInfo>> {
        if Client::connect(self.store().files(), &self.env_dir(instance))?.is_none() {
            return Ok(None);
        }
        self.recorded_mount(instance)
    }

    /// What mount.json says, true or not.
    pub(in crate::engine) fn recorded_mount(&self, instance: &InstanceId) -> Result<Option<MountInfo>> {
        let path = info_path(self, instance);
        match self.store().files().read(&path, MAX_INFO) {
            // A file that does not read is as good as none: it is rewritten by the next mount.
            Ok(bytes) => {
                Ok(serde_json::from_slice(&bytes).ok().filter(|info: &MountInfo| info.dir.is_absolute()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path, e)),
        }
    }

    pub(in crate::engine) fn mounted_error(&self, env: &Metadata) -> Error {
        match self.recorded_mount(&env.instance) {
            Ok(Some(info)) if info.session => Error::Running { env: env.name.clone() },
            Ok(Some(info)) if !info.is_seen_here() => {
                Error::MountedElsewhere { env: env.name.clone(), dir: info.dir }
            }
            Ok(Some(info)) => Error::Mounted { env: env.name.clone(), dir: info.dir, pid: info.pid },
            _ => self.serving_error(env, "is starting or ending"),
        }
    }

    /// Mounts in a background process and returns the mount point when the mount answers.
    /// `verbose` makes its log say more.
    pub fn mount(&self, env: &Metadata, options: &Options, verbose: bool) -> Result<(PathBuf, Background)> {
        // What can be refused here is refused before a process is started.
        check_mountable(env)?;
        check_root_options(options)?;
        if options.snapshot.is_none() {
            self.end_orphaned_session(env)?;
            if self.live_mount(&env.instance)?.is_some() {
                return Err(self.mounted_error(env));
            }
        }
        spawn(self, env, options, verbose)
    }

    /// Serves in this process until unmounted. `ready` is called once, with the mount point, when the mount answers; when it
    /// fails, nobody waits for the mount and it ends.
    pub fn serve(
        &self,
        instance: &InstanceId,
        options: &Options,
        ready: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<()> {
        let env = Metadata::load(self.store(), instance)?;
        check_mountable(&env)?;
        check_root_options(options)?;
        process::lift_limits()
            .map_err(|e| Error::Invalid(format!("cannot lift the limits of a server: {e}")))?;
        // Blocked before the first thread is made, so that all have it; `watch_signals` receives them.
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().map_err(|e| Error::Invalid(format!("cannot block signals: {e}")))?;
        match &options.snapshot {
            Some(snapshot) => serve_snapshot(self, &env, snapshot, options, signals, ready),
            None => serve_view(self, &env, options, signals, ready),
        }
    }
}

fn check_mountable(env: &Metadata) -> Result<()> {
    if lifecycle::is_enterable(env.state) {
        return Ok(());
    }
    let state = env.state.to_string().to_lowercase();
    Err(Error::Invalid(format!("{} is {state} and cannot be mounted or entered", env.name)))
}

/// Refuses what is for root. The kernel takes objects from root only, and would not see what is written; on a user's mount all
/// ids are one.
fn check_root_options(options: &Options) -> Result<()> {
    let read_only = options.read_only || options.snapshot.is_some();
    if options.passthrough && !(read_only && geteuid().is_root()) {
        let reason = "--passthrough is for root, with --read-only or --snapshot: leave it out, and requests are answered as usual";
        return Err(Error::Invalid(reason.to_owned()));
    }
    if options.idmap && !geteuid().is_root() {
        let reason =
            "--idmap is for root: the kernel lets nobody else make id-mapped mounts of FUSE file systems";
        return Err(Error::Invalid(reason.to_owned()));
    }
    Ok(())
}

fn serve_view(
    engine: &Engine,
    env: &Metadata,
    options: &Options,
    signals: SigSet,
    ready: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let lock = engine.lock_unmounted(env)?;
    let env = Metadata::load(engine.store(), &env.instance)?;
    check_mountable(&env)?;
    // We hold the lock, so whatever an earlier process recorded is over.
    if let Some(old) = engine.recorded_mount(&env.instance)? {
        point::clear_stale(&old.dir)?;
    }
    atomic::sweep_temporary(engine.store().files(), &engine.env_dir(&env.instance))?;
    let dir = point::prepare(&options.dir)?;
    let read_only = options.read_only || !lifecycle::is_writable(env.state);
    let instance = Arc::new(Instance::open(engine, env.clone(), lock, read_only)?);
    instance.hold_pin()?;
    let admitted = Arc::new(Admitted::default());
    let plane: Arc<dyn ControlPlane> = Arc::new(Plane::new(instance.clone(), admitted.clone()));
    let mount_options = mount_options(&env, &dir, options, read_only);
    let session = MountedSession::mount(
        instance.view().clone(),
        instance.trees().clone(),
        Some(plane),
        &mount_options,
    )?;
    instance.attach(session.invalidator(), Teller::new(session.watchers(), dir.clone()));
    let handle = session.unmount_handle();
    let place = Place { dir: dir.clone(), session: options.session, has_ground: options.has_ground };
    let keeper = Keeper::new(engine, env.instance, place, handle.clone(), admitted);
    let running = announce(engine, &env, &instance, &handle, &keeper);
    let running = running.and_then(|server| {
        let (instance, path) = (instance.clone(), info_path(engine, &env.instance));
        watch_signals(signals, handle.clone(), move || finish(&instance, None, &path))?;
        ready(&dir)?;
        Ok(server)
    });
    let server = match running {
        Ok(server) => server,
        Err(error) => {
            if let Err(error) = handle.detach() {
                tracing::error!("detaching: {error}");
            }
            finish(&instance, None, &info_path(engine, &env.instance));
            return Err(error);
        }
    };
    tracing::info!(env = env.name, dir = %dir.display(), "mounted");
    session.wait().map_err(|e| Error::io("serve", &dir, e))?;
    if options.session
        && let Err(error) = fs::remove_dir(&dir)
    {
        tracing::debug!("removing {}: {error}", dir.display());
    }
    finish(&instance, Some(&server), &info_path(engine, &env.instance));
    tracing::info!(env = env.name, "unmounted");
    Ok(())
}

/// Writes mount.json, then opens the socket: who can connect finds the mount point written.
fn announce(
    engine: &Engine,
    env: &Metadata,
    instance: &Arc<Instance>,
    handle: &UnmountHandle,
    keeper: &Arc<Keeper>,
) -> Result<Server> {
    let info = MountInfo {
        dir: keeper.dir().to_owned(),
        pid: std::process::id(),
        session: keeper.is_for_sessions(),
        device: point::fuse_device(keeper.dir())?,
    };
    let bytes =
        serde_json::to_vec(&info).map_err(|e| Error::Invalid(format!("describing the mount: {e}")))?;
    engine.store().files().write(&info_path(engine, &env.instance), &bytes)?;
    let (instance, handle, keeper) = (instance.clone(), handle.clone(), keeper.clone());
    Server::start(engine.store().files(), &engine.env_dir(&env.instance), move |request, descriptors| {
        match keeper.answer(&request, descriptors) {
            Some(reply) => reply.unwrap_or_else(|error| failed(&error).into()),
            None => answer(&instance, &handle, keeper.dir(), &request).into(),
        }
    })
}

fn answer(instance: &Instance, handle: &UnmountHandle, dir: &Path, request: &Request) -> Answer {
    if *request == Request::Unmount {
        return match handle.unmount() {
            Ok(()) => Answer::Unmounted,
            Err(karapace_fs::Error::Busy) => failed(&Error::DirBusy { dir: dir.to_owned() }),
            Err(error) => failed(&error.into()),
        };
    }
    match perform(instance, request) {
        Ok(answer) => answer,
        Err(_) if instance.is_closed() => Answer::Ending,
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> Answer {
    Answer::Failed { errno: error.errno(), reason: error.to_string() }
}

/// Ends the work on an environment whose mount is gone. What fails is for the log: there is nobody left to tell, and the
/// journal holds everything all the same.
fn finish(instance: &Instance, server: Option<&Server>, info: &Path) {
    if let Err(error) = instance.close() {
        tracing::error!("closing the environment: {error}");
    }
    if let Err(error) = instance.engine().store().files().remove(info) {
        tracing::debug!("removing {}: {error}", info.display());
    }
    if let Some(server) = server {
        server.stop();
    }
}

fn serve_snapshot(
    engine: &Engine,
    env: &Metadata,
    snapshot: &str,
    options: &Options,
    signals: SigSet,
    ready: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let store = engine.store();
    let shared = StoreLock::shared(store)?;
    let layer = reference::resolve(env, snapshot)?;
    let root = LayerRecord::read(store, &layer.record)?.tree;
    let _pin = Pin::hold(store, &[root])?;
    drop(shared);
    let dir = point::prepare(&options.dir)?;
    let trees = Arc::new(Trees::new(store.clone()));
    let view = Arc::new(View::snapshot(&trees, root)?);
    let mount_options = mount_options(env, &dir, options, true);
    let session = MountedSession::mount(view, trees, None, &mount_options)?;
    let handle = session.unmount_handle();
    watch_signals(signals, handle.clone(), || ())?;
    if let Err(error) = ready(&dir) {
        if let Err(error) = handle.detach() {
            tracing::error!("detaching: {error}");
        }
        return Err(error);
    }
    session.wait().map_err(|e| Error::io("serve", &dir, e))
}

fn mount_options(env: &Metadata, dir: &Path, options: &Options, read_only: bool) -> MountOptions {
    MountOptions {
        mountpoint: dir.to_owned(),
        read_only,
        flags: options.flags.clone(),
        ctl: options.ctl_dir,
        allow_other: options.allow_other,
        threads: options.threads,
        passthrough: options.passthrough,
        idmap: options.idmap,
        fsname: format!("{SOURCE}{}", env.name),
    }
}

/// On SIGTERM, SIGINT or SIGHUP unmounts. A mount in use is detached, and after a grace period cut off: `finish` is called and
/// the process ends.
fn watch_signals(signals: SigSet, handle: UnmountHandle, finish: impl Fn() + Send + 'static) -> Result<()> {
    let watch = move || {
        let Ok(signal) = signals.wait() else { return };
        tracing::info!("unmounting on {signal}");
        // Unmounted here, it may still be mounted in another mount namespace, or be open since it was detached.
        if let Err(error) = handle.unmount() {
            tracing::info!("detaching, for it cannot be unmounted: {error}");
            if let Err(error) = handle.detach() {
                tracing::error!("detaching: {error}");
            }
        }
        let end = Instant::now() + GRACE;
        while handle.is_connected() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        if handle.is_connected() {
            tracing::warn!("still in use after {} s: cut off", GRACE.as_secs());
            finish();
            std::process::exit(0);
        }
    };
    let thread = std::thread::Builder::new().name("karapace-signals".to_owned());
    thread.spawn(watch).map_err(|e| Error::Invalid(format!("cannot start a thread: {e}")))?;
    Ok(())
}

impl Engine {
    /// The environment's mount and state for listings; never fails for one that is merely not mounted.
    pub(in crate::engine) fn shown_mount(&self, env: &Metadata) -> Option<MountInfo> {
        match self.live_mount(&env.instance) {
            Ok(mount) => mount.map(|mount| MountInfo { device: None, ..mount }),
            Err(error) => {
                tracing::warn!("{}: {error}", env.name);
                None
            }
        }
    }

    /// Refuses what may not be done to an environment in use.
    pub(in crate::engine) fn check_idle(&self, env: &Metadata) -> Result<()> {
        if sessions::running(self, &env.instance) {
            return Err(Error::Running { env: env.name.clone() });
        }
        self.end_orphaned_session(env)?;
        match self.live_mount(&env.instance)? {
            // Who mounted it was no user, who would have to unmount it.
            Some(mount) if self.is_supervised(&mount)? => self.unmount_and_wait(env).map(|_| ()),
            Some(_) => Err(self.mounted_error(env)),
            None => Ok(()),
        }
    }

    /// Takes the lock of an environment that is not in use. A mount that somebody's `mount --all` just makes may show only when the lock
    /// is asked for: it is ended as well.
    pub(in crate::engine) fn lock_idle(&self, env: &Metadata) -> Result<EnvLock> {
        self.check_idle(env)?;
        match self.lock_unmounted(env) {
            Err(Error::Mounted { .. }) => {
                self.check_idle(env)?;
                self.lock_unmounted(env)
            }
            other => other,
        }
    }

    /// Unmounts what a killed session left mounted for itself.
    fn end_orphaned_session(&self, env: &Metadata) -> Result<()> {
        let orphaned = self.live_mount(&env.instance)?.is_some_and(|mount| mount.session)
            && !sessions::running(self, &env.instance);
        if orphaned {
            tracing::info!("unmounting what a killed session of {} left", env.name);
            self.unmount_and_wait(env)?;
        }
        Ok(())
    }
}
