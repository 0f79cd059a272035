//! Requests that no longer arrive once answered with ENOSYS: OPEN, RELEASE, OPENDIR, CREATE and FLUSH.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};

use crate::kernel::harness::Mounted;
use crate::kernel::toy::Op;

/// FUSE_NO_OPEN_SUPPORT: one OPEN, and never a RELEASE or FLUSH.
#[test]
fn open_is_asked_once() {
    let mounted = Mounted::new();
    for index in 0..20 {
        mounted.toy.file(&format!("f{index}"), b"text");
    }
    for index in 0..20 {
        let mut text = String::new();
        File::open(mounted.path(&format!("f{index}"))).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }
    assert_eq!(mounted.toy.count(Op::Open), 1);
    assert_eq!(mounted.toy.count(Op::Release), 0);
    assert!(mounted.toy.count(Op::Flush) <= 1);
}

/// FUSE_NO_OPENDIR_SUPPORT: one OPENDIR, no RELEASEDIR.
#[test]
fn opendir_is_asked_once() {
    let mounted = Mounted::new();
    for name in ["a", "b", "c"] {
        fs::create_dir(mounted.path(name)).unwrap();
        assert_eq!(fs::read_dir(mounted.path(name)).unwrap().count(), 0);
    }
    assert_eq!(mounted.toy.count(Op::OpenDir), 1);
    assert_eq!(mounted.toy.count(Op::ReleaseDir), 0);
}

/// ENOSYS to CREATE: the kernel creates the file with MKNOD and opens it without asking.
#[test]
fn create_becomes_mknod() {
    let mounted = Mounted::new();
    for index in 0..5 {
        let mut file = File::create(mounted.path(&format!("new{index}"))).unwrap();
        file.write_all(b"content").unwrap();
    }
    assert_eq!(mounted.toy.count(Op::Create), 1);
    assert_eq!(mounted.toy.count(Op::MkNod), 5);
    assert_eq!(mounted.toy.count(Op::Open), 1);
    let again = OpenOptions::new().write(true).create_new(true).open(mounted.path("new0"));
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

/// Without an OPEN to carry it, O_TRUNC arrives as SETATTR with size 0.
#[test]
fn truncation_at_open_is_a_setattr() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", b"old content");
    drop(OpenOptions::new().write(true).truncate(true).open(mounted.path("f")).unwrap());
    assert_eq!(
        mounted.toy.seen(Op::SetAttr).first().map(|seen| (seen.ino, seen.set.2)),
        Some((ino, Some(0)))
    );
    assert_eq!(fs::metadata(mounted.path("f")).unwrap().len(), 0);
}

/// close(2) sends one FLUSH in the lifetime of the mount.
#[test]
fn flush_is_asked_once() {
    let mounted = Mounted::new();
    for name in ["a", "b", "c"] {
        fs::write(mounted.path(name), b"x").unwrap();
    }
    assert_eq!(mounted.toy.count(Op::Flush), 1);
}

/// On a mount without default_permissions, each access(2) is sent to the server; opening a file sends no
/// ACCESS.
#[test]
fn access_is_asked_each_time() {
    use nix::unistd::{AccessFlags, access};
    let mounted = Mounted::with("user_id=0,group_id=0,allow_other");
    mounted.toy.file("f", b"");
    let path = mounted.path("f");
    fs::read(&path).unwrap();
    assert_eq!(mounted.toy.count(Op::Access), 0);
    for _ in 0..2 {
        access(&path, AccessFlags::R_OK).unwrap();
        assert_eq!(access(&path, AccessFlags::X_OK), Err(nix::errno::Errno::EACCES));
    }
    assert_eq!(mounted.toy.count(Op::Access), 4);
}

/// Requests that normally carry a file handle also arrive without an open: LSEEK, FALLOCATE, FSYNC.
#[test]
fn operations_on_handles_need_no_open() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", &[1; 8192]);
    let file = OpenOptions::new().read(true).write(true).open(mounted.path("f")).unwrap();
    let data = nix::unistd::lseek(&file, 0, nix::unistd::Whence::SeekData).unwrap();
    assert_eq!(data, 4096, "SEEK_DATA is the server's answer, not the kernel's default");
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 16_384).unwrap();
    file.sync_all().unwrap();
    for op in [Op::LSeek, Op::FAllocate, Op::FSync] {
        assert_eq!(mounted.toy.seen(op).first().map(|seen| seen.ino), Some(ino), "{op:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), 16_384, "FALLOCATE's growth is seen");
}

/// ENOSYS to COPY_FILE_RANGE: the kernel copies by reading and writing.
#[test]
fn copy_file_range_falls_back() {
    let mounted = Mounted::new();
    mounted.toy.file("from", b"some text");
    let mut from = File::open(mounted.path("from")).unwrap();
    let mut to = File::create(mounted.path("to")).unwrap();
    // Between two files the standard library uses copy_file_range(2).
    assert_eq!(std::io::copy(&mut from, &mut to).unwrap(), 9);
    assert_eq!(mounted.toy.count(Op::CopyFileRange), 1);
    assert_eq!(fs::read(mounted.path("to")).unwrap(), b"some text");
}
