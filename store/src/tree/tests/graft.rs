//! Grafts chosen paths of one tree into another.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::*;
use super::{Listing, Place, record};
use crate::content::FileContent;
use crate::inode::Body;
use crate::paths::components;

/// Builds a tree from text, one word for each path: `path=number:content` for a file, `path=number~content`
/// for a name of a linked inode, `path=number/` for a directory.
pub(super) fn build(place: &Place, text: &str, next_ino: Ino) -> Root {
    let mut batch = place.batch();
    let mut dirs: BTreeMap<Vec<u8>, (Ino, Listing)> = BTreeMap::new();
    dirs.insert(Vec::new(), (1, Listing::new()));
    let mut links: BTreeMap<Ino, InodeRecord> = BTreeMap::new();
    for word in text.split_whitespace() {
        let (path, what) = word.split_once('=').unwrap();
        let (above, name) = path.rsplit_once('/').unwrap();
        let digits = what.find(|c: char| !c.is_ascii_digit()).unwrap();
        let ino: Ino = what[..digits].parse().unwrap();
        let bytes = &what.as_bytes()[digits + 1..];
        let file = record(
            ino,
            0o100_644,
            Body::Regular(FileContent::plain(bytes.len() as u64, ObjectId::of(bytes))),
        );
        let target = match &what[digits..=digits] {
            "/" => {
                dirs.insert(path.as_bytes().to_vec(), (ino, Listing::new()));
                continue;
            }
            "~" => {
                links.entry(ino).or_insert(InodeRecord { nlink: 0, ..file }).nlink += 1;
                Target::Link { ino, kind: FileKind::Regular }
            }
            _ => Target::Inode(file),
        };
        dirs.get_mut(above.as_bytes()).unwrap().1.insert(name.as_bytes().into(), target);
    }
    let mut root = None;
    while let Some((path, (ino, entries))) = dirs.pop_last() {
        let directories =
            entries.values().filter(|t| matches!(t, Target::Inode(r) if r.kind() == FileKind::Directory));
        let nlink = 2 + directories.count() as u32;
        let listed = entries.into_iter().map(|(name, target)| Entry { name, target });
        let written = write_dir(&mut batch, &mut listed.collect::<Vec<_>>().into_iter()).unwrap();
        let body = Body::Directory { tree: written.tree, links: written.links };
        let inode = InodeRecord { nlink, ..record(ino, 0o040_755, body) };
        match path.iter().rposition(|&b| b == b'/') {
            None => root = Some(inode),
            Some(at) => {
                let above = &mut dirs.get_mut(&path[..at]).unwrap().1;
                above.insert(path[at + 1..].into(), Target::Inode(inode));
            }
        }
    }
    let links = write_links(&mut batch, &mut links.into_values()).unwrap();
    batch.commit().unwrap();
    Root { inode: root.unwrap(), links, next_ino }
}

/// The tree as text, without numbers; names of one inode are joined by `+`. Checks inode numbers and link
/// counts.
fn show(place: &Place, root: &Root) -> String {
    let mut paths: Vec<(String, InodeRecord)> = Vec::new();
    walk(&place.trees, root, &mut |path, record| {
        paths.push((String::from_utf8(path.to_vec()).unwrap(), record.clone()));
        Ok(())
    })
    .unwrap();
    let mut names: HashMap<Ino, Vec<&str>> = HashMap::new();
    for (path, record) in &paths {
        assert!(record.ino < root.next_ino, "{path} has number {}", record.ino);
        names.entry(record.ino).or_default().push(path);
        if record.kind() == FileKind::Directory {
            let below = |p: &str| {
                p.strip_prefix(path.trim_end_matches('/'))
                    .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/') && !rest[1..].contains('/'))
            };
            let directories =
                paths.iter().filter(|(p, r)| r.kind() == FileKind::Directory && below(p)).count();
            assert_eq!(record.nlink as usize, 2 + directories, "{path}");
        }
    }
    let mut words = Vec::new();
    for (path, record) in &paths[1..] {
        let all = &names[&record.ino];
        if all[0] != path {
            continue;
        }
        let what = match &record.body {
            Body::Directory { .. } => {
                assert_eq!(all.len(), 1, "{path}");
                "/".to_owned()
            }
            Body::Regular(content) => {
                assert_eq!(record.nlink as usize, all.len(), "{path}");
                let known = (b'a'..=b'z').find(|b| ObjectId::of(&[*b]) == content.hash).unwrap();
                format!(":{}", known as char)
            }
            _ => unreachable!(),
        };
        words.push(format!("{}{what}", all.join("+")));
    }
    words.join(" ")
}

