//! What a restore preserves.

use karapace_fs::attr::Invalidation;
use karapace_store::inode::{Ino, ROOT_INO};

use crate::view::support::{CALLER, Env};

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
    // It can still be written, without effect on the restored file.
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

/// If an inode's content differs, all its names move to a fresh number, even in directories that did not
/// change.
#[test]
fn an_open_file_with_several_names_keeps_its_content_over_a_restore() {
    let mut env = Env::new();
    let dir = env.view.mkdir(&CALLER, ROOT_INO, b"unchanged", 0o755).unwrap().ino;
    let held = env.file("f", b"one");
    env.view.link(held, dir, b"g").unwrap();
    let other = env.file("other", b"stays");
    env.view.link(other, dir, b"other").unwrap();
    let first = env.commit();
    env.view.write(held, 0, b"TWO", false).unwrap();
    let second = env.commit();
    for _ in 0..2 {
        let invalid = env.restore(first);
        for (parent, name) in [(ROOT_INO, b"f"), (dir, b"g")] {
            assert!(invalid.contains(&Invalidation::Entry { parent, name: name[..].into() }), "{invalid:?}");
        }
        let (f, g) = (env.view.lookup(ROOT_INO, b"f").unwrap(), env.view.lookup(dir, b"g").unwrap());
        assert_eq!((f.ino, f.nlink), (g.ino, 2));
        assert_ne!(f.ino, held);
        assert_eq!(env.read(f.ino), b"one");
        assert_eq!(env.read(held), b"TWO");
        assert_eq!(
            env.view.lookup(dir, b"other").unwrap().ino,
            other,
            "what did not change keeps its number"
        );
        assert!(env.view.diff().unwrap().is_empty());
        // The open one can still be written, without effect on the restored file or the next snapshot.
        env.view.write(held, 0, b"TWO", false).unwrap();
        assert_eq!(env.read(g.ino), b"one");
        assert!(env.view.diff().unwrap().is_empty());
        env.restore(second);
        let f = env.view.lookup(ROOT_INO, b"f").unwrap();
        assert_eq!((env.read(f.ino), f.nlink), (b"TWO".to_vec(), 2));
        assert_eq!(env.view.lookup(dir, b"g").unwrap().ino, f.ino);
    }
    env.view.forget(held, 10);
    env.restore(first);
    env.reopen();
    assert_eq!(env.view.lookup(ROOT_INO, b"unchanged").unwrap().ino, dir);
    let f = env.view.lookup(ROOT_INO, b"f").unwrap();
    assert_eq!((env.read(f.ino), env.view.lookup(dir, b"g").unwrap().ino), (b"one".to_vec(), f.ino));
    env.view.unlink(dir, b"g").unwrap();
    env.commit();
    assert_eq!(env.view.lookup(ROOT_INO, b"f").unwrap().nlink, 1);
}

/// A restore adds or removes the second name of an open file.
#[test]
fn an_open_file_keeps_its_content_when_a_restore_changes_its_names() {
    for linked_before in [false, true] {
        let mut env = Env::new();
        let held = env.file("f", b"one");
        let link = |env: &Env| env.view.link(held, ROOT_INO, b"g").map(drop).unwrap();
        let unlink = |env: &Env| env.view.unlink(ROOT_INO, b"g").unwrap();
        if linked_before {
            link(&env);
        }
        let first = env.commit();
        if linked_before {
            unlink(&env)
        } else {
            link(&env)
        }
        env.view.write(held, 0, b"TWO", false).unwrap();
        env.commit();
        env.restore(first);
        let f = env.view.lookup(ROOT_INO, b"f").unwrap();
        assert_eq!((env.read(f.ino), env.read(held)), (b"one".to_vec(), b"TWO".to_vec()));
        assert_eq!(f.nlink, 1 + u32::from(linked_before));
        let g = env.view.lookup(ROOT_INO, b"g").map(|g| g.ino).ok();
        assert_eq!(g, linked_before.then_some(f.ino));
        env.reopen();
        assert_eq!(env.read(env.view.lookup(ROOT_INO, b"f").unwrap().ino), b"one");
    }
}

/// A directory created again since the snapshot keeps its identity: processes working in it continue there.
#[test]
fn a_directory_at_the_same_path_keeps_its_number_over_a_restore() {
    let mut env = Env::new();
    let mkdir = |env: &Env| env.view.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap().ino;
    let put = |env: &Env, dir, name: &[u8]| {
        env.view.mknod(&CALLER, dir, name, libc::S_IFREG | 0o644, 0).unwrap();
    };
    let old = mkdir(&env);
    put(&env, old, b"then");
    let sub = env.view.mkdir(&CALLER, old, b"sub", 0o755).unwrap().ino;
    let first = env.commit();
    for (dir, name) in [(old, &b"then"[..]), (old, b"sub"), (ROOT_INO, b"d")] {
        let gone = env.view.unlink(dir, name).or_else(|_| env.view.rmdir(dir, name));
        gone.unwrap();
    }
    let new = mkdir(&env);
    put(&env, new, b"now");
    let second = env.commit();
    for forgotten in [false, true] {
        if forgotten {
            for ino in [old, sub] {
                env.view.forget(ino, 10);
            }
        }
        let invalid = env.restore(first);
        let entry = |parent, name: &[u8]| Invalidation::Entry { parent, name: name.into() };
        assert!(!invalid.contains(&entry(ROOT_INO, b"d")), "the kernel need not look it up again");
        assert!(invalid.contains(&entry(new, b"then")) && invalid.contains(&entry(new, b"now")));
        assert_eq!(env.view.lookup(ROOT_INO, b"d").unwrap().ino, new);
        assert!(env.view.lookup(new, b"then").is_ok() && env.view.lookup(new, b"now").is_err());
        assert!(env.view.lookup(new, b"sub").is_ok());
        assert!(env.view.diff().unwrap().is_empty());
        put(&env, new, b"goes on");
        env.commit();
        env.restore(second);
        assert_eq!(env.view.lookup(ROOT_INO, b"d").unwrap().ino, new);
        assert!(env.view.lookup(new, b"now").is_ok() && env.view.lookup(new, b"goes on").is_err());
    }
    env.reopen();
    assert_eq!(env.view.lookup(ROOT_INO, b"d").unwrap().ino, new);
}
