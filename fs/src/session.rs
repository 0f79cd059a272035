//! Serves a view through one mount or several, and handles what happens to a mount outside of its requests.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use fuser::{BackgroundSession, Config, Session, SessionACL};
use karapace_store::tree::Trees;
use karapace_store::wait;
use nix::poll::PollFlags;
use nix::unistd::{getegid, geteuid};

use crate::control::{ControlDir, ControlPlane};
use crate::error::At as _;
use crate::error::{Error, Result};
pub use crate::fuse::{CtlDir, Flag, Invalidator, MountOptions, MountPoints, SubIds, Watchers};
use crate::fuse::{IdMap, Kernel, Link, Links, Server, Service};
pub use crate::locks::LockScope;
use crate::mounting;
pub use crate::mounting::{CONNECTIONS, End, abort, connection, mount as mount_device, unmount};
use crate::pid_namespace;
use crate::view::View;

/// Read-ahead in bytes on a mount made by root, which can raise it above the kernel's default of 128 KiB.
const READ_AHEAD: u64 = 1 << 20;

/// How often the view is asked whether maintenance, such as a checkpoint, is due, and the connections whether
/// one is stuck.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Ends a mount. [`Error::Busy`] from [`End::Unmount`] while it is in use.
pub type Unmount = Box<dyn Fn(End) -> Result<()> + Send + Sync>;

/// The kernel connection of a mount, shared by everything that talks to the kernel outside of requests.
struct Connection {
    device: Arc<File>,
    mountpoint: PathBuf,
    unmount: Unmount,
    /// It was unmounted here, so the mount point is another's.
    is_unmounted: AtomicBool,
}

/// A FUSE mount made by another process, which hands over its connection.
pub struct Handover {
    /// The device that was opened and mounted; no request has been read from it.
    pub device: OwnedFd,
    /// The mount point, as that process sees it.
    pub dir: PathBuf,
    /// A process in the user namespace in which it was mounted, and whose ids requests and answers have.
    pub process: u32,
    /// Ends the mount.
    pub unmount: Unmount,
}

/// A view that can be mounted, in several places at once.
pub struct Serving {
    view: Arc<View>,
    trees: Arc<Trees>,
    control: Option<Arc<dyn ControlPlane>>,
    links: Arc<Links>,
    watchers: Watchers,
    mount_points: MountPoints,
    /// Dropping it ends the upkeep thread.
    _upkeep: Sender<()>,
}

/// A mounted view that is being served.
pub struct MountedSession {
    view: Arc<View>,
    background: BackgroundSession,
    connection: Arc<Connection>,
    control: Option<Arc<ControlDir>>,
    links: Arc<Links>,
    link: Arc<Link>,
}

