//! Serving an environment through FUSE in this process, until it is unmounted.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use karapace_fs::control::{Command, CommandError, ControlPlane, contained};
use karapace_fs::session::{MountOptions, Serving, UnmountHandle};
use karapace_fs::view::View;
use karapace_store::atomic;
use karapace_store::id::InstanceId;
use karapace_store::layer::LayerRecord;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::Metadata;
use karapace_store::pins::Pin;
use karapace_store::tree::Trees;

use super::options::{Options, check_mountable, check_root_options};
use crate::description::lifecycle;
use crate::engine::At as _;
use crate::engine::instance::open::{Instance, Wait};
use crate::engine::instance::reference;
use crate::engine::instance::watchers::Teller;
use crate::engine::mountpoint;
use crate::engine::mountpoint::SOURCE;
use crate::engine::server::control::{Admitted, Plane};
use crate::engine::server::info::{MountInfo, info_path};
use crate::engine::server::keeper::{Keeper, Place};
use crate::engine::server::perform::perform;
use crate::engine::server::socket::{Answer, Reply, Request, Server};
use crate::engine::{Engine, Error, Result};
use crate::process::{self, signals};

/// How long a mount may stay in use after a signal detached it.
const GRACE: Duration = Duration::from_secs(5);

impl Engine {
    /// Serves on `dir` in this process until unmounted. `ready` is called once, with the mount point, when
    /// the mount answers; if it fails, nobody waits for the mount, and it ends.
    pub fn serve(
        &self,
        instance: &InstanceId,
        dir: &Path,
        options: &Options,
        ready: &mut dyn FnMut(&Path) -> Result<()>,
    ) -> Result<()> {
        let env = Metadata::load(self.store(), instance)?;
        check_mountable(&env)?;
        check_root_options(options)?;
        process::lift_limits()
            .map_err(|e| Error::Invalid(format!("cannot lift the limits of a server: {e}")))?;
        // Before anything is mounted: `watch_signals` then finds what has come meanwhile. Before the first
        // thread that serves starts, so that none is interrupted.
        let (ask, asked) = channel();
        let handler = move || ask.send(()).unwrap_or(());
        signals::on_request_to_end_server(handler)
            .map_err(|e| Error::Invalid(format!("cannot wait for signals: {e}")))?;
        match &options.snapshot {
            Some(snapshot) => serve_snapshot(self, &env, snapshot, dir, &options.mount, asked, ready),
            None => serve_view(self, &env, dir, options, asked, ready),
        }
    }
}

fn serve_view(
    engine: &Engine,
    env: &Metadata,
    dir: &Path,
    options: &Options,
    asked: Receiver<()>,
    ready: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let lock = engine.lock_unmounted(env)?;
    let env = Metadata::load(engine.store(), &env.instance)?;
    check_mountable(&env)?;
    // We hold the lock, so a mount recorded by an earlier process is over.
    if let Some(old) = engine.recorded_mount(&env.instance)? {
        mountpoint::clear_stale(&old.dir)?;
    }
    atomic::sweep_temporary(engine.store().files(), &engine.env_dir(&env.instance))?;
    let dir = mountpoint::prepare(dir)?;
    let read_only = options.mount.read_only || !lifecycle::is_writable(env.state);
    let instance = Arc::new(Instance::open(engine, env.clone(), lock, read_only)?);
    instance.hold_pin()?;
    let admitted = Arc::new(Admitted::default());
    let plane: Arc<dyn ControlPlane> = Arc::new(Plane::new(instance.clone(), admitted.clone()));
    let mount_options = MountOptions { read_only, ..options.mount.clone() };
    let serving = Serving::new(instance.view().clone(), instance.trees().clone(), Some(plane))?;
    let session = serving.mount(&dir, &source(&env), &mount_options)?;
    instance.attach(serving.invalidator(), Teller::new(serving.watchers(), dir.clone()));
    let handle = session.unmount_handle();
    let place = Place { dir: dir.clone(), session: options.session, has_ground: options.has_ground };
    let keeper = Keeper::new(engine, env.instance, place, handle.clone(), admitted);
    let running = announce(engine, &env, &instance, &handle, &keeper);
    let running = running.and_then(|server| {
        let (instance, path) = (instance.clone(), info_path(engine, &env.instance));
        watch_signals(asked, handle.clone(), move || finish(&instance, None, &path))?;
        ready(&dir)?;
        Ok(server)
    });
    let server = match running {
        Ok(server) => server,
        Err(error) => {
            if let Err(error) = handle.detach() {
                tracing::error!("cannot detach the mount: {error}");
            }
            finish(&instance, None, &info_path(engine, &env.instance));
            return Err(error);
        }
    };
    tracing::info!(env = env.name, dir = %dir.display(), "mounted");
    session.wait().at("serve", &dir)?;
    if options.session
        && let Err(error) = fs::remove_dir(&dir)
    {
        tracing::debug!("cannot remove {}: {error}", dir.display());
    }
    finish(&instance, Some(&server), &info_path(engine, &env.instance));
    tracing::info!(env = env.name, "unmounted");
    Ok(())
}

