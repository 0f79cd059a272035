//! Mounts the toy for one test, in a mount namespace of the test's thread.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fuser::{BackgroundSession, Config, InitFlags, Notifier, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::kernel::toy::Toy;

/// An ordinary user: any id that is not ours and needs no entry in /etc/passwd.
pub const NOBODY: u32 = 65_534;

/// The capabilities that Karapace requests from the kernel at INIT.
pub fn karapace_flags() -> InitFlags {
    InitFlags::FUSE_NO_OPEN_SUPPORT
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2
        | InitFlags::FUSE_HAS_EXPIRE_ONLY
}

/// A mounted toy. Unmounted when dropped; otherwise it goes with its thread's mount namespace.
pub struct Mounted {
    pub toy: Toy,
    point: PathBuf,
    raw: OwnedFd,
    session: Option<BackgroundSession>,
    // Dropped last: it contains the mount point.
    _home: tempfile::TempDir,
}

impl Mounted {
    /// Mounts like root: default_permissions, allow_other.
    pub fn new() -> Mounted {
        Mounted::with("user_id=0,group_id=0,allow_other,default_permissions")
    }

    /// Mounts with the given options; `fd` and `rootmode` are added.
    pub fn with(options: &str) -> Mounted {
        Mounted::serve(Toy::new(karapace_flags()), options)
    }

