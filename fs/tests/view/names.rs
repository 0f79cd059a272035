//! Names: hard links, and directories that replace those of the lower view.

use std::collections::BTreeSet;

use karapace_fs::attr::{RenameMode, SetAttr};
use karapace_store::inode::{Ino, ROOT_INO};

use crate::view::support::{CALLER, Env};

fn errno<T: std::fmt::Debug>(result: Result<T, karapace_fs::Error>) -> i32 {
    result.unwrap_err().errno()
}

fn names(env: &Env, dir: Ino) -> BTreeSet<Vec<u8>> {
    let mut names = BTreeSet::new();
    let listed = env.view.readdir(dir, 0, false, &mut |item| names.insert(item.name.to_vec()));
    listed.unwrap();
    names.retain(|name| name != b"." && name != b"..");
    names
}

/// One inode with names in the lower view and in the upper: it stays the same across copy-up, commit and a
/// new mount.
#[test]
fn hard_links_across_lower_and_upper() {
    let mut env = Env::new();
    let dir = env.view.mkdir(&CALLER, ROOT_INO, b"dir", 0o755).unwrap().ino;
    let ino = env.file("a", b"one");
    env.view.link(ino, dir, b"b").unwrap();
    env.commit();
    env.reopen();
    let check = |env: &Env, nlink: u32, text: &[u8], at: &[(&[u8], &[u8])]| {
        for (dir, name) in at {
            let dir = if dir.is_empty() { ROOT_INO } else { env.view.lookup(ROOT_INO, dir).unwrap().ino };
            let found = env.view.lookup(dir, name).unwrap();
            assert_eq!((found.ino, found.nlink), (ino, nlink));
            assert_eq!(env.read(found.ino), text);
        }
    };
    let two: [(&[u8], &[u8]); 2] = [(b"", b"a"), (b"dir", b"b")];
    check(&env, 2, b"one", &two);
    env.view.write(ino, 0, b"two", false).unwrap();
    check(&env, 2, b"two", &two);
    env.view.link(ino, ROOT_INO, b"c").unwrap();
    let three = [two[0], two[1], (&b""[..], &b"c"[..])];
    check(&env, 3, b"two", &three);
    env.commit();
    check(&env, 3, b"two", &three);
    env.reopen();
    check(&env, 3, b"two", &three);
    env.view.setattr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    env.view.rename(&CALLER, ROOT_INO, b"c", dir, b"d", RenameMode::Replace).unwrap();
    env.view.unlink(ROOT_INO, b"a").unwrap();
    let left: [(&[u8], &[u8]); 2] = [(b"dir", b"b"), (b"dir", b"d")];
    check(&env, 2, b"two", &left);
    env.commit();
    env.reopen();
    check(&env, 2, b"two", &left);
}

#[test]
fn an_inode_has_at_most_65000_names() {
    let env = Env::new();
    let ino = env.file("f", b"");
    for i in 1..65_000 {
        env.view.link(ino, ROOT_INO, format!("l{i}").as_bytes()).unwrap();
    }
    assert_eq!(errno(env.view.link(ino, ROOT_INO, b"more")), libc::EMLINK);
    env.view.unlink(ROOT_INO, b"l1").unwrap();
    assert_eq!(env.view.link(ino, ROOT_INO, b"more").unwrap().nlink, 65_000);
}

/// A lower directory that is removed and created again shows none of its old entries, before and after a
/// commit; it can also be replaced by a file and come back.
#[test]
fn a_lower_directory_that_is_made_again_is_empty() {
    let mut env = Env::new();
    let dir = env.view.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap().ino;
    for name in [&b"x"[..], b"y"] {
        env.view.mknod(&CALLER, dir, name, libc::S_IFREG | 0o644, 0).unwrap();
    }
    env.commit();
    env.reopen();
    let dir = env.view.lookup(ROOT_INO, b"d").unwrap().ino;
    env.view.unlink(dir, b"x").unwrap();
    assert_eq!(errno(env.view.rmdir(ROOT_INO, b"d")), libc::ENOTEMPTY);
    env.view.unlink(dir, b"y").unwrap();
    assert!(names(&env, dir).is_empty());
    env.view.rmdir(ROOT_INO, b"d").unwrap();
    env.file("d", b"a file in its place");
    assert_eq!(
        errno(env.view.readdir(env.view.lookup(ROOT_INO, b"d").unwrap().ino, 0, false, &mut |_| true)),
        libc::ENOTDIR
    );
    env.view.unlink(ROOT_INO, b"d").unwrap();
    env.view.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap();
    for step in 0..3 {
        let dir = env.view.lookup(ROOT_INO, b"d").unwrap().ino;
        assert!(names(&env, dir).is_empty(), "step {step}");
        assert_eq!(errno(env.view.lookup(dir, b"x")), libc::ENOENT);
        match step {
            0 => drop(env.commit()),
            1 => env.reopen(),
            _ => {}
        }
    }
    let dir = env.view.lookup(ROOT_INO, b"d").unwrap().ino;
    env.view.mknod(&CALLER, dir, b"z", libc::S_IFREG | 0o644, 0).unwrap();
    assert_eq!(names(&env, dir), BTreeSet::from([b"z".to_vec()]));
}
