//! What the kernel forgets when the view changes without its knowledge.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use karapace_fs::attr::{Caller, HeadRef, Invalidation, RenameMode, SetAttr, SetTime};
use karapace_store::inode::{ROOT_INO, Timestamp};

use crate::mount::support::Mount;

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0 };

fn entry(parent: u64, name: &str) -> Invalidation {
    Invalidation::Entry { parent, name: name.as_bytes().into() }
}

#[test]
fn expired_names_are_looked_up_again() {
    let mount = Mount::new();
    let view = &mount.view;
    fs::create_dir(mount.path("d")).expect("mkdir");
    for name in ["gone", "replaced", "from"] {
        fs::write(mount.path("d").join(name), name).expect("write");
    }
    let dir = fs::metadata(mount.path("d")).expect("stat").ino();
    let list = || {
        let mut names: Vec<_> =
            fs::read_dir(mount.path("d")).expect("list").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        names
    };
    assert!(!mount.path("d/new").exists() && !mount.path("d/to").exists(), "absence is remembered now");
    for _ in 0..2 {
        assert_eq!(list(), ["from", "gone", "replaced"]);
    }
    let mut open = File::open(mount.path("d/replaced")).expect("open");

    // Without the kernel's knowledge.
    view.unlink(dir, b"gone").expect("unlink");
    view.unlink(dir, b"replaced").expect("unlink");
    for (name, text) in [("new", "fresh"), ("replaced", "other")] {
        let made = view.mknod(&ROOT, dir, name.as_bytes(), libc::S_IFREG | 0o644, 0).expect("mknod");
        view.write(made.ino, 0, text.as_bytes(), false).expect("write");
        view.forget(made.ino, 1);
    }
    view.rename(&ROOT, dir, b"from", dir, b"to", RenameMode::Replace).expect("rename");
    assert!(mount.path("d/gone").exists(), "the kernel has not heard");
    assert!(!mount.path("d/new").exists(), "the kernel has not heard");
    assert_eq!(list(), ["from", "gone", "replaced"], "the kernel has not heard");

    let mut all: Vec<_> = ["gone", "new", "replaced", "from", "to"].map(|n| entry(dir, n)).into();
    all.push(entry(dir, "never looked up"));
    all.push(Invalidation::Inode { ino: dir });
    mount.served.invalidator.send(&all).expect("send");

    assert!(!mount.path("d/gone").exists());
    assert!(!mount.path("d/from").exists());
    let read = |name: &str| fs::read_to_string(mount.path("d").join(name)).expect(name);
    assert_eq!((read("new"), read("replaced"), read("to")), ("fresh".into(), "other".into(), "from".into()));
    assert_eq!(list(), ["new", "replaced", "to"]);
    let mut kept = String::new();
    open.read_to_string(&mut kept).expect("read");
    assert_eq!(kept, "replaced", "open files keep what they had");
}

#[test]
fn attributes_and_content_are_read_again() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, "before").expect("write");
    assert_eq!(fs::read_to_string(&path).expect("read"), "before");
    let ino = fs::metadata(&path).expect("stat").ino();
    let mtime = Some(SetTime::At(Timestamp { secs: 12345, nanos: 6 }));
    mount.view.write(ino, 0, b"AFTER", false).expect("write");
    mount.view.setattr(ino, &SetAttr { mode: Some(0o600), mtime, ..SetAttr::default() }).expect("setattr");
    assert_eq!(fs::read_to_string(&path).expect("read"), "before", "the kernel has not heard");
    mount.served.invalidator.send(&[Invalidation::Inode { ino }]).expect("send");
    assert_eq!(fs::read_to_string(&path).expect("read"), "AFTERe");
    let meta = fs::metadata(&path).expect("stat");
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o600, 12345, 6));
}

#[test]
fn restores_show_under_running_processes() {
    let mount = Mount::new();
    let tree =
        || mount.ok("bash", "find . -printf '%p %y %m %T@ %l\\n' | sort; cat $(find . -type f | sort)");
    let commit = || mount.commit();
    let restore = |target: HeadRef| mount.restore(target);
    let base = mount.view.head();
    let at_base = tree();
    mount.ok(
        "bash",
        "mkdir -p a/b; echo 1 > a/b/f; ln -s f a/b/s; chmod 700 a; echo changed > base-file; touch same",
    );
    let (first, at_first) = (commit(), tree());
    let mut open = File::open(mount.path("a/b/f")).expect("open");
    mount.ok("bash", "echo 2 > a/b/f; mv a/b c; rm base-file; touch new; chmod 755 a");
    let (second, at_second) = (commit(), tree());
    for _ in 0..2 {
        restore(first);
        assert_eq!(tree(), at_first);
        restore(second);
        assert_eq!(tree(), at_second);
        restore(base);
        assert_eq!(tree(), at_base);
        restore(second);
        assert_eq!(tree(), at_second);
    }
    let mut kept = String::new();
    open.read_to_string(&mut kept).expect("read");
    assert_eq!(kept, "2\n", "the open file keeps what it had when the first restore came");
}