    /// Serves `toy` with four threads.
    pub fn serve(toy: Toy, options: &str) -> Mounted {
        check_temporary_directory();
        own_namespace();
        let home = tempfile::Builder::new()
            .prefix("karapace-kernel-")
            .tempdir()
            .expect("make a temporary directory");
        let point = home.path().join("mnt");
        fs::create_dir(&point).expect("make the mount point");
        set_mode(home.path(), 0o755);
        let device = open_device();
        let options = format!("fd={},rootmode=40000,{options}", device.as_raw_fd());
        mount(Some("karapace-kernel-test"), &point, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .unwrap_or_else(|error| panic!("mount(2) of a FUSE file system with {options}: {error}"));
        let raw = device.try_clone().expect("duplicate the device's descriptor");
        let mut config = Config::default();
        config.n_threads = Some(4);
        let session = Session::from_fd(toy.clone(), device, SessionACL::All, config).and_then(Session::spawn);
        let session = session.unwrap_or_else(|error| panic!("start serving the toy: {error}"));
        Mounted { toy, point, raw, session: Some(session), _home: home }
    }

    /// A path in the mount; "" is its root.
    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// Sends FUSE_NOTIFY_INVAL_ENTRY with FUSE_EXPIRE_ONLY, which fuser does not support. ENOENT (the kernel
    /// has no such entry) counts as success.
    pub fn expire(&self, parent: u64, name: &str) -> io::Result<()> {
        const NOTIFY_INVAL_ENTRY: i32 = 3;
        const EXPIRE_ONLY: u32 = 1;
        let mut message = Vec::new();
        message.extend_from_slice(&(16 + 16 + name.len() as u32 + 1).to_ne_bytes());
        message.extend_from_slice(&NOTIFY_INVAL_ENTRY.to_ne_bytes());
        message.extend_from_slice(&0u64.to_ne_bytes());
        message.extend_from_slice(&parent.to_ne_bytes());
        message.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        message.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
        message.extend_from_slice(name.as_bytes());
        message.push(0);
        match nix::unistd::write(self.raw.as_fd(), &message) {
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// fuser's own notifications.
    pub fn notifier(&self) -> Notifier {
        self.session.as_ref().expect("still serving").notifier()
    }

    /// Runs a bash command in the mount, as the given user without supplementary groups.
    pub fn shell_as(&self, uid: u32, script: &str) -> Output {
        let mut command = Command::new("bash");
        // The script enters the directory itself, because only the user may have access.
        command
            .env("LC_ALL", "C")
            .args(["-c", &format!("cd \"$0\" && {script}")])
            .arg(&self.point)
            .uid(uid)
            .gid(uid);
        command.output().expect("run bash")
    }

    /// Runs one `#[ignore]`d test of this program in a separate process, for operations that must not share a
    /// process with the server (a page fault waits with the address space locked).
    pub fn run_child(&self, test: &str, path: &Path) {
        let program = std::env::current_exe().expect("find this program");
        let output = child_of(&program, test, path.as_os_str()).output().expect("run the test program again");
        assert!(output.status.success(), "{test}: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// Ends the server's side as kill -9 would: the device is closed, the mount stays.
    pub fn kill_server(&mut self) {
        fs::write(connection(&self.point).join("abort"), "1").expect("abort the connection");
        self.join().expect("the session ends when the connection is aborted");
    }

    /// Unmounts; fails if the mount is in use.
    pub fn unmount(&self) {
        nix::mount::umount(&self.point).expect("unmount");
    }

    /// Waits for the serving threads, which end after [`Mounted::unmount`].
    pub fn join(&mut self) -> io::Result<()> {
        self.session.take().map_or(Ok(()), BackgroundSession::join)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.toy.release();
        match umount2(&self.point, MntFlags::MNT_DETACH) {
            // EINVAL: the test has unmounted it already.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(error) => eprintln!("unmount {}: {error}", self.point.display()),
        }
    }
}

/// The command that runs one ignored test of `program`, which is this program or a copy. The test gets
/// `argument` through [`child_argument`].
pub fn child_of(program: &Path, test: &str, argument: &OsStr) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("KERNEL_TEST_ARGUMENT", argument);
    command
}

/// The argument given to [`child_of`].
pub fn child_argument() -> PathBuf {
    std::env::var_os("KERNEL_TEST_ARGUMENT").expect("run by another test only").into()
}

/// Gives this thread its own mount namespace, from which nothing propagates to the machine.
pub fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).expect("these tests mount: run them as root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("make the mounts private");
}

/// Fails if the tests' ordinary users could not reach or use the directory for temporary files.
fn check_temporary_directory() {
    let directory = fs::canonicalize(std::env::temp_dir()).expect("find the directory for temporary files");
    let mode = |path: &Path| fs::metadata(path).expect("look at it").permissions().mode() & 0o7777;
    let closed = directory.ancestors().skip(1).find(|above| mode(above) & 0o001 == 0);
    let wrong = Some(&*directory).filter(|directory| mode(directory) != 0o1777).or(closed);
    if let Some(wrong) = wrong {
        panic!(
            "{} has mode {:o}: these tests run programs as ordinary users, and need a directory for temporary files with mode 1777 \
             that everybody reaches; set TMPDIR, for example to /var/tmp",
            wrong.display(),
            mode(wrong)
        );
    }
}

/// Opens /dev/fuse, or the device node that a test created. Tests fail on a machine without it.
fn open_device() -> OwnedFd {
    let path = std::env::var_os("KERNEL_TEST_DEVICE").unwrap_or_else(|| "/dev/fuse".into());
    let device = OpenOptions::new().read(true).write(true).open(path);
    device.expect("open /dev/fuse: these tests need it (modprobe fuse)").into()
}

/// chmod.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// /sys/fs/fuse/connections/<minor> of a mount. Mounts a private fusectl if the machine has none.
fn connection(point: &Path) -> PathBuf {
    let control = Path::new("/sys/fs/fuse/connections");
    let device = fs_device(point);
    if !control.join(device.to_string()).exists() {
        mount(None::<&str>, control, Some("fusectl"), MsFlags::empty(), None::<&str>).expect("mount fusectl");
    }
    control.join(device.to_string())
}

/// Minor number of the file system's device, determined without a request to its server.
fn fs_device(point: &Path) -> u64 {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("read mountinfo");
    let point = point.to_str().expect("a temporary path is UTF-8");
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(point)).expect("find the mount");
    let device = line.split(' ').nth(2).and_then(|device| device.split(':').nth(1)).expect("parse mountinfo");
    device.parse().expect("parse mountinfo")
}
