//! Which mounts there are: they are entered here, described in mount.json, and forgotten when they end.

use std::sync::Arc;

use karapace_fs::session::MountedSession;

use super::{Mounts, State};
use crate::engine::instance::watchers::Place;
use crate::engine::server::info::{MountInfo, info_path};
use crate::engine::server::mount::Mount;
use crate::engine::{Error, Result};

impl Mounts {
    /// Records a mount, and waits for its end in a thread. If that fails, the mount is ended.
    pub(super) fn add(
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
        let recorded = self.watch(&mount, session).and_then(|()| self.write_info());
        if let Err(error) = recorded {
            self.forget(&mount);
            if let Err(error) = handle.detach() {
                tracing::error!("cannot detach the mount: {error}");
            }
            return Err(error);
        }
        tracing::info!(dir = %mount.dir.display(), "mounted");
        Ok(mount)
    }

    /// Waits in a thread for the end of a mount, and forgets it.
    fn watch(self: &Arc<Self>, mount: &Arc<Mount>, session: MountedSession) -> Result<()> {
        let (mounts, ended) = (self.clone(), mount.clone());
        let wait = move || {
            if let Err(error) = session.wait() {
                tracing::error!("serving {}: {error}", ended.dir.display());
            }
            mounts.has_ended(&ended);
        };
        let thread = std::thread::Builder::new().name("karapace-mount".to_owned()).spawn(wait);
        thread.map(drop).map_err(|error| {
            self.has_ended(mount);
            Error::Invalid(format!("cannot start a thread: {error}"))
        })
    }

    fn has_ended(&self, mount: &Arc<Mount>) {
        self.forget(mount);
        self.state.lock().detached.retain(|detached| !Arc::ptr_eq(detached, mount));
        self.uncount();
    }

    /// A connection has ended, or was not made.
    pub(super) fn uncount(&self) {
        self.state.lock().connections -= 1;
        self.changed.notify_all();
    }

    /// Forgets a mount that is no longer there, or was detached.
    pub(super) fn forget(&self, mount: &Arc<Mount>) {
        let mut was_known = false;
        let mut state = self.state.lock();
        let State { host, sessions, detached, .. } = &mut *state;
        if host.take_if(|known| Arc::ptr_eq(known, mount)).is_some() {
            // The thread that waits for its end removes it.
            detached.push(mount.clone());
            was_known = true;
        }
        was_known |= sessions.take_if(|known| Arc::ptr_eq(known, mount)).is_some();
        if !was_known {
            return;
        }
        mount.ground.lock().take();
        self.teller.remove(&mount.dir);
        drop(state);
        mount.end_guard();
        if let Err(error) = self.write_info() {
            tracing::error!("{error}");
        }
    }

    /// Has the connections of both mounts guarded, while there are two: then the server tells each kernel
    /// what was done on the other side, and may wait for it. One in a ground is guarded already.
    pub(super) fn guard(&self) {
        let (host, sessions) = {
            let state = self.state.lock();
            (state.host.clone(), state.sessions.clone())
        };
        let Some((host, sessions)) = host.zip(sessions) else { return };
        for mount in [host, sessions].iter().filter(|mount| mount.ground().is_none()) {
            if let Err(error) = mount.begin_guard() {
                let dir = mount.dir.display();
                tracing::warn!("if the server is killed, programs that use {dir} may hang: {error}");
            }
        }
    }

    /// Sets the mount of the keeper's inside, on which the description depends.
    pub(super) fn note_inside(&self, state: &mut State, mount: Option<u64>) {
        if std::mem::replace(&mut state.inside, mount) == mount {
            return;
        }
        if let Err(error) = self.describe(state) {
            tracing::error!("{error}");
        }
    }

    /// Writes mount.json, which describes the mounts as they are.
    fn write_info(&self) -> Result<()> {
        // Under the lock, so that the last description written is the last one made.
        self.describe(&mut self.state.lock())
    }

    fn describe(&self, state: &mut State) -> Result<()> {
        let engine = self.instance.engine();
        let path = info_path(engine, &self.instance.metadata().instance);
        // Most sessions change nothing that is described, and need not wait for the disk.
        let Some(info) = info(state).filter(|info| state.described.as_ref() != Some(info)) else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(&info)
            .map_err(|e| Error::Invalid(format!("cannot encode the description of the mount: {e}")))?;
        engine.store().files().write_passing(&path, &bytes)?;
        state.described = Some(info);
        Ok(())
    }
}

/// What mount.json says; `None` if nothing is mounted.
fn info(state: &State) -> Option<MountInfo> {
    let (mount, session) = match (&state.host, &state.sessions) {
        (Some(host), _) => (host, false),
        (None, Some(sessions)) => (sessions, true),
        // For the commands that tell who still uses it.
        (None, None) => (state.detached.last()?, false),
    };
    // Sessions on the host's mount are not beside it.
    let beside = state.sessions.as_ref().filter(|_| !session && state.inside != Some(mount.id));
    Some(MountInfo {
        dir: mount.dir.clone(),
        pid: std::process::id(),
        session,
        device: mount.device,
        sessions_dir: beside.map(|mount| mount.dir.clone()),
    })
}
