//! What the kernel caches of names: entries, absent entries, link targets, listings.

use std::fs;
use std::os::unix::fs::MetadataExt;

use fuser::{FileType, INodeNo};

use crate::kernel::harness::Mounted;
use crate::kernel::toy::Op;

/// A long-lived entry with attributes is not requested again.
#[test]
fn a_cached_entry_sends_nothing() {
    let mounted = Mounted::new();
    let dir = mounted.toy.add(1, "dir", FileType::Directory, 0o755, b"");
    mounted.toy.add(dir, "f", FileType::RegularFile, 0o644, b"text");
    let first = fs::metadata(mounted.path("dir/f")).unwrap();
    assert_eq!(mounted.toy.count(Op::Lookup), 2);
    mounted.toy.clear();
    for _ in 0..5 {
        assert_eq!(fs::metadata(mounted.path("dir/f")).unwrap().ino(), first.ino());
    }
    assert!(mounted.toy.all().is_empty(), "{:?}", mounted.toy.all());
}

/// The number in the attributes is used unchanged as the node id of later requests, including the view index
/// in the high bits.
#[test]
fn node_ids_are_kept_whole() {
    let mounted = Mounted::new();
    let high = (5 << 48) | 77;
    mounted.toy.file("f", b"x");
    {
        let mut inner = mounted.toy.lock();
        let ino = inner.node(1).children[b"f".as_slice()];
        let node = inner.nodes.remove(&ino).unwrap();
        inner.nodes.insert(high, node);
        inner.node(1).children.insert(b"f".as_slice().into(), high);
    }
    assert_eq!(fs::metadata(mounted.path("f")).unwrap().ino(), high);
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"x");
    assert_eq!(mounted.toy.seen(Op::Read)[0].ino, high);
}

/// Inode number 0 with a time-to-live: the absence is cached until the file is created.
#[test]
fn an_absent_name_is_remembered() {
    let mounted = Mounted::new();
    for _ in 0..5 {
        assert!(!mounted.path("nothing").exists());
    }
    assert_eq!(mounted.toy.count(Op::Lookup), 1);
    fs::write(mounted.path("nothing"), b"now there").unwrap();
    assert_eq!(fs::read(mounted.path("nothing")).unwrap(), b"now there");
    fs::remove_file(mounted.path("nothing")).unwrap();
    assert!(!mounted.path("nothing").exists());
}

/// FUSE_CACHE_SYMLINKS: one READLINK.
#[test]
fn a_link_target_is_kept() {
    let mounted = Mounted::new();
    mounted.toy.add(1, "link", FileType::Symlink, 0o777, b"target");
    for _ in 0..5 {
        assert_eq!(fs::read_link(mounted.path("link")).unwrap().to_str(), Some("target"));
    }
    assert_eq!(mounted.toy.count(Op::ReadLink), 1);
}

/// FUSE_DO_READDIRPLUS without the adaptive flag: every listing is a READDIRPLUS and saves each entry's
/// LOOKUP.
#[test]
fn a_listing_brings_the_attributes() {
    let mounted = Mounted::new();
    for index in 0..50 {
        mounted.toy.file(&format!("f{index}"), b"text");
    }
    for entry in fs::read_dir(mounted.path("")).unwrap() {
        assert_eq!(fs::metadata(entry.unwrap().path()).unwrap().len(), 4);
    }
    assert_eq!(mounted.toy.count(Op::ReadDir), 0);
    assert_eq!(mounted.toy.count(Op::Lookup), 0);
    assert!(
        mounted.toy.seen(Op::GetAttr).iter().all(|seen| seen.ino == 1),
        "{:?}",
        mounted.toy.seen(Op::GetAttr)
    );
}

/// Once OPENDIR is answered with ENOSYS, the kernel keeps a listing that was read to its end. A name that
/// appears without its knowledge stays missing until the directory's inode is invalidated.
#[test]
fn a_listing_is_kept_until_the_directory_is_invalidated() {
    let mounted = Mounted::new();
    let dir = mounted.toy.add(1, "dir", FileType::Directory, 0o755, b"");
    mounted.toy.add(dir, "one", FileType::RegularFile, 0o644, b"");
    let listed = || fs::read_dir(mounted.path("dir")).unwrap().count();
    assert_eq!((listed(), listed()), (1, 1));
    mounted.toy.add(dir, "two", FileType::RegularFile, 0o644, b"");
    mounted.toy.clear();
    assert_eq!(listed(), 1);
    assert_eq!(mounted.toy.count(Op::ReadDirPlus), 0);
    mounted.expire(dir, "two").unwrap();
    assert_eq!(listed(), 1, "the kernel does not know the name");
    mounted.notifier().inval_inode(INodeNo(dir), 0, 0).unwrap();
    assert_eq!(listed(), 2);
}

/// Each READDIRPLUS entry is one reference, returned by FORGET like that of a LOOKUP.
#[test]
fn a_listing_counts_as_a_lookup() {
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", b"");
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 1);
    fs::remove_file(mounted.path("f")).unwrap();
    assert!(mounted.toy.wait(|inner| inner.node(ino).refs == 0), "FORGET gives back what READDIRPLUS took");
    assert_eq!(mounted.toy.count(Op::Lookup), 0);
}

/// What the kernel has cached below a directory moves with it: a rename causes no LOOKUP.
#[test]
fn a_renamed_directory_keeps_its_entries() {
    let mounted = Mounted::new();
    let dir = mounted.toy.add(1, "old", FileType::Directory, 0o755, b"");
    mounted.toy.add(dir, "f", FileType::RegularFile, 0o644, b"text");
    assert!(mounted.path("old/f").exists());
    fs::rename(mounted.path("old"), mounted.path("new")).unwrap();
    mounted.toy.clear();
    assert_eq!(fs::metadata(mounted.path("new/f")).unwrap().len(), 4);
    assert!(!mounted.path("old").exists());
    assert!(mounted.toy.seen(Op::Lookup).iter().all(|seen| seen.name == b"old"), "{:?}", mounted.toy.all());
}

/// FUSE_PARALLEL_DIROPS: a slow look-up does not block another one in the same directory.
#[test]
fn lookups_in_one_directory_run_side_by_side() {
    let mounted = Mounted::new();
    mounted.toy.file("slow", b"");
    mounted.toy.file("fast", b"");
    mounted.toy.hold(Op::Lookup, "slow");
    let slow = mounted.path("slow");
    let waiting = std::thread::spawn(move || fs::metadata(slow).map(|_| ()));
    mounted.toy.wait_held();
    assert!(mounted.path("fast").exists());
    assert!(!waiting.is_finished());
    mounted.toy.release();
    waiting.join().unwrap().unwrap();
}

/// The kernel passes on names longer than 255 bytes: the server must check the length.
#[test]
fn long_names_are_passed_on() {
    let mounted = Mounted::new();
    let error = fs::metadata(mounted.path(&"n".repeat(300))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    assert_eq!(mounted.toy.count(Op::Lookup), 1);
}
