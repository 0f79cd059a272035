//! Promises of the view that need no mount, one by one.

#[allow(dead_code, reason = "the model test uses the rest")]
mod reference;

use std::path::PathBuf;
use std::sync::Arc;

use karapace_fs::attr::{Caller, HeadRef, Invalidation, SetAttr, SetTime};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::inode::{Ino, ROOT_INO, Timestamp};
use karapace_store::tree::Trees;

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

struct Env {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    view: View,
    commits: u8,
}

impl Env {
    fn new() -> Env {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let base = head(reference::empty_root(&store), 0);
        let view = open(&store, dir.path().join("upper"), base);
        Env { dir, store, view, commits: 0 }
    }

    fn reopen(&mut self) {
        self.view = open(&self.store, self.dir.path().join("upper"), self.view.head());
    }

    fn commit(&mut self) -> HeadRef {
        self.commits += 1;
        let n = self.commits;
        self.view.commit(&mut |sealed| Ok(head(sealed.root, n))).unwrap().expect("something to commit")
    }

    fn restore(&self, to: HeadRef) -> Vec<Invalidation> {
        let generation = self.view.clean_generation().unwrap().expect("committed before");
        self.view.restore(to, generation).unwrap()
    }

    /// A file in the root; its reference is kept, as by a program that has it open.
    fn file(&self, name: &str, bytes: &[u8]) -> Ino {
        let ino = self.view.mknod(&CALLER, ROOT_INO, name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().ino;
        self.view.write(ino, 0, bytes, false).unwrap();
        ino
    }

    fn read(&self, ino: Ino) -> Vec<u8> {
        let mut buf = Vec::new();
        self.view.read(ino, 0, 64 << 20, &mut buf).unwrap();
        buf
    }

    fn names_from(&self, cookie: u64, most: usize) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        self.view
            .readdir(ROOT_INO, cookie, false, &mut |item| {
                let room = found.len() < most;
                if room {
                    found.push((item.cookie, item.name.to_vec()));
                }
                room
            })
            .unwrap();
        found
    }
}

fn head(root: karapace_store::id::ObjectId, n: u8) -> HeadRef {
    HeadRef { layer: LayerHash::from_bytes([n; 32]), record: RecordId::from_bytes([n; 32]), root }
}

fn open(store: &Arc<Store>, upper: PathBuf, head: HeadRef) -> View {
    let trees = Arc::new(Trees::new(store.clone()));
    View::open(store, &trees, &upper, head, false).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(37).wrapping_add((i >> 16) as u8).wrapping_add(seed) | 1)
        .collect()
}