impl Serving {
    /// Serves `view`. Without `control` there is no control directory.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(
        view: Arc<View>,
        trees: Arc<Trees>,
        control: Option<Arc<dyn ControlPlane>>,
    ) -> Result<Serving> {
        let (links, watchers) = (Arc::<Links>::default(), Watchers::default());
        let upkeep = keep_up(view.clone(), links.clone())?;
        let mount_points = MountPoints::new(links.clone());
        Ok(Serving { view, trees, control, links, watchers, mount_points, _upkeep: upkeep })
    }

    /// Returns a handle that tells the kernel, on all mounts, what to forget.
    pub fn invalidator(&self) -> Invalidator {
        Invalidator::new(self.links.clone())
    }

    /// Returns a handle for notifying programs that watch files.
    pub fn watchers(&self) -> Watchers {
        self.watchers.clone()
    }

    /// Returns a handle for processes that make mount points.
    pub fn mount_points(&self) -> MountPoints {
        self.mount_points.clone()
    }

    /// Mounts the view on the directory `dir`, which must exist; the mount answers requests when this
    /// returns. `source` is what `mount` and `df` show as the mount's source. The latest mount is the one
    /// whose kernel caches, but one [for sessions](MountOptions::for_sessions) comes before any other.
    ///
    /// A mount made by root is open to all users, with permissions, set-user-id and devices handled by the
    /// kernel as on any file system. Root of a user namespace counts as root, and the ids are those inside
    /// the namespace. A mount made by an ordinary user is open only to that user, who acts in it as root: no
    /// permissions are checked, and id 0 of the tree shows as the user's own, others as the sub-ids in
    /// `options` or as themselves.
    ///
    /// # Errors
    /// If the mount point cannot be used, or /dev/fuse or (for an ordinary user) `fusermount3` is missing or
    /// refuses.
    pub fn mount(&self, dir: &Path, source: &str, options: &MountOptions) -> Result<MountedSession> {
        let mountpoint = dir.canonicalize().at("find the mount point", dir)?;
        let by_root = geteuid().is_root();
        let options = options.in_effect(by_root);
        let ids =
            (IdMap::of_this_process(options.sub_ids.as_ref()), (geteuid().as_raw(), getegid().as_raw()));
        let mounted = self.serve(&mountpoint, options.clone(), ids, true, || {
            let device = mounting::mount(&mountpoint, source, &options)?;
            let (place, number) = (mountpoint.clone(), mounting::connection(&mountpoint));
            let end = move |end| match end {
                End::Unmount => unmount(&place, false).map(drop),
                End::Detach => unmount(&place, true).map(drop),
                End::Abort => mounting::abort(&place, number).at("abort the connection of", &place),
            };
            Ok((device, Box::new(end)))
        })?;
        if by_root && let Err(error) = raise_read_ahead(&mountpoint) {
            tracing::debug!(%error, "read-ahead stays at the kernel's default");
        }
        Ok(mounted)
    }

    /// Serves a mount that another process has made in a user namespace, as root there. Otherwise like
    /// [`Serving::mount`] by root.
    ///
    /// # Errors
    /// If the connection broke, or a thread cannot be started.
    pub fn take_over(&self, handover: Handover, options: &MountOptions) -> Result<MountedSession> {
        let Handover { device, dir, process, unmount } = handover;
        let options = options.in_effect(true);
        let ids = (IdMap::of_process(process), (0, 0));
        let our_processes = pid_namespace::is_ours(process);
        self.serve(&dir, options, ids, our_processes, || Ok((device, unmount)))
    }

    /// Adds a connection, which `mount` makes. `ids`: how ids are shown, and the owner of the control
    /// directory. `our_processes`: whether its kernel tells processes by their numbers here.
    fn serve(
        &self,
        dir: &Path,
        options: MountOptions,
        ids: (IdMap, (u32, u32)),
        our_processes: bool,
        mount: impl FnOnce() -> Result<(OwnedFd, Unmount)>,
    ) -> Result<MountedSession> {
        self.view.set_read_only(options.read_only);
        let link = self.links.add(&self.view, options.for_sessions, our_processes);
        let served = self.serve_link(&link, dir, options, ids, mount);
        if served.is_err() {
            self.links.remove(&self.view, &link);
        }
        served
    }

    fn serve_link(
        &self,
        link: &Arc<Link>,
        dir: &Path,
        options: MountOptions,
        ids: (IdMap, (u32, u32)),
        mount: impl FnOnce() -> Result<(OwnedFd, Unmount)>,
    ) -> Result<MountedSession> {
        let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = Config::default();
        config.n_threads = Some(options.threads);
        let idmap = options.idmap;
        let service = self.service(link, dir, options, ids);
        let control = service.control.clone();
        let server = Server::new(service).at("start threads to serve", dir)?;
        let (device, unmount) = mount()?;
        let begin = || {
            let kept: File = device.try_clone()?.into();
            let session = Session::from_fd(server, device, acl, config)?;
            let kept = Arc::new(kept);
            link.kernel.get_or_init(|| Kernel::new(kept.clone()));
            Ok((kept, session.spawn()?))
        };
        let (device, background) = match begin() {
            Ok(begun) => begun,
            Err(error) => {
                if let Err(error) = unmount(End::Detach) {
                    tracing::error!("{error}");
                }
                return Err(Error::host("serve the mount on", dir, explain(error, idmap)));
            }
        };
        let is_unmounted = AtomicBool::new(false);
        let connection = Arc::new(Connection { device, mountpoint: dir.to_owned(), unmount, is_unmounted });
        let cut = connection.clone();
        link.abort.get_or_init(|| Box::new(move || cut.abort()));
        Ok(MountedSession {
            view: self.view.clone(),
            background,
            connection,
            control,
            links: self.links.clone(),
            link: link.clone(),
        })
    }

    fn service(
        &self,
        link: &Arc<Link>,
        dir: &Path,
        options: MountOptions,
        (ids, owner): (IdMap, (u32, u32)),
    ) -> Service {
        let control = self.control.clone().filter(|_| options.ctl_dir != CtlDir::Disabled && !options.idmap);
        let control = control.map(|plane| {
            Arc::new(ControlDir::new(plane, self.view.clone(), dir.to_owned(), owner, options.locks))
        });
        Service {
            live: self.view.clone(),
            trees: self.trees.clone(),
            control,
            options,
            ids,
            links: self.links.clone(),
            link: link.clone(),
            watchers: self.watchers.clone(),
            mount_points: self.mount_points.clone(),
        }
    }
}

