//! Which modification times a restore sets.

use super::super::*;
use super::graft::build;
use super::{Place, record};
use crate::inode::{Body, Timestamp};

const FIRST: Timestamp = Timestamp::from_secs(100);
const SECOND: Timestamp = Timestamp::from_secs(200);

/// A tree in which all times are FIRST.
fn first(place: &Place, text: &str) -> Root {
    let empty = build(place, "", 100);
    let root = build(place, text, 100);
    stored(place, &empty, &root, FIRST).root
}

fn stored(place: &Place, before: &Root, after: &Root, now: Timestamp) -> Retimed {
    let mut batch = place.batch();
    let retimed = retime(&place.trees, &mut batch, before, after, now).unwrap();
    batch.commit().unwrap();
    retimed
}

/// `expected` lists the paths that get a new time, those of directories with a trailing `/`. All others must
/// keep the times of `before`.
#[track_caller]
fn check(before: &str, after: &str, expected: &str) {
    let place = Place::new();
    let before = first(&place, before);
    let retimed = stored(&place, &before, &build(&place, after, 100), SECOND);
    let mut touched = Vec::new();
    let mut files = std::collections::HashSet::new();
    walk(&place.trees, &retimed.root, &mut |path, record| {
        let path = String::from_utf8(path.to_vec()).unwrap();
        match record.mtime {
            FIRST => {}
            SECOND if record.kind() == FileKind::Directory => touched.push(format!("{path}/")),
            SECOND => {
                assert_eq!(record.ctime, SECOND);
                files.insert(record.ino);
                touched.push(path);
            }
            other => panic!("{path} has {other:?}, the snapshot's"),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(touched.join(" "), expected);
    assert_eq!(retimed.touched, files.len() as u64);
}

#[test]
fn only_inodes_with_other_content_are_touched() {
    let before = "/d=2/ /d/a=3:a /d/b=4:b /e=5:e";
    check(before, before, "");
    check(before, "/d=2/ /d/a=3:x /d/b=4:b /e=5:e", "/d/a");
    // Numbers are not content.
    check(before, "/d=2/ /d/a=9:a /d/b=4:b /e=5:e", "");
    // Adding or removing a name also changes its directory.
    check(before, "/d=2/ /d/a=3:a /e=5:e", "/d/");
    check(before, "/d=2/ /d/a=3:a /d/b=4:b /e=5:e /f=6:e", "// /f");
    check(before, "/d=2/ /d/a=3:a /d/b=4:b /e=7/ /e/g=6:e", "// /e/ /e/g");
    check(before, "/d=2:x /e=5:e", "// /d");
}

#[test]
fn a_linked_inode_is_touched_where_one_of_its_names_has_another_content() {
    let before = "/a=7~o /d=2/ /d/b=7~o /c=3:c";
    check(before, "/a=7~n /d=2/ /d/b=7~n /c=3:c", "/a /d/b");
    check(before, before, "");
    // A new name for an existing inode only changes the directory's time.
    check(before, "/a=7~o /d=2/ /d/b=7~o /d/x=7~o /c=3:c", "/d/");
    check(before, "/a=7~o /d=2/ /d/x=7~o /c=3:c", "/d/");
    check("/a=7:o /c=3:c", "/a=7~o /b=7~o /c=3:c", "//");
    // An inode with another content was at one of the names.
    check(before, "/a=7~o /d=2/ /d/b=7~o /c=7~o", "/a /c /d/b");
    check("/a=7:o /c=3:c", "/a=7~o /c=7~o", "/a /c");
    check(before, "/a=7:o /d=2/ /d/b=8:n /c=3:c", "/d/b");
}

#[test]
fn what_does_not_differ_keeps_its_times() {
    let place = Place::new();
    let before = first(&place, "/a=3:a /d=2/ /d/b=7~b /d/c=7~b");
    let after = build(&place, "/a=3:a /d=2/ /d/b=7~b /d/c=7~b", 100);
    assert_ne!(before.inode, after.inode, "the times differ");
    assert_eq!(stored(&place, &before, &after, SECOND).root, before);
    // Changing only attributes changes the change time.
    let with = |mode: u32, mtime: Timestamp| {
        let file = InodeRecord { mtime, atime: mtime, ctime: mtime, ..record(3, mode, Body::Special) };
        let mut batch = place.batch();
        let entry = Entry { name: (*b"f").into(), target: Target::Inode(file) };
        let written = write_dir(&mut batch, &mut [entry].into_iter()).unwrap();
        batch.commit().unwrap();
        let body = Body::Directory { tree: written.tree, links: false };
        Root { inode: record(1, 0o040_755, body), links: None, next_ino: 100 }
    };
    let result =
        stored(&place, &with(0o010_644, FIRST), &with(0o010_600, Timestamp::from_secs(1)), SECOND).root;
    let Some(Target::Inode(file)) = place.trees.lookup(result.tree().unwrap(), b"f").unwrap() else {
        panic!()
    };
    assert_eq!((file.mode, file.mtime, file.ctime), (0o010_600, FIRST, SECOND));
}
