//! Attributes that never expire, and what makes the kernel request them again.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

use crate::kernel::harness::{Mounted, NOBODY};
use crate::kernel::toy::Op;

/// After write(2), create, unlink, link and rename the kernel requests the changed attributes again: size,
/// times, link counts.
#[test]
fn what_an_operation_changes_is_asked_again() {
    let mounted = Mounted::new();
    let path = mounted.path("f");
    mounted.toy.file("f", b"text");
    let before = fs::metadata(&path).unwrap();
    let parent = fs::metadata(mounted.path("")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b" more").unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.len(), 9);
    assert!(after.modified().unwrap() > before.modified().unwrap(), "the server's time of the write is seen");
    fs::hard_link(&path, mounted.path("g")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    assert!(fs::metadata(mounted.path("")).unwrap().modified().unwrap() > parent.modified().unwrap());
    fs::remove_file(mounted.path("g")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().nlink(), 1);
}

/// Reads from the page cache send nothing to the server, so access times cannot be maintained.
#[test]
fn reading_sends_no_access_time() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    for _ in 0..3 {
        assert_eq!(fs::read(mounted.path("f")).unwrap(), b"text");
    }
    assert_eq!(mounted.toy.count(Op::SetAttr), 0);
}

/// FUSE_HANDLE_KILLPRIV_V2 sets SB_NOSEC: a file's `security.capability` is requested at most once, however
/// often it is written.
#[test]
fn writes_do_not_ask_for_capabilities() {
    let mounted = Mounted::new();
    let mut file = fs::File::create(mounted.path("f")).unwrap();
    for _ in 0..50 {
        file.write_all(b"line\n").unwrap();
    }
    assert!(mounted.toy.count(Op::GetXattr) <= 1, "{:?}", mounted.toy.seen(Op::GetXattr));
    assert_eq!(mounted.toy.count(Op::Write), 50);
}

/// FUSE_HANDLE_KILLPRIV_V2: a write by a user who may not keep set-user-id has a flag that says so; root's
/// has not.
#[test]
fn an_ordinary_users_write_asks_to_clear_suid() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"program");
    fs::set_permissions(mounted.path("f"), fs::Permissions::from_mode(0o4777)).unwrap();
    fs::OpenOptions::new().write(true).open(mounted.path("f")).unwrap().write_all(b"root").unwrap();
    assert!(mounted.shell_as(NOBODY, "printf user 1<>f").status.success());
    let kill = fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID;
    let flags: Vec<bool> =
        mounted.toy.seen(Op::Write).iter().map(|seen| seen.write.unwrap().2.contains(kill)).collect();
    assert_eq!(flags, [false, true]);
}

/// FUSE_HANDLE_KILLPRIV_V2: truncate and chown leave the mode to the server.
#[test]
fn truncate_and_chown_leave_the_mode_to_the_server() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"program");
    fs::set_permissions(mounted.path("f"), fs::Permissions::from_mode(0o4777)).unwrap();
    mounted.toy.clear();
    assert!(mounted.shell_as(NOBODY, "truncate -s 3 f").status.success());
    std::os::unix::fs::chown(mounted.path("f"), Some(7), None).unwrap();
    let set: Vec<_> = mounted.toy.seen(Op::SetAttr).iter().map(|seen| seen.set).collect();
    assert_eq!(set, [(None, None, Some(3)), (None, Some(7), None)]);
}

/// statfs(2) is never cached.
#[test]
fn free_space_is_asked_each_time() {
    let mounted = Mounted::new();
    for _ in 0..3 {
        nix::sys::statfs::statfs(&mounted.path("")).unwrap();
    }
    assert_eq!(mounted.toy.count(Op::StatFs), 3);
}