impl MountedSession {
    /// Returns a handle that ends the mount from another thread.
    pub fn unmount_handle(&self) -> UnmountHandle {
        UnmountHandle(self.connection.clone())
    }

    /// Waits until the mount is gone, all requests are answered, and the commits among the jobs are done.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn wait(self) -> io::Result<()> {
        let result = ended(self.background.join());
        self.links.remove(&self.view, &self.link);
        self.connection.clear();
        if let Some(control) = self.control {
            control.finish_commits();
        }
        result
    }
}

/// A handle that ends a mount. Cheap to clone.
#[derive(Clone)]
pub struct UnmountHandle(Arc<Connection>);

impl UnmountHandle {
    /// Unmounts, so that [`MountedSession::wait`] returns. Does nothing if the mount is already gone.
    ///
    /// # Errors
    /// `EBUSY` (as [`Error::Busy`]) while a file in it is open, or something in it is a working directory or
    /// mount point.
    pub fn unmount(&self) -> Result<()> {
        self.0.end(End::Unmount)
    }

    /// Removes the mount from the directory tree at once; it is served until its last user is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn detach(&self) -> Result<()> {
        self.0.end(End::Detach)
    }

    /// Waits up to `patience` until the kernel no longer has the mount, and returns whether it does not.
    /// After [`UnmountHandle::detach`] it has the mount until the last user is gone.
    pub fn ends_within(&self, patience: Duration) -> bool {
        self.0.ends_within(patience)
    }
}

impl Connection {
    /// The kernel reports an error on the device once the mount is gone.
    fn ends_within(&self, patience: Duration) -> bool {
        // An error is reported even if no event is asked for.
        wait::for_event(&self.device, PollFlags::empty(), patience).unwrap_or(false)
    }

    fn end(&self, end: End) -> Result<()> {
        if self.ends_within(Duration::ZERO) {
            return Ok(());
        }
        // Set before, as the connection may have ended by the time that this returns.
        self.is_unmounted.store(end != End::Abort, Ordering::Relaxed);
        (self.unmount)(end).inspect_err(|_| self.is_unmounted.store(false, Ordering::Relaxed))
    }

    fn abort(&self) {
        tracing::error!(
            "aborting the connection of {}: the kernel has not taken a notification for more than {} s",
            self.mountpoint.display(),
            UPKEEP_INTERVAL.as_secs() * 4
        );
        if let Err(error) = self.end(End::Abort) {
            tracing::error!("cannot abort it: {error}; as root: echo 1 > {CONNECTIONS}/NUMBER/abort");
        }
    }

    /// Unmounts the mount point that an aborted connection leaves behind, on which every call fails.
    fn clear(&self) {
        if self.is_unmounted.load(Ordering::Relaxed) {
            return;
        }
        // Attributes may be cached; this is asked for each time.
        let stale = rustix::fs::statfs(&self.mountpoint);
        if stale.is_err_and(|errno| errno == rustix::io::Errno::NOTCONN)
            && let Err(error) = (self.unmount)(End::Detach)
        {
            tracing::warn!(%error, "the mount point cannot be used until it is unmounted");
        }
    }
}

/// A thread that has just taken a request when the connection ends is told so by another errno than those
/// that wait for one (`fuse_dev_do_read` in fs/fuse/dev.c).
fn ended(served: io::Result<()>) -> io::Result<()> {
    match served {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        other => other,
    }
}

/// Starts the thread that maintains the view, so that no request waits for a checkpoint, and aborts
/// connections that are stuck. It ends when the sender is dropped.
fn keep_up(view: Arc<View>, links: Arc<Links>) -> io::Result<Sender<()>> {
    let (sender, receiver) = channel::<()>();
    std::thread::Builder::new().name("karapace-upkeep".to_owned()).spawn(move || {
        while receiver.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = view.maintain() {
                tracing::error!(%error, "cannot write a checkpoint; nothing is lost, but the journal grows");
            }
            links.abort_stuck();
        }
    })?;
    Ok(sender)
}

/// Adds to an error of the handshake why the kernel may have failed it.
fn explain(error: io::Error, idmap: bool) -> io::Error {
    if !idmap || error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return error;
    }
    let advice =
        "this kernel has no id-mapped mounts of FUSE file systems (Linux 6.12 has): leave out --idmap";
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

/// The FUSE handshake can only lower the read-ahead; root can raise it afterwards.
fn raise_read_ahead(mountpoint: &Path) -> io::Result<()> {
    let device = std::fs::metadata(mountpoint)?.dev();
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    std::fs::write(path, (READ_AHEAD / 1024).to_string())
}
