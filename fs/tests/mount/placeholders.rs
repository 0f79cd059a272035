//! Mount points that a process makes are there for its connection, and nowhere else.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use karapace_fs::attr::Invalidation;
use karapace_fs::session::MountPoints;
use karapace_store::inode::ROOT_INO;
use karapace_store::wait;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::mount::several::shared;
use crate::mount::support::{Mount, Second};

/// Evaluates each line that it reads, in a mount namespace of its own.
const LOOP: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def mount(at):
    if libc.mount(b"tmpfs", at.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
def create(at):
    os.close(os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
def write(at, text):
    file = os.open(at, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(file, text)
    os.close(file)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"#;

/// A process that makes mount points.
struct Maker {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Maker {
    fn start(dir: &Path, points: &MountPoints) -> Maker {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "python3", "-c", LOOP]).current_dir(dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare");
        let (ask, answers) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut maker = Maker { child, ask, answers: BufReader::new(answers) };
        assert_eq!(maker.says("1 + 1"), "2");
        points.begin(maker.process()).expect("begin");
        maker
    }

    fn process(&self) -> OwnedFd {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a number");
        pidfd_open(pid, PidfdFlags::empty()).expect("pidfd")
    }

    fn says(&mut self, expression: &str) -> String {
        writeln!(self.ask, "{expression}").expect("ask");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    fn does(&mut self, expression: &str) {
        assert_eq!(self.says(expression), "None", "{expression}");
    }

    fn end(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

fn errno<T>(result: std::io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

fn diff(mount: &Mount) -> Vec<String> {
    let entries = mount.view.diff().expect("diff");
    entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[test]
fn a_placeholder_is_for_its_connection_and_not_for_the_view() {
    let (mount, second) = shared();
    fs::create_dir(mount.path("etc")).expect("mkdir");
    let before = diff(&mount);
    let generation = mount.view.stats().generation;
    let mut maker = Maker::start(&mount.path(""), &mount.served.serving.mount_points());
    for made in ["os.mkdir('run')", "os.mkdir('run/deep', 0o700)", "create('run/deep/file')"] {
        maker.does(made);
    }
    maker.does("create('etc/hosts')");
    for (made, errno) in [
        ("os.mkdir('etc')", "EEXIST"),
        ("create('base-file')", "EEXIST"),
        ("create('etc/hosts')", "EEXIST"),
        ("os.mkdir('.karapace')", "EEXIST"),
        ("os.mkdir('none/below')", "ENOENT"),
        ("os.mkdir('etc/hosts/below')", "ENOTDIR"),
        ("os.mkfifo('run/fifo')", "EROFS"),
    ] {
        assert_eq!(maker.says(made), errno, "{made}");
    }
    assert_eq!((diff(&mount), mount.view.stats().generation), (before.clone(), generation));
    for (path, mode) in [("run", 0o40755), ("run/deep", 0o40755), ("etc/hosts", 0o100_644)] {
        let found = fs::metadata(mount.path(path)).expect("stat");
        assert_eq!((found.mode(), found.uid(), found.gid(), found.size()), (mode, 0, 0, 0), "{path}");
        assert!(!second.path(path).exists(), "{path}");
    }
    assert_eq!(names(&mount.path("")), ["base-file", "etc", "run"]);
    assert_eq!(
        mount.ok("sh", "ls -ai run run/deep | wc -l; find . -type f | sort").trim(),
        "9\n./base-file\n./etc/hosts\n./run/deep/file"
    );
    assert_eq!(names(&second.path("")), ["base-file", "etc"]);
    assert_eq!(names(&second.path("etc")), [""; 0]);
    let (hosts, deep) = (mount.path("etc/hosts"), mount.path("run/deep"));
    assert_eq!(fs::read(&hosts).expect("read"), b"");
    assert_eq!(errno(fs::write(&hosts, "x")), libc::EROFS);
    assert_eq!(
        errno(File::options().append(true).open(&hosts).and_then(|mut f| f.write_all(b"x"))),
        libc::EROFS
    );
    assert_eq!(errno(fs::set_permissions(&deep, PermissionsExt::from_mode(0o700))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(deep.join("x"))), libc::EROFS);
    assert_eq!(errno(File::create(deep.join("x"))), libc::EROFS);
    assert_eq!(errno(fs::hard_link(&hosts, mount.path("link"))), libc::EROFS);
    assert_eq!(errno(fs::hard_link(mount.path("base-file"), &hosts)), libc::EEXIST);
    assert_eq!(errno(fs::remove_file(&hosts)), libc::EBUSY);
    assert_eq!(errno(fs::remove_dir(mount.path("run"))), libc::EBUSY);
    assert_eq!(errno(fs::rename(&hosts, mount.path("moved"))), libc::EBUSY);
    assert_eq!(errno(fs::rename(mount.path("base-file"), &hosts)), libc::EBUSY);
    assert_eq!(errno(fs::rename(mount.path("base-file"), deep.join("x"))), libc::EROFS);
    assert_eq!(errno(fs::remove_dir(mount.path("etc"))), libc::ENOTEMPTY);
    fs::create_dir(mount.path("empty")).expect("mkdir");
    assert_eq!(errno(fs::rename(mount.path("empty"), mount.path("etc"))), libc::ENOTEMPTY);
    fs::remove_dir(mount.path("empty")).expect("rmdir");
    let set = |path| rustix::fs::setxattr(path, "user.x", b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(set(&hosts), Err(rustix::io::Errno::ROFS));
    // A directory that holds one can be moved, as one that holds a mount point can.
    fs::rename(mount.path("etc"), mount.path("etc2")).expect("rename");
    assert!(mount.path("etc2/hosts").exists() && !hosts.exists());
    fs::rename(mount.path("etc2"), mount.path("etc")).expect("rename");
    maker.end();
    mount.served.serving.mount_points().sweep();
    assert_eq!(names(&mount.path("")), ["base-file", "etc"]);
    assert!(!hosts.exists() && !mount.path("run").exists());
    assert_eq!(diff(&mount), before);
    fs::write(&hosts, "real").expect("write");
}

/// What is mounted on a placeholder stays, whatever happens to its name, and goes with it.
#[test]
fn what_is_mounted_on_a_placeholder_stays_until_the_end() {
    for caches in [true, false] {
        let mount = Mount::with(|options| options.shares = true);
        let second = (!caches).then(|| Second::of(&mount));
        // Known to be absent.
        assert!(!mount.path("run").exists());
        let mut maker = Maker::start(&mount.path(""), &mount.served.serving.mount_points());
        maker.does("os.mkdir('run')");
        maker.does("mount('run')");
        maker.does("os.mkdir('run/inside')");
        let held = File::open(mount.path("run")).expect("open");
        let expire = || {
            let entry = Invalidation::Entry { parent: ROOT_INO, name: b"run"[..].into() };
            mount.served.invalidator.send(&[entry]).expect("send");
        };
        let is_mounted = |maker: &mut Maker| maker.says("os.listdir('run')") == "['inside']";
        expire();
        assert!(mount.path("run").exists());
        assert!(is_mounted(&mut maker), "caches: {caches}");
        if let Some(second) = &second {
            fs::create_dir(second.path("run")).expect("mkdir");
            fs::write(second.path("run/real"), "").expect("write");
            fs::metadata(mount.path("run")).expect("stat");
            assert!(is_mounted(&mut maker));
            assert_eq!(names(&mount.path("run")), [""; 0]);
            assert_eq!(names(&mount.path("")), ["base-file", "run"]);
            assert_eq!(mount.ok("python3", "import os; print(len(os.listdir('.')))").trim(), "2");
        }
        maker.end();
        // Nobody says that it has ended.
        let gone = || match &second {
            None => !mount.path("run").exists(),
            Some(_) => mount.path("run/real").exists(),
        };
        let soon = wait::until(Duration::from_secs(10), || Ok::<_, ()>(gone().then_some(())));
        assert_eq!(soon, Ok(Some(())), "caches: {caches}");
        assert_eq!(errno(held.metadata()), libc::ESTALE);
        drop(held);
        if second.is_none() {
            fs::create_dir(mount.path("run")).expect("mkdir");
        }
        assert_eq!(names(&mount.path("")), ["base-file", "run"]);
        assert_eq!(diff(&mount).iter().filter(|path| *path == "/run").count(), 1);
    }
}

#[test]
fn they_are_made_in_a_view_that_cannot_be_written_to_and_last_as_long_as_any_maker() {
    let mount = Mount::new();
    let points = mount.served.serving.mount_points();
    let mut first = Maker::start(&mount.path(""), &points);
    let mut second = Maker::start(&mount.path(""), &points);
    mount.view.set_read_only(true);
    first.does("os.mkdir('run')");
    assert_eq!(second.says("os.mkdir('run')"), "EEXIST");
    second.does("mount('run')");
    assert_eq!(errno(fs::create_dir(mount.path("other"))), libc::EROFS);
    first.end();
    points.sweep();
    assert!(mount.path("run").exists());
    assert_eq!(second.says("os.path.ismount('run')"), "True");
    second.end();
    points.sweep();
    assert!(!mount.path("run").exists());
    // Its number is not known any more: what another process makes is real.
    mount.view.set_read_only(false);
    fs::create_dir(mount.path("run")).expect("mkdir");
    assert!(diff(&mount).contains(&"/run".to_owned()));
    // A process that has ended cannot begin.
    let mut child = Command::new("true").spawn().expect("true");
    let process = pidfd_open(Pid::from_raw(child.id() as i32).expect("a number"), PidfdFlags::empty());
    child.wait().expect("wait");
    points.begin(process.expect("pidfd")).expect_err("it has ended");
}

/// More than one answer holds.
#[test]
fn a_long_listing_has_each_of_them_once() {
    let mount = Mount::new();
    mount.ok("bash", "mkdir d; touch d/real-{1..2000}");
    let mut maker = Maker::start(&mount.path(""), &mount.served.serving.mount_points());
    maker.does("[os.mkdir('d/made-%d' % n) for n in range(2000)] and None");
    maker.does("os.mkdir('all')");
    maker.does("[os.mkdir('all/made-%d' % n) for n in range(2000)] and None");
    for (dir, count) in [("d", 4000), ("all", 2000)] {
        let found = names(&mount.path(dir));
        let distinct = found.iter().collect::<std::collections::HashSet<_>>();
        assert_eq!((found.len(), distinct.len()), (count, count), "{dir}");
        assert_eq!(mount.ok("bash", &format!("ls -l {dir} | wc -l")).trim(), (count + 1).to_string());
    }
    maker.end();
}

/// A file that the maker has written and renamed: /etc/resolv.conf of a session.
#[test]
fn a_file_of_the_sessions_own_hides_the_one_in_the_view_until_it_is_replaced() {
    let (mount, second) = shared();
    let (conf, other) = (mount.path("etc/resolv.conf"), second.path("etc/resolv.conf"));
    fs::create_dir(mount.path("etc")).expect("mkdir");
    fs::write(&conf, "real\n").expect("write");
    let read = |path: &Path| fs::read_to_string(path).expect("read");
    let mut maker = Maker::start(&mount.path(""), &mount.served.serving.mount_points());
    let keep = |maker: &mut Maker| {
        maker.does("write('etc/.tmp', b'one\\n')");
        maker.does("os.rename('etc/.tmp', 'etc/resolv.conf')");
    };
    let before = (diff(&mount), mount.view.stats().generation);
    keep(&mut maker);
    assert_eq!((read(&conf), read(&other)), ("one\n".into(), "real\n".into()));
    assert_eq!(names(&mount.path("etc")), ["resolv.conf"]);
    // Those inside may change it, which nobody else sees.
    let old = File::open(&conf).expect("open");
    fs::write(&conf, "two\n").expect("write");
    mount.ok("sh", "echo three >>etc/resolv.conf; chmod 600 etc/resolv.conf; chown 5:6 etc/resolv.conf");
    assert_eq!((read(&conf), read(&other)), ("two\nthree\n".into(), "real\n".into()));
    let found = fs::metadata(&conf).expect("stat");
    assert_eq!((found.mode(), found.uid(), found.gid(), found.size()), (0o100_600, 5, 6, 10));
    let sought = "import os; f = os.open('etc/resolv.conf', 0); print(os.lseek(f, 2, os.SEEK_DATA), os.lseek(f, 2, os.SEEK_HOLE))";
    assert_eq!(mount.ok("python3", sought), "2 10\n");
    assert_eq!(errno(fs::write(&conf, vec![7; (1 << 20) + 1])), libc::ENOSPC);
    assert_eq!(errno(fs::hard_link(&conf, mount.path("link"))), libc::EROFS);
    assert_eq!(errno(fs::rename(&conf, mount.path("etc/moved"))), libc::EXDEV);
    fs::write(&conf, "four\n").expect("write");
    assert_eq!((diff(&mount), mount.view.stats().generation), before);
    // What replaces it is the environment's. Who has it open keeps it.
    fs::write(mount.path("etc/new"), "new\n").expect("write");
    fs::rename(mount.path("etc/new"), &conf).expect("rename");
    assert_eq!((read(&conf), read(&other)), ("new\n".into(), "new\n".into()));
    assert_eq!(old.metadata().expect("stat").nlink(), 0);
    assert_eq!(std::io::read_to_string(&old).expect("read"), "four\n");
    keep(&mut maker);
    mount.ok("sh", "mv etc/resolv.conf etc/moved && [ ! -e etc/resolv.conf ] && cat etc/moved | grep -x one");
    assert!(!other.exists() && second.path("etc/moved").exists());
    // There is none in the view.
    keep(&mut maker);
    mount.ok("sh", "sed -i s/one/five/ etc/resolv.conf");
    assert_eq!(read(&other), "five\n");
    keep(&mut maker);
    mount.ok("sh", "ln -sf moved etc/resolv.conf");
    assert_eq!(fs::read_link(&other).expect("a link"), Path::new("moved"));
    // A symbolic link is hidden itself.
    keep(&mut maker);
    assert!(fs::symlink_metadata(&conf).expect("stat").is_file());
    keep(&mut maker);
    fs::remove_file(&conf).expect("unlink");
    assert!(fs::symlink_metadata(&other).is_err());
    keep(&mut maker);
    fs::remove_file(&conf).expect("unlink of one that the view does not have");
    fs::create_dir(&conf).expect("mkdir");
    maker.does("write('etc/.tmp', b'x')");
    assert_eq!(maker.says("os.rename('etc/.tmp', 'etc/resolv.conf')"), "EISDIR");
    maker.does("create('point')");
    assert_eq!(maker.says("os.rename('etc/.tmp', 'point')"), "EBUSY");
    assert_eq!(maker.says("os.rename('point', 'etc/.tmp')"), "EROFS");
    maker.does("os.unlink('etc/.tmp')");
    fs::remove_dir(&conf).expect("rmdir");
    // In a view that cannot be written to it can still be changed, and not be replaced.
    fs::write(&other, "real\n").expect("write");
    mount.view.set_read_only(true);
    keep(&mut maker);
    fs::write(&conf, "six\n").expect("write");
    assert_eq!(errno(fs::remove_file(&conf)), libc::EROFS);
    assert_eq!(read(&conf), "six\n");
    mount.view.set_read_only(false);
    maker.end();
    mount.served.serving.mount_points().sweep();
    assert_eq!((read(&conf), read(&other)), ("real\n".into(), "real\n".into()));
    assert_eq!(names(&mount.path("etc")), ["moved", "resolv.conf"]);
}