fn picks(text: &str) -> Picks {
    let mut picks = Picks::default();
    for word in text.split_whitespace() {
        match word.strip_prefix('=') {
            Some(path) => picks.itself(path.as_bytes()),
            None => match word.strip_prefix('?') {
                Some(path) => picks.whole(path.as_bytes(), false),
                None => picks.whole(word.as_bytes(), true),
            },
        }
    }
    picks
}

#[track_caller]
fn check(onto: &str, from: &str, text: &str, newer: bool, expected: &str) {
    let place = Place::new();
    let (onto, from) = (build(&place, onto, 100), build(&place, from, 200));
    let mut batch = place.batch();
    let numbers = Numbers { next_ino: 300, onto_is_newer: newer };
    let result = graft(&place.trees, &mut batch, &onto, &from, &picks(text), numbers).unwrap();
    batch.commit().unwrap();
    assert_eq!(show(&place, &result), expected, "{text}");
}

#[test]
fn files_and_directories() {
    let onto = "/d=2/ /d/a=3:a /d/b=4:b /e=5:e";
    let from = "/d=2/ /d/a=3:x /d/c=6:c /e=5:y";
    check(onto, from, "/d/a", false, "/d/ /d/a:x /d/b:b /e:e");
    check(onto, from, "/d/b", false, "/d/ /d/a:a /e:e");
    check(onto, from, "/d", false, "/d/ /d/a:x /d/c:c /e:e");
    check(onto, from, "=/d", false, "/d/ /d/a:a /d/b:b /e:e");
    check(onto, from, "=/d =/d/c", false, "/d/ /d/a:a /d/b:b /d/c:c /e:e");
    check(onto, from, "/", false, "/d/ /d/a:x /d/c:c /e:y");
    check(onto, from, "/nowhere /d/none/at/all", false, "/d/ /d/a:a /d/b:b /e:e");
    check(onto, "", "/d /e", false, "");
    // A directory is removed with the chosen paths, but stays if others remain.
    check(onto, "", "=/d =/d/a", false, "/d/ /d/b:b /e:e");
    check(onto, "", "=/d =/d/a =/d/b", false, "/e:e");
}

#[test]
fn directories_above() {
    let from = "/d=2/ /d/e=3/ /d/e/a=4:a /d/e/b=5:b";
    check("/x=9:x", from, "/d/e/a", false, "/d/ /d/e/ /d/e/a:a /x:x");
    check("/x=9:x", from, "?/d/e/a", false, "/x:x");
    check("/d=2/ /d/e=3/", from, "?/d/e/a", false, "/d/ /d/e/ /d/e/a:a");
    // A directory replaces a file if something chosen is below it.
    check("/d=9:x", from, "/d/e/a", false, "/d/ /d/e/ /d/e/a:a");
    check("/d=9:x", from, "/d/e/none", false, "/d:x");
    check("/d=2/ /d/e=3/ /d/e/a=4:a", "/d=2:f", "/d", false, "/d:f");
}

