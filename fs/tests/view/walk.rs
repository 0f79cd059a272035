//! Read-ahead for tree walks.

use std::fs;

use karapace_store::id::ObjectId;
use karapace_store::inode::{FileKind, Ino, ROOT_INO};

use crate::view::support::{CALLER, Env, pattern};

/// The listing of a directory, in order. Loads the inodes into the table.
fn listed(env: &Env, dir: Ino, kind: FileKind) -> Vec<(Ino, Vec<u8>)> {
    let mut found = Vec::new();
    let mut add = |item: &karapace_fs::attr::DirItem<'_>| {
        if item.kind == kind && !matches!(item.name, b"." | b"..") {
            found.push((item.ino, item.name.to_vec()));
        }
        true
    };
    env.view.readdir(dir, 0, true, &mut add).unwrap();
    found
}

fn content(name: &[u8]) -> Vec<u8> {
    [name, &pattern(9000, 3)].concat()
}

/// Twelve directories and twenty files in the root, all of them in the store.
fn tree() -> Env {
    let mut env = Env::new();
    for number in 0..12 {
        let name = format!("dir{number}");
        let dir = env.view.mkdir(&CALLER, ROOT_INO, name.as_bytes(), 0o755).unwrap().ino;
        env.view.mknod(&CALLER, dir, name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap();
    }
    for number in 0..20 {
        let name = format!("file{number}");
        env.file(&name, &content(name.as_bytes()));
    }
    env.commit();
    env.reopen();
    env
}

/// Removes the store's objects, so that only what was read ahead can still be read.
fn lose_objects(env: &Env) {
    let objects = env.layout().object(&ObjectId::of(b"")).ancestors().nth(2).unwrap().to_owned();
    assert!(objects.ends_with("objects"), "{objects:?}");
    fs::rename(&objects, objects.with_extension("lost")).unwrap();
}

#[test]
fn files_read_in_order_are_read_ahead() {
    let env = tree();
    let files = listed(&env, ROOT_INO, FileKind::Regular);
    assert!(env.view.ahead_of_listing(ROOT_INO).is_none(), "nobody is on a walk");
    for (number, (ino, name)) in files[..3].iter().enumerate() {
        assert_eq!(env.read(*ino), content(name));
        let ahead = env.view.ahead_of_read(*ino);
        assert_eq!(ahead.is_some(), number == 2, "after {}", number + 1);
        ahead.into_iter().flat_map(|ahead| ahead.parts()).for_each(|part| part.read());
    }
    lose_objects(&env);
    for (ino, name) in &files {
        assert_eq!(env.read(*ino), content(name));
        assert!(env.view.ahead_of_read(*ino).is_none(), "all of it is there");
    }
}

#[test]
fn directories_listed_in_order_are_read_ahead() {
    let env = tree();
    let dirs = listed(&env, ROOT_INO, FileKind::Directory);
    assert!(env.view.ahead_of_listing(ROOT_INO).is_none(), "nobody is on a walk");
    for (number, (ino, name)) in dirs[..3].iter().enumerate() {
        assert_eq!(listed(&env, *ino, FileKind::Regular)[0].1, *name);
        let ahead = env.view.ahead_of_listing(*ino);
        assert_eq!(ahead.is_some(), number == 2, "after {}", number + 1);
        ahead.into_iter().for_each(|ahead| ahead.read());
    }
    lose_objects(&env);
    for (ino, name) in &dirs {
        assert_eq!(listed(&env, *ino, FileKind::Regular)[0].1, *name);
    }
}

#[test]
fn files_read_at_random_are_not_read_ahead() {
    let env = tree();
    let files = listed(&env, ROOT_INO, FileKind::Regular);
    for step in 0..40 {
        let (ino, name) = &files[(step * 7 + 3) % files.len()];
        assert_eq!(env.read(*ino), content(name));
        assert!(env.view.ahead_of_read(*ino).is_none(), "step {step}");
    }
}

#[test]
fn damage_is_reported_to_whoever_reads_it() {
    let env = tree();
    let files = listed(&env, ROOT_INO, FileKind::Regular);
    let [missing, damaged] = [4, 5].map(|at| env.layout().object(&ObjectId::of(&content(&files[at].1))));
    fs::remove_file(missing).unwrap();
    fs::remove_file(&damaged).unwrap();
    fs::write(damaged, pattern(9000, 4)).unwrap();
    for (at, (ino, name)) in files.iter().enumerate() {
        if at == 4 || at == 5 {
            let error = env.view.read(*ino, 0, 1 << 20, &mut Vec::new()).unwrap_err();
            assert_eq!(error.errno(), libc::EIO, "{error}");
        } else {
            assert_eq!(env.read(*ino), content(name));
        }
        env.view.ahead_of_read(*ino).into_iter().for_each(|ahead| ahead.read());
    }
}
