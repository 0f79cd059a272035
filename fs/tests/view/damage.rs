//! Damaged content: refused where it is needed, reported with its path, and never spread.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use karapace_fs::Error;
use karapace_store::content::BLOCK;
use karapace_store::id::ObjectId;
use karapace_store::inode::ROOT_INO;

use crate::common::commit::commit;
use crate::view::support::{Env, pattern};

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

/// Checks that the error names object and path, and is EIO.
fn is_named(error: &Error, object: &ObjectId, path: &str) {
    assert_eq!(error.errno(), libc::EIO, "{error}");
    let text = error.to_string();
    assert!(text.contains(&object.to_hex()) && text.contains(&format!("{path} in dev")), "{text}");
}

#[test]
fn a_damaged_small_file_is_neither_read_nor_copied_up() {
    let env = &mut Env::new();
    let bytes = pattern(5000, 1);
    env.file("small", &bytes);
    env.file("other", b"sound");
    env.commit();
    env.reopen();
    env.view.set_name("dev");
    let id = ObjectId::of(&bytes);
    let path = env.layout().object(&id);
    let whole = fs::read(&path).unwrap();
    flip(&path, 4000);
    let small = env.view.lookup(ROOT_INO, b"small").unwrap().ino;
    for _ in 0..2 {
        is_named(&env.view.read(small, 0, 10, &mut Vec::new()).unwrap_err(), &id, "/small");
        is_named(&env.view.write(small, 0, b"x", false).unwrap_err(), &id, "/small");
    }
    // No upper file was created from it, and everything else works.
    assert!(env.view.diff().unwrap().is_empty());
    let other = env.view.lookup(ROOT_INO, b"other").unwrap().ino;
    assert_eq!(env.read(other), b"sound");
    env.view.write(other, 0, b"S", false).unwrap();
    env.commit();
    fs::remove_file(&path).unwrap();
    fs::write(&path, whole).unwrap();
    env.reopen();
    let small = env.view.lookup(ROOT_INO, b"small").unwrap().ino;
    assert_eq!(env.read(small), bytes);
}

#[test]
fn a_damaged_block_is_refused_alone_and_the_file_is_not_committed_with_it() {
    let env = &mut Env::new();
    let bytes = pattern(3 << 20, 1);
    env.file("large", &bytes);
    env.commit();
    env.reopen();
    env.view.set_name("dev");
    let id = ObjectId::of(&bytes);
    flip(&env.layout().object(&id), 10 * BLOCK as usize + 7);
    let large = env.view.lookup(ROOT_INO, b"large").unwrap().ino;
    let mut buf = Vec::new();
    env.view.read(large, 9 * BLOCK, BLOCK as usize, &mut buf).unwrap();
    env.view.read(large, 11 * BLOCK, BLOCK as usize, &mut buf).unwrap();
    env.view.write(large, 0, b"first", false).unwrap();
    is_named(&env.view.read(large, 10 * BLOCK + 5, 1, &mut buf).unwrap_err(), &id, "/large");
    is_named(&env.view.write(large, 10 * BLOCK + 5, b"x", false).unwrap_err(), &id, "/large");
    let refused = commit(&env.view, &mut |_| panic!("published")).unwrap_err();
    is_named(&refused, &id, "/large");
    // Overwriting a whole block does not need the block below.
    env.view.write(large, 10 * BLOCK, &pattern(BLOCK as usize, 9), false).unwrap();
    env.commit();
    env.reopen();
    let large = env.view.lookup(ROOT_INO, b"large").unwrap().ino;
    let mut expected = bytes;
    expected[..5].copy_from_slice(b"first");
    expected[10 * BLOCK as usize..11 * BLOCK as usize].copy_from_slice(&pattern(BLOCK as usize, 9));
    assert!(env.read(large) == expected);
}
