//! Mounts a view, and handles what happens to a mount outside of its requests.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use karapace_store::tree::Trees;
use karapace_store::wait;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::PollFlags;
use nix::unistd::{getegid, geteuid};

use crate::control::{ControlDir, ControlPlane};
use crate::error::At as _;
use crate::error::{Error, Result};
pub use crate::fuse::{CtlDir, Flag, Invalidator, MountOptions, SubIds, Watchers};
use crate::fuse::{IdMap, Server, Service};
use crate::view::View;

/// Read-ahead in bytes on a mount made by root, which can raise it above the kernel's default of 128 KiB.
const READ_AHEAD: u64 = 1 << 20;

/// How often the view is asked whether maintenance, such as a checkpoint, is due.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The kernel connection of a mount, shared by everything that talks to the kernel outside of requests.
struct Connection {
    device: Arc<File>,
    mountpoint: PathBuf,
}

/// A mounted view that is being served.
pub struct MountedSession {
    background: BackgroundSession,
    connection: Arc<Connection>,
    control: Option<Arc<ControlDir>>,
    watchers: Watchers,
    /// Dropping it ends the upkeep thread.
    upkeep: Sender<()>,
}

impl MountedSession {
    /// Mounts `view` on the directory `dir`, which must exist, and starts serving it; the mount answers
    /// requests when this returns. `source` is what `mount` and `df` show as the mount's source. Without
    /// `control` there is no control directory.
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
    pub fn mount(
        view: Arc<View>,
        trees: Arc<Trees>,
        control: Option<Arc<dyn ControlPlane>>,
        dir: &Path,
        source: &str,
        options: &MountOptions,
    ) -> Result<MountedSession> {
        let mountpoint = dir.canonicalize().at("find the mount point", dir)?;
        view.set_read_only(options.read_only);
        let by_root = geteuid().is_root();
        let options = options.in_effect(by_root);
        let config = config(source, &options, by_root);
        let idmap = options.idmap;
        let service = service(view.clone(), trees, control, &mountpoint, options);
        let (control, kernel) = (service.control.clone(), service.kernel.clone());
        let watchers = service.watchers.clone();
        let server = Server::new(service).at("start threads to serve", &mountpoint)?;
        let session = Session::new(server, &mountpoint, &config)
            .map_err(|e| Error::host("mount on", &mountpoint, explain(e, by_root, idmap)))?;
        let device = session.as_fd().try_clone_to_owned().at("keep the FUSE connection of", &mountpoint)?;
        let connection = Connection { device: Arc::new(device.into()), mountpoint: mountpoint.clone() };
        let connection = Arc::new(connection);
        kernel.get_or_init(|| Invalidator::new(connection.device.clone()));
        let background = session.spawn().at("start threads to serve", &mountpoint)?;
        let upkeep = keep_up(view).at("start threads to serve", &mountpoint)?;
        if by_root && let Err(error) = raise_read_ahead(&mountpoint) {
            tracing::debug!(%error, "read-ahead stays at the kernel's default");
        }
        Ok(MountedSession { background, connection, control, watchers, upkeep })
    }

    /// Returns a handle that tells the kernel what to forget.
    pub fn invalidator(&self) -> Invalidator {
        Invalidator::new(self.connection.device.clone())
    }

    /// Returns a handle for notifying programs that watch files.
    pub fn watchers(&self) -> Watchers {
        self.watchers.clone()
    }

    /// Returns a handle that ends the mount from another thread.
    pub fn unmount_handle(&self) -> UnmountHandle {
        UnmountHandle(self.connection.clone())
    }

    /// Waits until the mount is gone, all requests are answered, and the commits among the jobs are done.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn wait(self) -> io::Result<()> {
        let result = self.background.join();
        drop(self.upkeep);
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
        self.0.unmount(false)
    }

    /// Removes the mount from the directory tree at once; it is served until its last user is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn detach(&self) -> Result<()> {
        self.0.unmount(true)
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

    fn unmount(&self, lazy: bool) -> Result<()> {
        if self.ends_within(Duration::ZERO) { Ok(()) } else { unmount(&self.mountpoint, lazy).map(drop) }
    }

    /// Unmounts the mount point that an aborted connection leaves behind, on which every call fails.
    fn clear(&self) {
        let stale = std::fs::metadata(&self.mountpoint);
        if stale.is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
            && let Err(error) = unmount(&self.mountpoint, true)
        {
            tracing::warn!(%error, "the mount point cannot be used until it is unmounted");
        }
    }
}

