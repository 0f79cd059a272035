//! One mount of an environment, as the process that serves it knows it.

use std::path::PathBuf;
use std::sync::Arc;

use karapace_fs::session::UnmountHandle;
use parking_lot::Mutex;

use super::ground::{Ground, Guard};

/// One mount.
pub struct Mount {
    /// The mount point, as the processes see it that use the mount.
    pub dir: PathBuf,
    /// Where it is, if not in the server's own namespaces. Taken out when it is unmounted, for it would keep the
    /// mount alive.
    pub(super) ground: Mutex<Option<Arc<Ground>>>,
    /// For sessions: why they have a single id, if an ordinary user has no more.
    pub one_id: Option<String>,
    /// The minor device number.
    pub(super) device: Option<u32>,
    /// Its kernel asks again for what it has cached, so another mount may be made beside it.
    pub(super) shares: bool,
    pub(super) handle: Mutex<Option<UnmountHandle>>,
    /// For the sessions' mount on the host, if another is beside it.
    pub(super) guard: Mutex<Option<Guard>>,
}

impl Mount {
    pub(super) fn new(dir: PathBuf, device: Option<u32>, shares: bool) -> Mount {
        let (ground, handle, guard) = Default::default();
        Mount { dir, ground, one_id: None, device, shares, handle, guard }
    }

    /// The ground in which it is, if it is in one.
    pub fn ground(&self) -> Option<Arc<Ground>> {
        self.ground.lock().clone()
    }

    /// The host's mount, for sessions that use it.
    pub(super) fn as_sessions_see(&self, one_id: Option<String>) -> Arc<Mount> {
        let Mount { dir, device, shares, .. } = self;
        let (dir, ground) = (dir.clone(), Mutex::default());
        let handle = Mutex::new(self.handle.lock().clone());
        Arc::new(Mount {
            dir,
            ground,
            one_id,
            device: *device,
            shares: *shares,
            handle,
            guard: Mutex::default(),
        })
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
