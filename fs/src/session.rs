//! Mounting a view, and what is done to a mount from outside of its requests.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use karapace_store::tree::Trees;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getegid, geteuid};

use crate::control::{ControlDir, ControlPlane};
use crate::error::At as _;
use crate::error::{Error, Result};
use crate::fuse::{IdMap, Server, Service};
pub use crate::fuse::{Invalidator, Watchers};
use crate::view::View;

/// Bytes that the kernel reads ahead on a mount made by root, where the kernel's default of 128 KiB can be
/// raised.
const READ_AHEAD: u64 = 1 << 20;

/// How often the view is asked whether a checkpoint is due.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How the control directory is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CtlDir {
    /// Reachable by name, not listed.
    #[default]
    Hidden,
    /// Listed too.
    Visible,
    /// There is none; its name stays reserved.
    Disabled,
}

/// A flag of mount(8) that the kernel heeds by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// Every change is refused, and writing to the control files is; `mount -o remount,rw` ends it.
    ReadOnly,
    /// Set-user-id, set-group-id and file capabilities count for nothing.
    NoSuid,
    /// Device nodes cannot be opened.
    NoDev,
    /// Nothing is executed.
    NoExec,
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The directory to mount on; exists.
    pub mountpoint: PathBuf,
    /// Refuse every change with `EROFS`. Control files stay writable for the kernel: what a command may do is
    /// the engine's to decide.
    pub read_only: bool,
    /// What the kernel is to see to beside. A mount made by an ordinary user has [`Flag::NoSuid`] and
    /// [`Flag::NoDev`] always.
    pub flags: Vec<Flag>,
    /// The control directory.
    pub ctl: CtlDir,
    /// Let other users in, with permissions checked by the kernel. Always so on a mount made by root; an
    /// ordinary user needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Threads that serve requests; at least 1.
    pub threads: usize,
    /// Let the kernel read a large file from its object by itself, once it has been verified whole. For a
    /// read-only mount made by root.
    pub passthrough: bool,
    /// Let root make id-mapped mounts of this one (mount_setattr(2), MOUNT_ATTR_IDMAP; Linux 6.12). The
    /// kernel sends no caller's ids then but with what makes something, so there is no control directory. For
    /// a mount made by root.
    pub idmap: bool,
    /// What `mount` and `df` show as the source.
    pub fsname: String,
}

/// The kernel connection of a mount, shared by everything that talks to the kernel unasked.
struct Connection {
    device: Arc<File>,
    mountpoint: PathBuf,
}

/// A mounted view, being served.
pub struct MountedSession {
    background: BackgroundSession,
    connection: Arc<Connection>,
    control: Option<Arc<ControlDir>>,
    watchers: Watchers,
    /// Its end ends the upkeep of the view.
    upkeep: Sender<()>,
}

impl MountedSession {
    /// Mounts `view` and starts to serve it; the mount answers when this returns. `control` is needed for the
    /// control directory, without it there is none.
    ///
    /// A mount made by root lets everyone in, with permissions, set-user-id and devices handled by the kernel
    /// as on any file system; root of a user namespace is root there, and the ids are those inside. A mount
    /// made by an ordinary user is entered by this user only, who acts in it as root: nothing is checked, and
    /// id 0 of the tree shows as theirs.
    ///
    /// # Errors
    /// When the mount point cannot be used, /dev/fuse or (for an ordinary user) `fusermount3` is missing or
    /// refuses.
    pub fn mount(
        view: Arc<View>,
        trees: Arc<Trees>,
        control: Option<Arc<dyn ControlPlane>>,
        options: &MountOptions,
    ) -> Result<MountedSession> {
        let given = &options.mountpoint;
        let mountpoint = given.canonicalize().at("find the mount point", given)?;
        view.set_read_only(options.read_only);
        let by_root = geteuid().is_root();
        let service = service(view.clone(), trees, control, &mountpoint, options);
        let (control, kernel) = (service.control.clone(), service.kernel.clone());
        let watchers = service.watchers.clone();
        let server = Server::new(service).at("start threads to serve", &mountpoint)?;
        let session = Session::new(server, &mountpoint, &config(options, by_root))
            .map_err(|e| Error::host("mount on", &mountpoint, explain(e, by_root, options.idmap)))?;
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

    /// For telling the kernel what to forget.
    pub fn invalidator(&self) -> Invalidator {
        Invalidator::new(self.connection.device.clone())
    }

    /// For telling programs that watch files.
    pub fn watchers(&self) -> Watchers {
        self.watchers.clone()
    }

    /// For ending the mount from another thread.
    pub fn unmount_handle(&self) -> UnmountHandle {
        UnmountHandle(self.connection.clone())
    }

    /// Waits until the mount is gone, all requests are answered and the commits among the jobs are done.
    ///
    /// # Errors
    /// When the connection broke.
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

/// Ends a mount. Cheap to clone.
#[derive(Clone)]
pub struct UnmountHandle(Arc<Connection>);

impl UnmountHandle {
    /// Unmounts; [`MountedSession::wait`] returns then. Nothing to do when the mount is gone already.
    ///
    /// # Errors
    /// `EBUSY` (as [`Error::Busy`]) while something in it is open, a working directory or a mount point.
    pub fn unmount(&self) -> Result<()> {
        self.0.unmount(false)
    }

    /// Takes the mount out of the tree of directories at once; it is served until its last user is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn detach(&self) -> Result<()> {
        self.0.unmount(true)
    }

    /// Whether the kernel still holds the mount (also after [`UnmountHandle::detach`], until its last user is
    /// gone).
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }
}

