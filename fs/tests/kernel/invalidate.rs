//! The notifications of a restore: entries are expired one by one, inodes invalidated, and mounts inside must
//! stay.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use fuser::{FileType, INodeNo};
use nix::mount::{MsFlags, mount};

use crate::kernel::harness::Mounted;
use crate::kernel::toy::Op;

/// Replaces the file `f` by another one, as a restore does, and tells the kernel.
fn replace(mounted: &Mounted) {
    mounted.toy.lock().take(1, b"f").unwrap();
    mounted.toy.file("f", b"new");
}

/// FUSE_EXPIRE_ONLY: the name is looked up again, and a file open under it keeps its content.
#[test]
fn an_expired_entry_is_looked_up_again() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"old");
    let mut open = fs::File::open(mounted.path("f")).unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"old");
    replace(&mounted);
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"old", "the kernel was not told yet");
    mounted.expire(1, "f").unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"new");
    let mut text = String::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
}

/// A cached absence expires the same way.
#[test]
fn an_expired_absence_is_looked_up_again() {
    let mounted = Mounted::new();
    assert!(!mounted.path("f").exists());
    mounted.toy.file("f", b"back");
    assert!(!mounted.path("f").exists(), "the kernel was not told yet");
    mounted.expire(1, "f").unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"back");
}

/// A name that is gone after the restore is gone once expired.
#[test]
fn an_expired_entry_may_be_gone() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"old");
    assert!(mounted.path("f").exists());
    mounted.toy.lock().take(1, b"f").unwrap();
    mounted.expire(1, "f").unwrap();
    assert!(!mounted.path("f").exists());
}

/// Expiring a name unknown to the kernel is harmless.
#[test]
fn expiring_the_unknown_is_harmless() {
    let mounted = Mounted::new();
    mounted.expire(1, "never looked up").unwrap();
    mounted.expire(4711, "in a directory never seen").unwrap();
}

/// A directory with a tmpfs mounted on it, holding one file.
fn with_mount_inside(name: &str) -> Mounted {
    let mounted = Mounted::new();
    mounted.toy.add(1, name, FileType::Directory, 0o755, b"");
    let inside = mounted.path(name);
    mount(Some("tmpfs"), &inside, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    fs::write(inside.join("in tmpfs"), b"").unwrap();
    mounted
}

/// FUSE_EXPIRE_ONLY on a directory keeps what is mounted on it, and still looks the name up again.
#[test]
fn expiring_keeps_a_mount_inside() {
    let mounted = with_mount_inside("proc");
    mounted.toy.clear();
    mounted.expire(1, "proc").unwrap();
    assert!(mounted.path("proc/in tmpfs").exists());
    assert_eq!(mounted.toy.seen(Op::Lookup).iter().filter(|seen| seen.name == b"proc").count(), 1);
    assert!(mounted.path("proc/in tmpfs").exists());
}

/// Why FUSE_EXPIRE_ONLY is needed: a plain FUSE_NOTIFY_INVAL_ENTRY unmounts it.
#[test]
fn a_plain_invalidation_drops_a_mount_inside() {
    let mounted = with_mount_inside("proc");
    mounted.notifier().inval_entry(INodeNo(1), "proc".as_ref()).unwrap();
    assert!(!mounted.path("proc/in tmpfs").exists());
}

/// A directory that comes back with another inode number loses its mount: a restore keeps directories'
/// numbers, and so does `/.karapace`.
#[test]
fn a_new_inode_number_drops_a_mount_inside() {
    let mounted = with_mount_inside("proc");
    mounted.toy.lock().take(1, b"proc").unwrap();
    mounted.toy.add(1, "proc", FileType::Directory, 0o755, b"");
    mounted.expire(1, "proc").unwrap();
    assert!(!mounted.path("proc/in tmpfs").exists());
}

/// FUSE_NOTIFY_INVAL_INODE: attributes and pages are requested again.
#[test]
fn an_invalidated_inode_is_read_again() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", b"old");
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"old");
    mounted.toy.lock().node(ino).data = b"newer".to_vec();
    mounted.notifier().inval_inode(INodeNo(ino), 0, 0).unwrap();
    mounted.toy.clear();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"newer");
    assert!(mounted.toy.count(Op::GetAttr) >= 1 && mounted.toy.count(Op::Read) >= 1);
    assert_eq!(mounted.toy.count(Op::Lookup), 0);
}

/// FUSE_NOTIFY_INVAL_INODE with a negative offset: invalidates only attributes, pages stay.
#[test]
fn attributes_are_invalidated_alone() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", b"text");
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"text");
    mounted.toy.lock().node(ino).perm = 0o600;
    mounted.notifier().inval_inode(INodeNo(ino), -1, 0).unwrap();
    mounted.toy.clear();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(mounted.path("f")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"text");
    assert_eq!(mounted.toy.count(Op::Read), 0);
}

/// An invalidation waits for operations in progress in that directory, so the sender must not hold a lock
/// that a reply needs. Meanwhile all other requests are served.
#[test]
fn an_invalidation_waits_for_the_directory() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"");
    mounted.toy.add(1, "other", FileType::Directory, 0o755, b"");
    assert!(mounted.path("f").exists() && mounted.path("other").exists());
    mounted.toy.hold(Op::MkDir, "slow");
    let slow = mounted.path("slow");
    let making = std::thread::spawn(move || fs::create_dir(slow));
    mounted.toy.wait_held();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| mounted.expire(1, "f"));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!sending.is_finished(), "the kernel no longer waits here: say so in KERNEL.md");
        fs::create_dir(mounted.path("other/fast")).unwrap();
        mounted.toy.release();
        sending.join().unwrap().unwrap();
    });
    making.join().unwrap().unwrap();
}
