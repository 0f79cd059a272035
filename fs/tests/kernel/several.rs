//! What several connections of one view rest on: expiring and dropping names, answers that expire at once,
//! and the end of a connection whose server is gone.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use fuser::{FileType, INodeNo, InitFlags};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::kernel::harness::{Mounted, child_of, karapace_flags, own_namespace};
use crate::kernel::sys;
use crate::kernel::toy::{Op, Toy};

const LIKE_ROOT: &str = "user_id=0,group_id=0,allow_other,default_permissions";

/// A mount whose answers expire at once, and that asks before it reads from its cache.
fn forgetful() -> Mounted {
    let toy = Toy::new(karapace_flags() | InitFlags::FUSE_AUTO_INVAL_DATA);
    toy.lock().lifetime = Duration::ZERO;
    Mounted::serve(toy, LIKE_ROOT)
}

/// A name that expires while the answer to its look-up is on its way becomes valid with that answer.
#[test]
fn an_answer_on_its_way_makes_an_expired_entry_valid() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    assert!(mounted.path("f").exists());
    mounted.expire(1, "f").unwrap();
    while_looked_up_again(&mounted, || mounted.expire(1, "f").unwrap());
    assert_eq!(mounted.toy.count(Op::Lookup), 0, "the kernel now looks up again: say so in KERNEL.md");
}

/// A name that is dropped meanwhile does not.
#[test]
fn an_answer_on_its_way_leaves_a_dropped_entry_alone() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    assert!(mounted.path("f").exists());
    mounted.expire(1, "f").unwrap();
    while_looked_up_again(&mounted, || mounted.notifier().inval_entry(INodeNo(1), "f".as_ref()).unwrap());
    assert_eq!(mounted.toy.count(Op::Lookup), 1);
}

/// Runs `notify` while a look-up of the expired name `f` waits for its answer, and looks at the name once
/// more.
fn while_looked_up_again(mounted: &Mounted, notify: impl FnOnce()) {
    mounted.toy.hold(Op::Lookup, "f");
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| mounted.path("f").exists());
        mounted.toy.wait_held();
        notify();
        mounted.toy.release();
        assert!(looking.join().unwrap());
    });
    mounted.toy.clear();
    assert!(mounted.path("f").exists());
}

/// FUSE_NOTIFY_INVAL_INODE of a directory drops its listing, and the next one asks.
#[test]
fn an_invalidated_directory_is_listed_again() {
    let mounted = Mounted::new();
    let dir = mounted.toy.add(1, "dir", FileType::Directory, 0o755, b"");
    mounted.toy.add(dir, "one", FileType::RegularFile, 0o644, b"");
    let listed = || fs::read_dir(mounted.path("dir")).unwrap().count();
    assert_eq!((listed(), listed()), (1, 1));
    mounted.toy.clear();
    mounted.notifier().inval_inode(INodeNo(dir), 0, 0).unwrap();
    assert_eq!((listed(), mounted.toy.count(Op::ReadDirPlus) > 0), (1, true));
}

/// An entry with time-to-live 0 is looked up at each use, and an absent name too.
#[test]
fn an_entry_that_expires_at_once_is_looked_up_at_each_use() {
    let mounted = forgetful();
    mounted.toy.file("f", b"text");
    for turn in 1..=3 {
        assert!(mounted.path("f").exists());
        assert_eq!(mounted.toy.count(Op::Lookup), turn);
    }
}