/// Unmounts what is mounted on `mountpoint`. With `lazy`, detaches it even while it is in use: new look-ups
/// do not reach it, open files stay. Returns false if nothing is mounted there, or nothing that this user
/// may unmount: the two cannot be told apart.
///
/// # Errors
/// [`Error::Busy`] while a file in it is open, or something in it is a working directory or mount point; and
/// if the system refuses.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(mountpoint, flags) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => unmount_by_helper(mountpoint, lazy),
        Err(Errno::EBUSY) => Err(Error::Busy),
        // Not a mount point any more, because someone else has unmounted it; or another namespace's.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(Error::host("unmount", mountpoint, errno.into())),
    }
}

/// Unmounts an ordinary user's mount with `fusermount3`, which also made it.
fn unmount_by_helper(mountpoint: &Path, lazy: bool) -> Result<bool> {
    let mut helper = Command::new("fusermount3");
    helper.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(mountpoint).stdin(Stdio::null());
    let output = helper.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), "fusermount3 is not installed: install the package fuse3")
        }
        _ => error,
    });
    let output = output.at("run fusermount3 to unmount", mountpoint)?;
    if output.status.success() {
        return Ok(true);
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("busy") {
        return Err(Error::Busy);
    }
    // Already unmounted, like EINVAL above (a caller without the privilege to unmount gets EPERM instead), or
    // another user's.
    if text.contains("not found in") {
        return Ok(false);
    }
    Err(Error::host("unmount", mountpoint, io::Error::other(text)))
}

fn service(
    view: Arc<View>,
    trees: Arc<Trees>,
    control: Option<Arc<dyn ControlPlane>>,
    mountpoint: &Path,
    options: MountOptions,
) -> Service {
    let control = control.filter(|_| options.ctl_dir != CtlDir::Disabled && !options.idmap).map(|plane| {
        let owner = (geteuid().as_raw(), getegid().as_raw());
        Arc::new(ControlDir::new(plane, view.clone(), mountpoint.to_owned(), owner))
    });
    Service {
        live: view,
        trees,
        control,
        ids: IdMap::of_this_process(options.sub_ids.as_ref()),
        options,
        kernel: Arc::new(OnceLock::new()),
        watchers: Watchers::default(),
    }
}

/// fuser's configuration for these options, which are those in effect.
fn config(source: &str, options: &MountOptions, by_root: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(source.to_owned()), MountOption::NoAtime];
    if by_root {
        // fuser then mounts directly and passes to the kernel only options that it takes as custom.
        config.mount_options.push(MountOption::CUSTOM("subtype=karapace".to_owned()));
    } else {
        config.mount_options.push(MountOption::Subtype("karapace".to_owned()));
    }
    let flag = |flag, there, without: Option<MountOption>| {
        if options.flags.contains(&flag) { Some(there) } else { without }
    };
    config.mount_options.extend(flag(Flag::ReadOnly, MountOption::RO, None));
    config.mount_options.extend(flag(Flag::NoExec, MountOption::NoExec, None));
    config.mount_options.extend(flag(
        Flag::NoSuid,
        MountOption::NoSuid,
        by_root.then_some(MountOption::Suid),
    ));
    config.mount_options.extend(flag(Flag::NoDev, MountOption::NoDev, by_root.then_some(MountOption::Dev)));
    config.acl = SessionACL::Owner;
    if options.allow_other {
        // Other users have access, so the kernel must check permissions.
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads);
    config
}

/// Starts the thread that maintains the view, so that no request waits for a checkpoint. It ends when the
/// sender is dropped.
fn keep_up(view: Arc<View>) -> io::Result<Sender<()>> {
    let (sender, receiver) = channel::<()>();
    std::thread::Builder::new().name("karapace-upkeep".to_owned()).spawn(move || {
        while receiver.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = view.maintain() {
                tracing::error!(%error, "cannot write a checkpoint; nothing is lost, but the journal grows");
            }
        }
    })?;
    Ok(sender)
}

/// Adds advice for the usual reasons why a mount fails.
fn explain(error: io::Error, by_root: bool, idmap: bool) -> io::Error {
    let advice = if idmap && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        "this kernel has no id-mapped mounts of FUSE file systems (Linux 6.12 has): leave out --idmap"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)"
    } else if by_root {
        return error;
    } else if error.kind() == io::ErrorKind::NotFound {
        "mounting as a user needs fusermount3: install the package fuse3"
    } else if error.kind() == io::ErrorKind::PermissionDenied && File::open("/dev/fuse").is_err() {
        "ordinary users cannot open /dev/fuse: chmod 0666 /dev/fuse, or install the package fuse3, which does it"
    } else {
        return error;
    };
    io::Error::new(error.kind(), format!("{error}; {advice}"))
}

/// The FUSE handshake can only lower the read-ahead; root can raise it afterwards.
fn raise_read_ahead(mountpoint: &Path) -> io::Result<()> {
    let device = std::fs::metadata(mountpoint)?.dev();
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    std::fs::write(path, (READ_AHEAD / 1024).to_string())
}