#[test]
fn a_moved_file_is_one_inode_in_each_place() {
    // `show` fails when two inodes have the same number.
    check("/a=2:a", "/b=2:a", "/b", false, "/a:a /b:a");
    check("/d=2/ /d/a=3:a", "/e=2/ /e/a=3:a", "/e", false, "/d/ /d/a:a /e/ /e/a:a");
    check("/d=2/ /d/a=3:a", "/e=2/ /e/a=3:a", "/e /d", false, "/e/ /e/a:a");
    check("/e=2/ /e/a=3:a", "/d=2/ /d/a=3:a", "/d", true, "/d/ /d/a:a /e/ /e/a:a");
    // An inode whose number `onto` has never used keeps it.
    let place = Place::new();
    let (onto, from) = (build(&place, "/a=2:a", 100), build(&place, "/d=150/ /d/b=151:b", 200));
    let mut batch = place.batch();
    let numbers = Numbers { next_ino: 2, onto_is_newer: false };
    let result = graft(&place.trees, &mut batch, &onto, &from, &picks("/d"), numbers).unwrap();
    batch.commit().unwrap();
    let dir = |root: &Root| place.trees.lookup(root.tree().unwrap(), b"d").unwrap();
    assert_eq!(dir(&result), dir(&from));
}

#[test]
fn names_of_linked_inodes() {
    let onto = "/a=7~o /b=7~o /c=3:c";
    // With all its names chosen, the inode changes; with only some of them, it is split in two.
    check(onto, "/a=7~n /b=7~n /c=3:c", "/a /b", false, "/a+/b:n /c:c");
    check(onto, "/a=7~n /b=7~n /c=3:c", "/a", false, "/a:n /b:o /c:c");
    check(onto, "/a=7~n /b=7~n /x=7~n", "/a /x", false, "/a+/x:n /b:o /c:c");
    check(onto, "/a=7~o /b=7~o /x=7~o", "/x", false, "/a+/b+/x:o /c:c");
    check(onto, "/b=7~o", "/a", false, "/b:o /c:c");
    check(onto, "", "/a /b", false, "/c:c");
    // In `onto` the inode had a single name.
    check("/a=7:o", "/a=7~o /b=7~o", "/a /b", false, "/a+/b:o");
    check("/a=7:o", "/a=7~o /b=7~o", "/b", false, "/a:o /b:o");
    check(onto, "/a=7:o", "/a", false, "/a+/b:o /c:c");
    check(onto, "/a=7:n", "/a", false, "/a:n /b:o /c:c");
    // Linked inodes in directories.
    check("/d=2/ /d/a=7~o /b=7~o", "/d=2/ /d/a=7~n /b=7~n", "/d", false, "/b:o /d/ /d/a:n");
    check("/d=2/ /d/a=7~o /d/b=7~o", "/d=2/ /d/a=7~n /d/b=7~n", "/d", false, "/d/ /d/a+/d/b:n");
    check("/d=2/ /d/a=7~o /b=7~o", "/b=7~o", "/d", false, "/b:o");
}

#[test]
fn names_of_linked_inodes_in_a_newer_tree() {
    // If `onto` still has other names of the inode, the names taken follow those.
    check("/a=7~n /i=2/", "/a=7~o /i=2/ /i/b=7~o", "?/i", true, "/a+/i/b:n /i/");
    check("/a=7~n /i=2/ /i/b=7~n", "/a=7~o /i=2/ /i/b=7~o", "?/i", true, "/a+/i/b:n /i/");
    // If `onto` has none, the inode keeps its number: repeating the graft gives the same result.
    let place = Place::new();
    let (onto, from) = (build(&place, "/i=2/", 200), build(&place, "/i=2/ /i/a=7~o /i/b=7~o", 100));
    let mut batch = place.batch();
    let numbers = Numbers { next_ino: 300, onto_is_newer: true };
    let result = graft(&place.trees, &mut batch, &onto, &from, &picks("?/i"), numbers).unwrap();
    batch.commit().unwrap();
    assert_eq!(show(&place, &result), "/i/ /i/a+/i/b:o");
    diff(&place.trees, Some(&from), &result, &mut |path, _| panic!("{}", String::from_utf8_lossy(path)))
        .unwrap();
}

#[test]
fn every_name_of_an_inode_is_found() {
    let place = Place::new();
    let root = build(&place, "/a=7~o /d=2/ /d/e=3/ /d/e/b=7~o /f=4/ /f/c=8~o", 100);
    let mut found = names_of(&place.trees, &root, &HashSet::from([7])).unwrap();
    found.sort();
    assert_eq!(found, [b"/a".to_vec(), b"/d/e/b".to_vec()]);
    assert_eq!(components(&found[1]).count(), 3);
}
