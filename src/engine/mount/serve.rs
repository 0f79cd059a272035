//! Serving an environment through FUSE in this process, until it is unmounted.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use karapace_fs::control::{Command, CommandError, ControlPlane, contained};
use karapace_fs::session::{MountOptions, MountPoints, Serving, UnmountHandle};
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
use crate::engine::instance::{reference, sessions};
use crate::engine::mountpoint;
use crate::engine::server::control::{Admitted, Plane};
use crate::engine::server::info::info_path;
use crate::engine::server::keeper::Keeper;
use crate::engine::server::mounts::{GRACE, Mounts, source};
use crate::engine::server::perform::perform;
use crate::engine::server::socket::{Answer, Reply, Request, Server};
use crate::engine::{Engine, Error, Result};
use crate::process::{self, signals};

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
        old.clear_stale()?;
    }
    atomic::sweep_temporary(engine.store().files(), &engine.env_dir(&env.instance))?;
    // Otherwise what an overlay has from below could change.
    let has_overlay = engine.has_overlay(&env.instance);
    let read_only = options.mount.read_only || has_overlay || !lifecycle::is_writable(env.state);
    let instance = Arc::new(Instance::open(engine, env.clone(), lock, read_only)?);
    instance.hold_pin()?;
    let admitted = Arc::new(Admitted::default());
    let plane: Arc<dyn ControlPlane> = Arc::new(Plane::new(instance.clone(), admitted.clone()));
    let serving = Serving::new(instance.view().clone(), instance.trees().clone(), Some(plane))?;
    let points = serving.mount_points();
    let mounts = Mounts::new(&instance, serving, options.session, options.mount.locks);
    let keeper = Keeper::new(engine, env.instance, mounts.clone(), admitted);
    let begun = begin(engine, &instance, &mounts, (&keeper, points), (dir, options), asked, ready);
    let server = match begun {
        Ok(server) => server,
        Err(error) => {
            mounts.end();
            finish(&instance, None, &info_path(engine, &env.instance));
            return Err(error);
        }
    };
    mounts.wait();
    mounts.clear();
    finish(&instance, Some(&server), &info_path(engine, &env.instance));
    tracing::info!(env = env.name, "unmounted");
    Ok(())
}

/// Makes the first mount and opens the socket: a client that can connect finds mount.json written.
fn begin(
    engine: &Engine,
    instance: &Arc<Instance>,
    mounts: &Arc<Mounts>,
    (keeper, points): (&Arc<Keeper>, MountPoints),
    (dir, options): (&Path, &Options),
    asked: Receiver<()>,
    ready: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<Server> {
    let read_only = instance.view().is_read_only();
    let mount_options = MountOptions { read_only, ..options.mount.clone() };
    let dir = if options.session {
        keeper.watch();
        mounts.for_sessions(false)?.map(|mount| mount.dir.clone())
    } else {
        mounts.mount(dir, &mount_options)?
    };
    let id = instance.metadata().instance;
    let server = announce(engine, &id, instance, mounts, (keeper, points))?;
    let (ending, mounts, path) = (instance.clone(), mounts.clone(), info_path(engine, &id));
    watch_signals(asked, move || mounts.end(), move || finish(&ending, None, &path))?;
    // It is `None` only if sessions were expected, and are gone already.
    ready(&dir.unwrap_or_default())?;
    Ok(server)
}

/// Opens the socket.
fn announce(
    engine: &Engine,
    id: &InstanceId,
    instance: &Arc<Instance>,
    mounts: &Arc<Mounts>,
    (keeper, points): (&Arc<Keeper>, MountPoints),
) -> Result<Server> {
    let (instance, mounts, keeper) = (instance.clone(), mounts.clone(), keeper.clone());
    Server::start(engine.store().files(), &engine.env_dir(id), move |request, descriptors| {
        let reply = match request {
            Request::Command(command) => Ok(answer(&instance, &command).into()),
            Request::Enter { user, own_id } => keeper.entrance(user.as_deref(), own_id),
            Request::MakesMountPoints => makes_mount_points(&points, descriptors).map(Reply::from),
            Request::Hold { shape, namespaces, mount } => {
                keeper.hold((shape, mount), &namespaces, descriptors)
            }
            Request::EndInside => {
                keeper.end();
                // They go by themselves, but not before this is answered.
                points.sweep();
                Ok(Answer::InsideEnded.into())
            }
            Request::Mount { dir, options } => {
                let made = mounts.mount(&dir, &options);
                made.map(|made| made.map_or(Answer::Ending, |dir| Answer::Mounted { dir }).into())
            }
            Request::Inside => keeper.inside(),
            Request::EndSessions => end_sessions(&instance, &mounts, &keeper).map(Reply::from),
            Request::Unmount => unmount(&instance, &mounts, &keeper).map(Reply::from),
        };
        reply.unwrap_or_else(|error| failed(&error).into())
    })
}

fn makes_mount_points(points: &MountPoints, descriptors: Vec<OwnedFd>) -> Result<Answer> {
    let Some(process) = descriptors.into_iter().next() else {
        return Err(Error::Invalid("there is no process that makes mount points".to_owned()));
    };
    points.begin(process).at("let mount points be made by", Path::new("process 1 of the session"))?;
    Ok(Answer::MakerKnown)
}

/// Unmounts the host's mount or, if there is none, that of sessions which have ended.
fn unmount(instance: &Instance, mounts: &Mounts, keeper: &Keeper) -> Result<Answer> {
    if mounts.has_host() {
        mounts.unmount()?;
        return Ok(Answer::Unmounted);
    }
    end_sessions(instance, mounts, keeper)
}

/// Ends the mount of sessions which have ended.
fn end_sessions(instance: &Instance, mounts: &Mounts, keeper: &Keeper) -> Result<Answer> {
    let env = instance.metadata();
    if sessions::running(instance.engine(), &env.instance) {
        return Err(Error::Running { env: env.name });
    }
    keeper.end();
    mounts.end_sessions();
    Ok(Answer::Unmounted)
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
    let ending = handle.clone();
    watch_signals(asked, move || end(&ending), || ())?;
    if let Err(error) = ready(&dir) {
        if let Err(error) = handle.detach() {
            tracing::error!("cannot detach the mount: {error}");
        }
        return Err(error);
    }
    session.wait().at("serve", &dir)
}

/// Unmounts or, if it is in use, detaches. Returns whether it has ended after the grace period.
fn end(handle: &UnmountHandle) -> bool {
    if let Err(error) = handle.unmount().or_else(|_| handle.detach()) {
        tracing::error!("cannot detach the mount: {error}");
    }
    handle.ends_within(GRACE)
}

/// When a signal has `asked` to, calls `end`, which returns whether all mounts have ended within the grace
/// period. If not, `finish` is called and the process exits, which cuts them off.
fn watch_signals(
    asked: Receiver<()>,
    end: impl Fn() -> bool + Send + 'static,
    finish: impl Fn() + Send + 'static,
) -> Result<()> {
    let watch = move || {
        let Ok(()) = asked.recv() else { return };
        tracing::info!("unmounting: a signal asked for it");
        if !end() {
            tracing::warn!("still in use after {} s: ending, which aborts the connection", GRACE.as_secs());
            finish();
            std::process::exit(0);
        }
    };
    let thread = std::thread::Builder::new().name("karapace-signals".to_owned());
    thread.spawn(watch).map_err(|e| Error::Invalid(format!("cannot start a thread: {e}")))?;
    Ok(())
}
