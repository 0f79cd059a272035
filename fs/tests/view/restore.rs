//! What a restore keeps.

use karapace_fs::attr::Invalidation;
use karapace_store::inode::{Ino, ROOT_INO};

use crate::support::Env;

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
