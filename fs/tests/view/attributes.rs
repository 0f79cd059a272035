//! Attributes: times and extended attributes.

use std::sync::Arc;

use karapace_fs::attr::{SetAttr, SetTime};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::batch::Batch;
use karapace_store::inode::{Body, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use karapace_store::root::Root;
use karapace_store::tree::{Entry, Target, Trees, write_dir};

use crate::view::support::{Env, head, open};

/// Older stores hold symlinks with the modes found in archives. They stay as they are, and are not visible.
#[test]
fn a_symbolic_link_has_the_one_mode_of_links_whatever_the_tree_says() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let zero = Timestamp { secs: 0, nanos: 0 };
    let record = |ino, mode, body| InodeRecord {
        ino,
        mode,
        nlink: if ino == ROOT_INO { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        xattrs: Xattrs::default(),
        body,
    };
    let mut batch = Batch::new(&store).unwrap();
    let link = record(2, libc::S_IFLNK | 0o644, Body::Symlink(b"target"[..].into()));
    let entry = Entry { name: b"link"[..].into(), target: Target::Inode(link) };
    let tree = write_dir(&mut batch, &mut [entry].into_iter()).unwrap().tree;
    let inode = record(ROOT_INO, libc::S_IFDIR | 0o755, Body::Directory { tree, links: false });
    let root = Root { inode, links: None, next_ino: 3 }.write(&mut batch).unwrap();
    batch.commit().unwrap();
    let view = open(&store, dir.path().join("store/upper"), head(root, 0));
    let attr = view.lookup(ROOT_INO, b"link").unwrap();
    assert_eq!((attr.mode, attr.size), (libc::S_IFLNK | 0o777, 6));
    // Kernels before 6.6 let this reach the file system.
    let mode = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(view.setattr(attr.ino, &mode).unwrap_err().errno(), libc::EOPNOTSUPP);
    let owner = SetAttr { uid: Some(7), ..SetAttr::default() };
    assert_eq!(view.setattr(attr.ino, &owner).unwrap().mode, libc::S_IFLNK | 0o777);
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    let mut env = Env::new();
    let ino = env.file("f", b"text");
    let (a, m) = (Timestamp { secs: 1, nanos: 2 }, Timestamp { secs: 1_600_000_000, nanos: 123_456_789 });
    let set = SetAttr { atime: Some(SetTime::At(a)), mtime: Some(SetTime::At(m)), ..SetAttr::default() };
    env.view.setattr(ino, &set).unwrap();
    let check = |env: &Env| {
        let attr = env.view.lookup(ROOT_INO, b"f").unwrap();
        assert_eq!((attr.atime, attr.mtime), (a, m));
    };
    check(&env);
    env.reopen();
    check(&env);
    let first = env.commit();
    check(&env);
    env.view.write(ino, 0, b"more", false).unwrap();
    env.commit();
    env.restore(first);
    check(&env);
}

#[test]
fn extended_attributes_have_the_limits_and_namespaces_of_linux() {
    let env = Env::new();
    let ino = env.file("f", b"");
    let set =
        |name: &[u8], len: usize| env.view.setxattr(ino, name, &vec![b'v'; len], 0).map_err(|e| e.errno());
    let name_of = |len: usize| [b"user.", &vec![b'n'; len - 5][..]].concat();
    assert_eq!(set(&name_of(255), 1), Ok(()));
    assert_eq!(set(&name_of(256), 1), Err(libc::ERANGE));
    assert_eq!(set(b"user.large", 64 << 10), Ok(()));
    assert_eq!(set(b"user.large", (64 << 10) + 1), Err(libc::E2BIG));
    assert_eq!(set(b"user.", 1), Err(libc::EINVAL));
    for name in [&b"trusted.a"[..], b"security.a"] {
        assert_eq!(set(name, 0), Ok(()));
    }
    for name in [&b"system.a"[..], b"other.a", b"nodot"] {
        assert_eq!(set(name, 1), Err(libc::EOPNOTSUPP));
        assert_eq!(env.view.getxattr(ino, name).unwrap_err().errno(), libc::EOPNOTSUPP);
        assert_eq!(env.view.removexattr(ino, name).unwrap_err().errno(), libc::EOPNOTSUPP);
    }
    assert_eq!(env.view.removexattr(ino, b"user.none").unwrap_err().errno(), libc::ENODATA);
    env.view.removexattr(ino, b"system.posix_acl_access").expect("as on ext4, one that is not there");
}

/// Refuses more names than listxattr(2) could return, and more than 1 MiB in all; existing attributes stay.
#[test]
fn extended_attributes_end_with_enospc() {
    let env = Env::new();
    for (value, least, most) in [(0, 200, 260), (60_000, 10, 17)] {
        let ino = env.file(&format!("f{value}"), b"");
        let name = |i: i32| format!("user.{i:0>250}").into_bytes();
        let set = |i: i32| env.view.setxattr(ino, &name(i), &vec![b'v'; value], 0);
        let stop = (0..1000).find(|i| set(*i).is_err()).expect("there is a limit");
        assert!((least..=most).contains(&stop), "{stop} attributes");
        assert_eq!(set(stop).unwrap_err().errno(), libc::ENOSPC);
        assert_eq!(env.view.listxattr(ino, true).unwrap().len(), stop as usize * 256);
        env.view.removexattr(ino, &name(0)).unwrap();
        set(stop).unwrap();
    }
}

/// Each change is journalled and replayed separately: an inode with many attributes is not rewritten for
/// each.
#[test]
fn many_extended_attributes_cost_what_changes() {
    let mut env = Env::new();
    let ino = env.file("f", b"");
    let name = |i: u32| format!("user.{i}").into_bytes();
    let value = |i: u32| vec![i as u8; 100];
    for i in 0..2000 {
        env.view.setxattr(ino, &name(i), &value(i), 0).unwrap();
    }
    for i in (0..2000).step_by(3) {
        env.view.removexattr(ino, &name(i)).unwrap();
    }
    env.view.setxattr(ino, &name(1), b"replaced", libc::XATTR_REPLACE).unwrap();
    let journal = std::fs::metadata(env.dir.path().join("store/upper/journal")).unwrap().len();
    assert!(journal < 2 << 20, "{journal} bytes of journal");
    let ctime = env.view.getattr(ino).unwrap().ctime;
    env.reopen();
    assert_eq!(env.view.lookup(ROOT_INO, b"f").unwrap().ctime, ctime);
    for i in 0..2000 {
        let expected = match i {
            1 => Ok(b"replaced".to_vec()),
            i if i % 3 == 0 => Err(libc::ENODATA),
            i => Ok(value(i)),
        };
        assert_eq!(env.view.getxattr(ino, &name(i)).map_err(|e| e.errno()), expected, "{i}");
    }
}

/// As a frozen environment into which nothing was ever written.
#[test]
fn statfs_of_a_read_only_view_needs_no_upper() {
    let env = Env::new();
    let trees = Arc::new(Trees::new(env.store.clone()));
    let absent = env.dir.path().join("store/absent");
    let view = View::open(&env.store, &trees, &absent, env.view.head(), true).unwrap();
    assert_eq!(view.statfs().unwrap().blocks, env.view.statfs().unwrap().blocks);
    assert!(!absent.exists());
}