#[test]
fn what_is_mounted_inside_stays() {
    let mount = Mount::new();
    fs::create_dir_all(mount.path("a/proc")).expect("mkdir");
    let (a, proc) = (mount.path("a"), mount.path("a/proc"));
    let (a_ino, proc_ino) = (fs::metadata(&a).expect("stat").ino(), fs::metadata(&proc).expect("stat").ino());
    nix::mount::mount(Some("none"), &proc, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .expect("these tests need the right to mount");
    fs::write(proc.join("in-tmpfs"), "x").expect("write");
    let all = [
        entry(ROOT_INO, "a"),
        entry(a_ino, "proc"),
        Invalidation::Inode { ino: proc_ino },
        Invalidation::Inode { ino: a_ino },
        Invalidation::Inode { ino: ROOT_INO },
    ];
    for _ in 0..3 {
        mount.served.invalidator.send(&all).expect("send");
        assert!(proc.join("in-tmpfs").exists(), "the mount inside is gone");
    }
    nix::mount::umount(&proc).expect("umount");
    assert!(!proc.join("in-tmpfs").exists());
}

#[test]
fn unmounting_says_busy_and_detaching_does_not() {
    let mount = Mount::new();
    fs::write(mount.path("f"), "x").expect("write");
    let open = File::open(mount.path("f")).expect("open");
    assert!(matches!(mount.served.unmounter.unmount(), Err(karapace_fs::Error::Busy)));
    mount.served.unmounter.detach().expect("detach");
    assert!(!mount.path("f").exists() && !mount.served.unmounter.ends_within(Duration::ZERO));
    drop(open);
    mount.served.unmounter.unmount().expect("nothing to do");
}

#[test]
fn an_aborted_connection_leaves_no_dead_mount_point() {
    let mut mount = Mount::new();
    let device = fs::metadata(mount.path("")).expect("stat").dev();
    let control = tempfile::tempdir().expect("directory");
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
    nix::mount::mount(Some("none"), control.path(), Some("fusectl"), flags, none).expect("fusectl");
    fs::write(control.path().join(libc::minor(device).to_string()).join("abort"), "1").expect("abort");
    nix::mount::umount(control.path()).expect("umount");
    mount.served.join();
    assert_eq!(fs::read_dir(mount.path("")).expect("an empty directory").count(), 0);
}

/// A mount on a directory that was removed and created again since the snapshot survives its restore; so does
/// the working directory of a process in it.
#[test]
fn a_mount_on_a_recreated_directory_stays() {
    let mount = Mount::new();
    mount.ok("bash", "mkdir point; echo then > point/then");
    let first = mount.commit();
    mount.ok("bash", "rm -r point; mkdir point; echo now > point/now");
    let second = mount.commit();
    let point = mount.path("point");
    let inside = File::open(&point).expect("open");
    nix::mount::mount(Some("none"), &point, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .expect("these tests need the right to mount");
    fs::write(point.join("in-tmpfs"), "x").expect("write");
    let below = |name: &str| {
        let flags = nix::fcntl::OFlag::O_RDONLY;
        nix::fcntl::openat(&inside, name, flags, nix::sys::stat::Mode::empty()).map(drop)
    };
    for _ in 0..2 {
        mount.restore(first);
        assert!(point.join("in-tmpfs").exists(), "the mount inside is gone");
        assert_eq!((below("then"), below("now")), (Ok(()), Err(nix::errno::Errno::ENOENT)));
        mount.restore(second);
        assert!(point.join("in-tmpfs").exists(), "the mount inside is gone");
        assert_eq!((below("then"), below("now")), (Err(nix::errno::Errno::ENOENT), Ok(())));
    }
    drop(inside);
    nix::mount::umount(&point).expect("umount");
    assert_eq!(fs::read_to_string(point.join("now")).expect("read"), "now\n");
}

/// A file that is open under one of its names keeps its content; both names show the restored content.
#[test]
fn an_open_hard_link_keeps_its_content() {
    let mount = Mount::new();
    mount.ok("bash", "mkdir d; echo one > f; ln f d/g");
    let first = mount.commit();
    mount.ok("bash", "echo two > f");
    mount.commit();
    let mut open = File::options().read(true).write(true).open(mount.path("d/g")).expect("open");
    mount.restore(first);
    assert_eq!(mount.ok("bash", "cat f d/g; [ f -ef d/g ] && stat -c %h f"), "one\none\n2\n");
    let mut kept = String::new();
    open.read_to_string(&mut kept).expect("read");
    assert_eq!((kept.as_str(), open.metadata().expect("stat").nlink()), ("two\n", 0));
    assert_eq!(mount.ok("bash", "echo three >> f; cat d/g"), "one\nthree\n");
}