/// … also if it is a mount point, and what is mounted there stays as long as the node is the same.
#[test]
fn a_mount_stays_on_an_entry_that_expires_at_once() {
    let mounted = forgetful();
    let dir = mounted.toy.add(1, "dir", FileType::Directory, 0o755, b"");
    let inside = mounted.path("dir");
    mount(Some("tmpfs"), &inside, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    fs::write(inside.join("in tmpfs"), b"").unwrap();
    for _ in 0..3 {
        mounted.toy.clear();
        assert!(inside.join("in tmpfs").exists());
        assert_eq!(mounted.toy.count(Op::Lookup), 1);
    }
    {
        let mut inner = mounted.toy.lock();
        assert_eq!(inner.take(1, b"dir"), Some(dir));
        inner.name(1, b"elsewhere", dir);
    }
    mounted.toy.add(1, "dir", FileType::Directory, 0o755, b"");
    assert!(!inside.join("in tmpfs").exists(), "another node");
}

/// FUSE_AUTO_INVAL_DATA: a read of an open file first asks for attributes that have expired, and drops the
/// pages if the modification time is another one, though the size is the same. If that is the same too, they
/// stay.
#[test]
fn pages_go_when_the_modification_time_changes() {
    let mounted = forgetful();
    let ino = mounted.toy.file("f", b"old");
    let open = File::open(mounted.path("f")).unwrap();
    let read = || {
        let mut text = [0; 3];
        open.read_exact_at(&mut text, 0).unwrap();
        text
    };
    assert_eq!(&read(), b"old");
    mounted.toy.clear();
    mounted.toy.lock().node(ino).data = b"new".to_vec();
    assert_eq!((&read(), mounted.toy.count(Op::GetAttr)), (b"old", 1), "the same time");
    mounted.toy.lock().node(ino).mtime = SystemTime::now();
    assert_eq!((&read(), mounted.toy.count(Op::GetAttr)), (b"new", 2));
}

/// MNT_FORCE aborts the connection, though the mount is in use: callers that wait for an answer get
/// ECONNABORTED, and later ones ENOTCONN.
#[test]
fn a_forced_unmount_aborts_the_connection() {
    let mounted = Mounted::new();
    aborts(&mounted);
}

/// … by root of the user namespace in which it was mounted, too.
#[test]
fn root_of_the_namespace_aborts_its_connection() {
    own_namespace();
    let home = tempfile::tempdir().unwrap();
    crate::kernel::harness::set_mode(home.path(), 0o755);
    let device = home.path().join("fuse");
    let flags = MsFlags::empty();
    mount(Some("tmpfs"), home.path(), Some("tmpfs"), flags, Some("size=1g,mode=755")).unwrap();
    let number = nix::sys::stat::makedev(10, 229);
    nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty(), number)
        .unwrap();
    crate::kernel::harness::set_mode(&device, 0o666);
    let program = home.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut tries = 0;
    let output = loop {
        let mut command =
            child_of(&program, "kernel::several::child_aborts_in_namespace", home.path().as_os_str());
        command.env("KERNEL_TEST_DEVICE", &device);
        match sys::output_in_user_namespace(command, "0 100000 65536\n") {
            // Another test's fork may hold the copy open for writing until its exec.
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < 200 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            other => break other.unwrap(),
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    umount2(home.path(), MntFlags::MNT_DETACH).unwrap();
}

#[test]
#[ignore = "run by root_of_the_namespace_aborts_its_connection"]
fn child_aborts_in_namespace() {
    let mounted = Mounted::new();
    aborts(&mounted);
}

fn aborts(mounted: &Mounted) {
    let ino = mounted.toy.file("f", b"text");
    let open = File::open(mounted.path("f")).unwrap();
    assert_eq!(open.metadata().unwrap().ino(), ino);
    mounted.toy.hold(Op::Lookup, "slow");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fs::metadata(mounted.path("slow")).unwrap_err().raw_os_error());
        mounted.toy.wait_held();
        let forced = umount2(&mounted.path(""), MntFlags::MNT_FORCE);
        assert_eq!(forced, Err(nix::errno::Errno::EBUSY), "it is in use");
        assert_eq!(waiting.join().unwrap(), Some(libc::ECONNABORTED));
    });
    let later = fs::metadata(mounted.path("g")).unwrap_err().raw_os_error();
    assert_eq!(later, Some(libc::ENOTCONN));
    mounted.toy.release();
    assert!(open.as_raw_fd() >= 0);
}

/// PR_SET_PDEATHSIG is about the thread that started the process, while others of its process live on.
#[test]
fn the_death_signal_comes_when_the_thread_ends() {
    let starting = std::thread::spawn(|| {
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig", "TERM", "sh", "-c", "echo; exec sleep 60"]);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "the thread lives");
        child
    });
    let mut child = starting.join().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}