#[test]
fn a_listing_goes_on_where_it_was_while_entries_come_and_go() {
    let mut env = Env::new();
    for i in 0..200 {
        env.file(&format!("stays{i}"), b"");
        env.file(&format!("goes{i}"), b"");
    }
    env.commit();
    let mut seen = env.names_from(0, 50);
    // In the middle of the listing: half of the entries go, others come, all of it is committed.
    for i in 0..200 {
        env.view.unlink(ROOT_INO, format!("goes{i}").as_bytes()).unwrap();
        env.file(&format!("comes{i}"), b"");
    }
    env.commit();
    while let Some((cookie, _)) = seen.last() {
        let more = env.names_from(*cookie, 50);
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    for i in 0..200 {
        let name = format!("stays{i}").into_bytes();
        assert_eq!(seen.iter().filter(|(_, n)| *n == name).count(), 1, "stays{i}");
    }
}

#[test]
fn an_open_file_keeps_its_content_over_a_restore() {
    let mut env = Env::new();
    let held = env.file("f", b"one");
    let first = env.commit();
    env.view.write(held, 0, b"TWO", false).unwrap();
    env.commit();
    let invalid = env.restore(first);
    assert!(invalid.contains(&Invalidation::Entry { parent: ROOT_INO, name: b"f"[..].into() }));
    let now = env.view.lookup(ROOT_INO, b"f").unwrap();
    assert_ne!(now.ino, held, "another content has another number");
    assert_eq!(env.read(now.ino), b"one");
    assert_eq!(env.read(held), b"TWO");
    // It can be written still, without a trace in the restored file.
    env.view.write(held, 3, b"!", false).unwrap();
    assert_eq!(env.read(held), b"TWO!");
    assert_eq!(env.read(now.ino), b"one");
    env.view.forget(held, 1);
    assert!(env.view.diff().unwrap().is_empty());
}

#[test]
fn inode_numbers_outlive_commit_reopening_and_restore() {
    let mut env = Env::new();
    let a = env.file("a", b"same");
    let b = env.file("b", b"first");
    let first = env.commit();
    env.reopen();
    assert_eq!(env.view.lookup(ROOT_INO, b"a").unwrap().ino, a);
    env.view.write(b_of(&env), 0, b"other", false).unwrap();
    env.commit();
    assert_eq!(b_of(&env), b);
    env.restore(first);
    assert_eq!(env.view.lookup(ROOT_INO, b"a").unwrap().ino, a);
}

fn b_of(env: &Env) -> Ino {
    env.view.lookup(ROOT_INO, b"b").unwrap().ino
}

#[test]
fn a_damaged_object_is_an_error_and_the_rest_goes_on() {
    let mut env = Env::new();
    env.file("small", b"just a few bytes");
    env.file("large", &pattern(3 << 20, 5));
    env.file("fine", b"nothing wrong here");
    env.commit();
    env.reopen();
    let objects = env.dir.path().join("store/store/objects");
    for bucket in std::fs::read_dir(objects).unwrap() {
        for object in std::fs::read_dir(bucket.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = match bytes.len() {
                16 => 3,
                n if n == 3 << 20 => (2 << 20) + 7,
                _ => continue,
            };
            bytes[at] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let ino = |name: &[u8]| env.view.lookup(ROOT_INO, name).unwrap().ino;
    let mut buf = Vec::new();
    let errno = |r: Result<(), karapace_fs::Error>| r.unwrap_err().errno();
    assert_eq!(errno(env.view.read(ino(b"small"), 0, 100, &mut buf)), libc::EIO);
    env.view.read(ino(b"large"), 0, 1 << 20, &mut buf).unwrap();
    assert_eq!(buf, pattern(3 << 20, 5)[..1 << 20], "blocks that are whole are given out");
    assert_eq!(errno(env.view.read(ino(b"large"), 2 << 20, 4096, &mut buf)), libc::EIO);
    assert_eq!(env.read(ino(b"fine")), b"nothing wrong here");
}

#[test]
fn a_write_into_a_large_lower_file_brings_up_one_block() {
    let mut env = Env::new();
    env.file("big", &pattern(8 << 20, 9));
    env.commit();
    env.reopen();
    let ino = env.view.lookup(ROOT_INO, b"big").unwrap().ino;
    env.view.write(ino, 5_000_000, b"x", false).unwrap();
    assert_eq!(env.view.stats().dirty_bytes, 64 << 10);
    let mut expected = pattern(8 << 20, 9);
    expected[5_000_000] = b'x';
    assert!(env.read(ino) == expected);
    env.reopen();
    let ino = env.view.lookup(ROOT_INO, b"big").unwrap().ino;
    assert!(env.read(ino) == expected);
}

#[test]
fn holes_and_data_are_found() {
    let mut env = Env::new();
    let ino = env.file("sparse", b"");
    env.view.write(ino, 4 << 20, &pattern(100_000, 1), false).unwrap();
    let ask = |env: &Env| {
        let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
        let start = env.view.lseek(ino, 0, data).unwrap();
        (env.view.lseek(ino, 0, hole).unwrap(), start, env.view.lseek(ino, start, hole).unwrap())
    };
    let end = (4 << 20) + 100_000;
    assert_eq!(ask(&env), (0, 4 << 20, end));
    env.commit();
    assert_eq!(ask(&env), (0, 4 << 20, end));
    assert_eq!(env.view.lseek(ino, end, libc::SEEK_DATA).unwrap_err().errno(), libc::ENXIO);
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