impl Connection {
    fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(self.device.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)),
            Err(_) => true,
        }
    }

    fn unmount(&self, lazy: bool) -> Result<()> {
        if self.is_connected() { self.umount(lazy) } else { Ok(()) }
    }

    /// A connection that was aborted leaves a mount point on which everything fails.
    fn clear(&self) {
        let stale = std::fs::metadata(&self.mountpoint);
        if stale.is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
            && let Err(error) = self.umount(true)
        {
            tracing::warn!(%error, "the mount point stays unusable until it is unmounted");
        }
    }

    fn umount(&self, lazy: bool) -> Result<()> {
        let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        match umount2(&self.mountpoint, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM) => self.unmount_by_helper(lazy),
            Err(Errno::EBUSY) => Err(Error::Busy),
            // Not a mount point: someone was faster.
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::host("unmount", &self.mountpoint, errno.into())),
        }
    }

    /// An ordinary user's mount is undone as it was made, by `fusermount3`.
    fn unmount_by_helper(&self, lazy: bool) -> Result<()> {
        let mut helper = Command::new("fusermount3");
        helper.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(&self.mountpoint);
        let output = helper.output().at("run fusermount3 to unmount", &self.mountpoint)?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if text.contains("busy") {
            return Err(Error::Busy);
        }
        // As EINVAL above, which who may not unmount is not told.
        if text.contains("not found in") {
            return Ok(());
        }
        Err(Error::host("unmount", &self.mountpoint, io::Error::other(text)))
    }
}

fn service(
    view: Arc<View>,
    trees: Arc<Trees>,
    control: Option<Arc<dyn ControlPlane>>,
    mountpoint: &Path,
    options: &MountOptions,
) -> Service {
    let by_root = geteuid().is_root();
    let idmap = options.idmap && by_root;
    let control = control.filter(|_| options.ctl != CtlDir::Disabled && !idmap).map(|plane| {
        let owner = (geteuid().as_raw(), getegid().as_raw());
        Arc::new(ControlDir::new(plane, view.clone(), mountpoint.to_owned(), owner))
    });
    Service {
        live: view,
        trees,
        control,
        control_listed: options.ctl == CtlDir::Visible,
        ids: IdMap::of_this_process(),
        kernel_permissions: by_root || options.allow_other,
        passthrough: options.passthrough && options.read_only && by_root,
        idmap,
        threads: options.threads.max(1),
        kernel: Arc::new(OnceLock::new()),
        watchers: Watchers::default(),
    }
}

fn config(options: &MountOptions, by_root: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(options.fsname.clone()), MountOption::NoAtime];
    if by_root {
        // fuser mounts by itself then, and hands the kernel only what it takes for an option of its own.
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
    if by_root || options.allow_other {
        // Who lets others in has them checked.
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(options.threads.max(1));
    config
}

/// Starts the thread that lets the view write its checkpoints, which no request should wait for. It ends when
/// the sender is dropped.
fn keep_up(view: Arc<View>) -> io::Result<Sender<()>> {
    let (sender, receiver) = channel::<()>();
    std::thread::Builder::new().name("karapace-upkeep".to_owned()).spawn(move || {
        while receiver.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = view.maintain() {
                tracing::error!(%error, "cannot write a checkpoint; nothing is lost, the journal grows");
            }
        }
    })?;
    Ok(sender)
}

/// Says what to do about the usual reasons for a mount to fail.
fn explain(error: io::Error, by_root: bool, idmap: bool) -> io::Error {
    let advice = if idmap && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
        "this kernel has no id-mapped mounts of FUSE file systems (Linux 6.12 has): leave --idmap out"
    } else if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)"
    } else if by_root {
        return error;
    } else if error.kind() == io::ErrorKind::NotFound {
        "mounting as a user needs fusermount3: install the package fuse3"
    } else if error.kind() == io::ErrorKind::PermissionDenied && File::open("/dev/fuse").is_err() {
        "/dev/fuse is closed to users: chmod 0666 /dev/fuse, or install the package fuse3, which sees to it"
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