/// Writes mount.json, then opens the socket: a client that can connect finds mount.json written.
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
        device: mountpoint::fuse_device(keeper.dir())?,
    };
    let bytes = serde_json::to_vec(&info)
        .map_err(|e| Error::Invalid(format!("cannot encode the description of the mount: {e}")))?;
    engine.store().files().write(&info_path(engine, &env.instance), &bytes)?;
    let (instance, handle, keeper) = (instance.clone(), handle.clone(), keeper.clone());
    Server::start(engine.store().files(), &engine.env_dir(&env.instance), move |request, descriptors| {
        let reply = match request {
            Request::Command(command) => Ok(answer(&instance, &command).into()),
            Request::Enter { user } => keeper.entrance(user.as_deref()),
            Request::Hold { shape, namespaces } => keeper.hold(shape, &namespaces, descriptors),
            Request::EndInside => {
                keeper.end();
                Ok(Answer::InsideEnded.into())
            }
            Request::Unmount => unmount(&handle, keeper.dir()).map(Reply::from),
        };
        reply.unwrap_or_else(|error| failed(&error).into())
    })
}

fn unmount(handle: &UnmountHandle, dir: &Path) -> Result<Answer> {
    match handle.unmount() {
        Ok(()) => Ok(Answer::Unmounted),
        Err(karapace_fs::Error::Busy) => Err(Error::DirBusy { dir: dir.to_owned(), users: String::new() }),
        Err(error) => Err(error.into()),
    }
}

/// The answer to a command that came through the socket.
pub(in crate::engine) fn answer(instance: &Instance, command: &Command) -> Answer {
    match contained(command, || perform(instance, command, Wait::Long)) {
        Ok(Ok(outcome)) => Answer::Done(outcome),
        Ok(Err(_)) if instance.is_closed() => Answer::Ending,
        Ok(Err(error)) => failed(&error),
        Err(CommandError { errno, reason }) => Answer::Failed { errno, reason },
    }
}

fn failed(error: &Error) -> Answer {
    Answer::Failed { errno: error.errno(), reason: error.to_string() }
}

/// Closes an environment whose mount is gone. Failures are only logged: nobody is left to report them to, and
/// the journal holds everything.
fn finish(instance: &Instance, server: Option<&Server>, info: &Path) {
    if let Err(error) = instance.close() {
        tracing::error!("cannot close the environment: {error}");
    }
    if let Err(error) = instance.engine().store().files().remove(info) {
        tracing::debug!("cannot remove {}: {error}", info.display());
    }
    if let Some(server) = server {
        server.stop();
    }
}

fn serve_snapshot(
    engine: &Engine,
    env: &Metadata,
    snapshot: &str,
    dir: &Path,
    options: &MountOptions,
    asked: Receiver<()>,
    ready: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let store = engine.store();
    let shared = StoreLock::shared(store)?;
    let layer = reference::resolve(env, snapshot)?;
    let root = LayerRecord::read(store, &layer.record)?.tree;
    let _pin = Pin::hold(store, &[root])?;
    drop(shared);
    let dir = mountpoint::prepare(dir)?;
    let trees = Arc::new(Trees::new(store.clone()));
    let view = Arc::new(View::snapshot(&trees, root)?);
    let options = MountOptions { read_only: true, ..options.clone() };
    let serving = Serving::new(view, trees, None)?;
    let session = serving.mount(&dir, &source(env), &options)?;
    let handle = session.unmount_handle();
    watch_signals(asked, handle.clone(), || ())?;
    if let Err(error) = ready(&dir) {
        if let Err(error) = handle.detach() {
            tracing::error!("cannot detach the mount: {error}");
        }
        return Err(error);
    }
    session.wait().at("serve", &dir)
}

/// What mount(8) and df show as the source of the environment's mounts.
fn source(env: &Metadata) -> String {
    format!("{SOURCE}{}", env.name)
}

/// Unmounts when a signal has `asked` to. A mount in use is detached; if it is still in use after the grace
/// period, `finish` is called and the process exits, which cuts the mount off.
fn watch_signals(
    asked: Receiver<()>,
    handle: UnmountHandle,
    finish: impl Fn() + Send + 'static,
) -> Result<()> {
    let watch = move || {
        let Ok(()) = asked.recv() else { return };
        tracing::info!("unmounting: a signal asked for it");
        // Even when unmounted here, it may still be mounted in another mount namespace, or have been detached
        // while files were open.
        if let Err(error) = handle.unmount() {
            tracing::info!("detaching the mount, because it cannot be unmounted: {error}");
            if let Err(error) = handle.detach() {
                tracing::error!("cannot detach the mount: {error}");
            }
        }
        if !handle.ends_within(GRACE) {
            tracing::warn!("still in use after {} s: ending, which aborts the connection", GRACE.as_secs());
            finish();
            std::process::exit(0);
        }
    };
    let thread = std::thread::Builder::new().name("karapace-signals".to_owned());
    thread.spawn(watch).map_err(|e| Error::Invalid(format!("cannot start a thread: {e}")))?;
    Ok(())
}
