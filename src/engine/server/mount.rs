//! One mount of an environment, as the process that serves it knows it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use karapace_fs::session::UnmountHandle;
use parking_lot::Mutex;

use super::ground::{Ground, Guard};
use crate::engine::Result;

/// How many mounts this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// One mount.
pub struct Mount {
    /// Its number, which no mount of another server has.
    pub id: u64,
    /// The mount point, as the processes see it that use the mount.
    pub dir: PathBuf,
    /// Where it is, if not in the server's own namespaces. Taken out when it is unmounted, for it would keep
    /// the mount alive.
    pub(super) ground: Mutex<Option<Arc<Ground>>>,
    /// For sessions: why they have a single id, if an ordinary user has no more.
    pub one_id: Option<String>,
    /// The minor device number.
    pub(super) device: Option<u32>,
    /// Its kernel asks again for what it has cached, so another mount may be made beside it.
    pub(super) shares: bool,
    pub(super) handle: Mutex<Option<UnmountHandle>>,
    /// For a mount on the host, if another is beside it.
    pub(super) guard: Mutex<Option<Guard>>,
}

impl Mount {
    pub(super) fn new(dir: PathBuf, device: Option<u32>, shares: bool) -> Mount {
        let (ground, handle, guard) = Default::default();
        let id = u64::from(std::process::id()) << 32 | u64::from(MADE.fetch_add(1, Ordering::Relaxed));
        Mount { id, dir, ground, one_id: None, device, shares, handle, guard }
    }

    /// The ground in which it is, if it is in one.
    pub fn ground(&self) -> Option<Arc<Ground>> {
        self.ground.lock().clone()
    }

    /// Whether the process is still there that holds it, if it is in a ground.
    pub(super) fn is_held(&self) -> bool {
        self.ground().is_none_or(|ground| ground.is_held())
    }

    /// Has its connection aborted if the server is killed. A guard that was killed is replaced.
    pub(super) fn begin_guard(&self) -> Result<()> {
        let mut guard = self.guard.lock();
        if guard.as_ref().is_none_or(|guard| !guard.is_there()) {
            *guard = Some(Guard::of(&self.dir, self.device)?);
        }
        Ok(())
    }

    /// Waits for the guard, which forgets the mount first.
    pub(super) fn end_guard(&self) {
        drop(self.guard.lock().take());
    }

    /// The host's mount, for sessions that use it.
    pub(super) fn as_sessions_see(&self, one_id: Option<String>) -> Arc<Mount> {
        let handle = Mutex::new(self.handle.lock().clone());
        let (ground, guard) = Default::default();
        let Mount { id, device, shares, .. } = *self;
        Arc::new(Mount { id, dir: self.dir.clone(), ground, one_id, device, shares, handle, guard })
    }

    pub(super) fn unmount(&self, lazy: bool) -> karapace_fs::Result<()> {
        let handle = self.handle.lock().clone();
        match handle {
            Some(handle) if lazy => handle.detach(),
            Some(handle) => handle.unmount(),
            None => Ok(()),
        }
    }
}
