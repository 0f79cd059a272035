//! File content: the page cache, write-through, mappings, and inodes without a name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use fuser::INodeNo;

use crate::kernel::harness::{Mounted, child_argument};
use crate::kernel::sys::Mapping;
use crate::kernel::toy::Op;

/// Pages stay cached after close: without OPEN there is no FOPEN_KEEP_CACHE, and none is needed.
#[test]
fn pages_are_kept_over_close() {
    let mounted = Mounted::new();
    mounted.toy.file("f", &[7; 10_000]);
    assert_eq!(fs::read(mounted.path("f")).unwrap().len(), 10_000);
    mounted.toy.clear();
    for _ in 0..3 {
        assert_eq!(fs::read(mounted.path("f")).unwrap().len(), 10_000);
    }
    assert_eq!(mounted.toy.count(Op::Read) + mounted.toy.count(Op::Lookup), 0);
    // The first READ invalidated the cached access time: one GETATTR, and none after it.
    assert!(mounted.toy.all().len() <= 1, "{:?}", mounted.toy.all());
}

/// No write-back cache: when write(2) returns, the server has the bytes.
#[test]
fn a_write_has_arrived_when_it_returns() {
    let mounted = Mounted::new();
    let mut file = File::create(mounted.path("f")).unwrap();
    let ino = file.metadata().unwrap().ino();
    for step in 1..=10 {
        file.write_all(&[step; 1000]).unwrap();
        assert_eq!(mounted.toy.lock().node(ino).data.len(), 1000 * usize::from(step));
    }
}

/// A large write(2) arrives in large pieces: FUSE_BIG_WRITES and FUSE_MAX_PAGES take effect.
#[test]
fn large_writes_are_not_cut_into_pages() {
    let mounted = Mounted::new();
    File::create(mounted.path("f")).unwrap().write_all(&vec![1; 1 << 20]).unwrap();
    let pieces: Vec<usize> = mounted.toy.seen(Op::Write).iter().map(|seen| seen.write.unwrap().1).collect();
    assert_eq!(pieces.iter().sum::<usize>(), 1 << 20);
    assert!(pieces.len() <= 8, "{pieces:?}");
}

/// An inode without a name lives, under the same number, until its last descriptor is closed; then it is
/// forgotten.
#[test]
fn an_unlinked_open_file_lives_until_forget() {
    let mounted = Mounted::new();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mounted.path("f"))
        .unwrap();
    let ino = file.metadata().unwrap().ino();
    fs::remove_file(mounted.path("f")).unwrap();
    mounted.toy.clear();
    file.write_all(b"still here").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(mounted.toy.seen(Op::Write)[0].ino, ino);
    assert_eq!(mounted.toy.lock().forgotten(ino), 0);
    drop(file);
    assert!(mounted.toy.wait(|inner| inner.node(ino).refs == 0), "FORGET follows the last close");
}

/// A store through a shared mapping has arrived when msync(MS_SYNC) returns.
#[test]
fn a_mapped_store_arrives_with_msync() {
    mapped("kernel::data::child_msync");
}

/// A store through a shared mapping has arrived when munmap returns, even if the descriptor is closed long
/// before.
#[test]
fn a_mapped_store_arrives_with_munmap() {
    mapped("kernel::data::child_munmap");
}

fn mapped(child: &str) {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", &[b'.'; 4096]);
    mounted.run_child(child, &mounted.path("f"));
    assert!(mounted.toy.lock().node(ino).data.starts_with(b"mapped"), "the child saw its call return");
    let flags = mounted.toy.seen(Op::Write)[0].write.unwrap().2;
    assert!(flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE), "marked as coming from the page cache");
}

/// The kernel sends LSEEK without writing back its dirty pages. If told to drop these pages before the LSEEK
/// is answered, it writes them back, and the WRITE is answered meanwhile.
#[test]
fn a_mapped_store_arrives_with_a_notification_under_lseek() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", &[b'.'; 8192]);
    mounted.toy.hold(Op::LSeek, "");
    let script = "python3 -c \"import mmap, os; fd = os.open('f', os.O_RDWR); m = mmap.mmap(fd, 0); m[0:6] = b'mapped'; \
                  os.lseek(fd, 0, os.SEEK_DATA); print(m[0:6])\"";
    std::thread::scope(|scope| {
        let output = scope.spawn(|| mounted.shell_as(0, script));
        mounted.toy.wait_held();
        assert_eq!(mounted.toy.count(Op::Write), 0, "the LSEEK alone brings nothing");
        mounted.notifier().inval_inode(INodeNo(ino), 0, 4096).unwrap();
        assert!(mounted.toy.lock().node(ino).data.starts_with(b"mapped"), "it has arrived");
        mounted.toy.release();
        let output = output.join().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "b'mapped'\n");
    });
}

/// Runs in a child process. `push` gets the mapping; its result lives until the check.
fn child_store<T>(push: impl FnOnce(Mapping) -> T) {
    let path = child_argument();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let _pushed = push(Mapping::store(file, 0, b"mapped").unwrap());
    // Reads past the page cache: the server's data, not what this process wrote.
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
    let mut seen = [0; 6];
    direct.unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"mapped");
}

#[test]
#[ignore = "run by a_mapped_store_arrives_with_msync"]
fn child_msync() {
    child_store(|mapping| mapping.sync().map(|()| mapping).unwrap());
}

#[test]
#[ignore = "run by a_mapped_store_arrives_with_munmap"]
fn child_munmap() {
    child_store(drop);
}

/// The kernel handles record locks and flock(2) itself: no request is sent, and they exclude each other on
/// one mount.
#[test]
fn locks_stay_in_the_kernel() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"");
    let first = File::open(mounted.path("f")).unwrap();
    let second = File::open(mounted.path("f")).unwrap();
    first.lock().unwrap();
    assert!(second.try_lock().is_err());
    drop(first);
    second.try_lock().unwrap();
}
