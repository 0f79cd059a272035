//! Tests `diff` and `walk` against a naive comparison of whole trees.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::*;
use super::{Place, record};
use crate::content::FileContent;
use crate::inode::{Body, Timestamp};

/// What a generated root has at a path.
#[derive(Clone, Debug)]
enum Thing {
    Dir {
        uid: u32,
        mtime: i64,
    },
    File {
        content: u8,
        uid: u32,
        mtime: i64,
    },
    Symlink(u8),
    /// A name of the linked inode with this number.
    Link(u8),
}

type Model = BTreeMap<Vec<u8>, Thing>;

#[derive(Clone, Debug)]
struct Spec {
    things: Model,
    /// The content of the linked inodes.
    linked: [u8; 3],
    /// Added to the numbers of the linked inodes.
    shift: u64,
    uid: u32,
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        4 => (0u32..2, 0i64..2).prop_map(|(uid, mtime)| Thing::Dir { uid, mtime }),
        3 => (0u8..3, 0u32..2, 0i64..2).prop_map(|(content, uid, mtime)| Thing::File { content, uid, mtime }),
        1 => (0u8..2).prop_map(Thing::Symlink),
        2 => (0u8..3).prop_map(Thing::Link),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    // Some names sort around the slash, so that comparing whole paths as bytes would be noticed.
    proptest::collection::vec(proptest::sample::select(vec!["a", "a.b", "a0", "b"]), 1..5)
        .prop_map(|parts| format!("/{}", parts.join("/")).into_bytes())
}

fn spec() -> impl Strategy<Value = Spec> {
    let things = proptest::collection::btree_map(path(), thing(), 0..40);
    (things, any::<[bool; 3]>(), 0u64..2, 0u32..2).prop_map(|(things, linked, shift, uid)| Spec {
        things,
        linked: linked.map(u8::from),
        shift,
        uid,
    })
}

/// A spec, and another that differs slightly.
fn pair() -> impl Strategy<Value = (Spec, Spec)> {
    let edits = proptest::collection::vec((path(), proptest::option::of(thing())), 0..6);
    (spec(), edits, any::<[bool; 3]>(), proptest::bool::weighted(0.2)).prop_map(
        |(old, edits, flip, shift)| {
            let mut new = old.clone();
            for (path, thing) in edits {
                match thing {
                    Some(thing) => drop(new.things.insert(path, thing)),
                    None => drop(new.things.remove(&path)),
                }
            }
            for (content, flip) in new.linked.iter_mut().zip(flip) {
                *content ^= u8::from(flip);
            }
            new.shift += u64::from(shift);
            (old, new)
        },
    )
}

fn file(ino: u64, content: u8) -> InodeRecord {
    record(ino, 0o100_644, Body::Regular(FileContent::plain(5, ObjectId::of(&[content]))))
}

impl Spec {
    /// Builds the tree of the spec, leaving out entries without a parent directory.
    fn build(&self, place: &Place) -> Root {
        let mut batch = place.batch();
        let mut numbers = Numbers { next: 100, used: BTreeSet::new() };
        let written = self.dir(b"", &mut batch, &mut numbers);
        let used = numbers.used.iter().map(|link| {
            let mut record = file(self.ino(*link), self.linked[usize::from(*link)]);
            record.nlink = 2;
            record
        });
        let links = write_links(&mut batch, &mut used.into_iter()).unwrap();
        let mut inode = record(1, 0o040_755, Body::Directory { tree: written.tree, links: written.links });
        inode.uid = self.uid;
        batch.commit().unwrap();
        Root { inode, links, next_ino: 5000 }
    }

    fn ino(&self, link: u8) -> u64 {
        10 * (self.shift + 1) + u64::from(link)
    }

    fn dir(&self, dir: &[u8], batch: &mut Batch, numbers: &mut Numbers) -> WrittenDir {
        let prefix = [dir, b"/"].concat();
        let mut entries = BTreeMap::new();
        for (path, thing) in self.things.range(prefix.clone()..) {
            let Some(name) = path.strip_prefix(&prefix[..]) else { break };
            if name.contains(&b'/') {
                continue;
            }
            let target = match thing {
                Thing::Dir { uid, mtime } => {
                    let below = self.dir(path, batch, numbers);
                    let body = Body::Directory { tree: below.tree, links: below.links };
                    let mut dir = record(numbers.next(), 0o040_755, body);
                    (dir.uid, dir.mtime) = (*uid, Timestamp::from_secs(*mtime));
                    Target::Inode(dir)
                }
                Thing::File { content, uid, mtime } => {
                    let mut file = file(numbers.next(), *content);
                    (file.uid, file.mtime) = (*uid, Timestamp::from_secs(*mtime));
                    Target::Inode(file)
                }
                Thing::Symlink(to) => {
                    Target::Inode(record(numbers.next(), 0o120_777, Body::Symlink([*to].as_slice().into())))
                }
                Thing::Link(link) => {
                    numbers.used.insert(*link);
                    Target::Link { ino: self.ino(*link), kind: FileKind::Regular }
                }
            };
            entries.insert(name.to_vec(), target);
        }
        let entries = entries.into_iter().map(|(name, target)| Entry { name: name.into(), target });
        write_dir(batch, &mut entries.into_iter()).unwrap()
    }
}

struct Numbers {
    next: u64,
    used: BTreeSet<u8>,
}

impl Numbers {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// The components of a path; visits follow their order.
type Parts = Vec<Vec<u8>>;

fn parts(path: &[u8]) -> Parts {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
}

fn whole(place: &Place, root: &Root) -> BTreeMap<Parts, InodeRecord> {
    let mut all = BTreeMap::new();
    let mut last: Option<Parts> = None;
    walk(&place.trees, root, &mut |path, record| {
        let parts = parts(path);
        assert!(last.as_ref() < Some(&parts), "in path order");
        last = Some(parts.clone());
        all.insert(parts, record.clone());
        Ok(())
    })
    .unwrap();
    all
}

type Event = (char, Parts);

/// Compares two trees by walking all of both.
fn naive(old: &BTreeMap<Parts, InodeRecord>, new: &BTreeMap<Parts, InodeRecord>) -> Vec<Event> {
    let mut events = Vec::new();
    // The linked inodes that were renumbered, in both directions.
    let (mut to, mut back) = (BTreeMap::new(), BTreeMap::new());
    let linked = |all: &BTreeMap<Parts, InodeRecord>| -> BTreeSet<u64> {
        all.values().filter(|r| r.nlink > 1 && r.kind() != FileKind::Directory).map(|r| r.ino).collect()
    };
    let (old_linked, new_linked) = (linked(old), linked(new));
    let all: BTreeSet<&Parts> = old.keys().chain(new.keys()).collect();
    let mut replaced: Option<Parts> = None;
    for path in all {
        if replaced.as_ref().is_some_and(|top| path.starts_with(top)) {
            continue;
        }
        match (old.get(path), new.get(path)) {
            (Some(a), Some(b)) if a.kind() != b.kind() => {
                events.extend(below(old, path).map(|path| ('D', path)));
                events.extend(below(new, path).map(|path| ('A', path)));
                replaced = Some(path.clone());
            }
            (Some(a), Some(b)) => {
                let dir = a.kind() == FileKind::Directory;
                let mut relinked = (a.nlink > 1 || b.nlink > 1) && a.ino != b.ino;
                if relinked && !dir {
                    let apart = !new_linked.contains(&a.ino) && !old_linked.contains(&b.ino);
                    let unseen = !to.contains_key(&a.ino) && !back.contains_key(&b.ino);
                    if unseen && apart && a.nlink == b.nlink {
                        to.insert(a.ino, b.ino);
                        back.insert(b.ino, a.ino);
                    }
                    relinked = to.get(&a.ino) != Some(&b.ino);
                }
                let (mut x, mut y) = (a.clone(), b.clone());
                for record in [&mut x, &mut y] {
                    record.ino = 9;
                    record.nlink = 9;
                    (record.atime, record.ctime) = Default::default();
                    if dir {
                        record.mtime = Timestamp::default();
                        record.body = Body::Directory { tree: None, links: false };
                    }
                }
                if x != y || relinked {
                    events.push(('M', path.clone()));
                }
            }
            (Some(_), None) => events.push(('D', path.clone())),
            (None, _) => events.push(('A', path.clone())),
        }
    }
    events
}

fn below<'a>(all: &'a BTreeMap<Parts, InodeRecord>, top: &Parts) -> impl Iterator<Item = Parts> + use<'a> {
    let top = top.clone();
    all.keys().filter(move |path| path.starts_with(&top)).cloned()
}

fn events(place: &Place, old: Option<&Root>, new: &Root) -> Vec<Event> {
    let mut events = Vec::new();
    diff(&place.trees, old, new, &mut |path, change| {
        assert!(path == b"/" || (path.starts_with(b"/") && !path.ends_with(b"/")));
        let kind = match change {
            Change::Added(_) => 'A',
            Change::Removed(_) => 'D',
            Change::Modified { .. } => 'M',
        };
        events.push((kind, parts(path)));
        Ok(())
    })
    .unwrap();
    events
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn diff_gives_what_a_naive_comparison_gives((old, new) in pair()) {
        let place = Place::new();
        let (old, new) = (old.build(&place), new.build(&place));
        let (old_all, new_all) = (whole(&place, &old), whole(&place, &new));
        prop_assert_eq!(events(&place, Some(&old), &new), naive(&old_all, &new_all));
        prop_assert_eq!(events(&place, Some(&new), &old), naive(&new_all, &old_all));
        prop_assert_eq!(events(&place, Some(&old), &old), vec![]);
        let all: Vec<Event> = new_all.into_keys().map(|path| ('A', path)).collect();
        prop_assert_eq!(events(&place, None, &new), all);
    }
}

/// A root with one directory of `names`, each an empty file with the same owner, except for `changed`.
fn flat(place: &Place, names: impl Iterator<Item = u64>, changed: u64) -> Root {
    let mut batch = place.batch();
    let mut names: Vec<_> = names.map(|i| (format!("{i:06}").into_bytes(), i)).collect();
    names.sort();
    let entries = names.into_iter().map(|(name, i)| {
        let mut record = record(10 + i, 0o100_644, Body::Regular(FileContent::empty()));
        record.uid = u32::from(i == changed);
        Entry { name: name.into(), target: Target::Inode(record) }
    });
    let written = write_dir(&mut batch, &mut entries.into_iter()).unwrap();
    batch.commit().unwrap();
    let inode = record(1, 0o040_755, Body::Directory { tree: written.tree, links: false });
    Root { inode, links: None, next_ino: 100_000 }
}

#[test]
fn long_directories_are_compared_chunk_by_chunk() {
    let place = Place::new();
    let old = flat(&place, 0..20_000, u64::MAX);
    let new = flat(&place, (0..20_000).filter(|i| *i != 3).chain([90_000]), 15_000);
    let name = |i: u64| vec![format!("{i:06}").into_bytes()];
    // A fresh cache shows what is read.
    let fresh = Place { trees: Trees::new(Arc::clone(place.trees.store())), ..place };
    let found = events(&fresh, Some(&old), &new);
    assert_eq!(found, [('D', name(3)), ('M', name(15_000)), ('A', name(90_000))]);
    let Node::Index(index) = fresh.trees.node(old.tree().unwrap(), Keys::Names).unwrap() else {
        panic!("it is split")
    };
    assert!(index.chunks().len() > 20);
    assert!(fresh.trees.cache.lock().nodes.len() <= 8, "equal chunks are not read");
    // A short listing against a split one.
    let short = flat(&fresh, 0..100, u64::MAX);
    assert_eq!(events(&fresh, Some(&old), &short).len(), 19_900);
}

#[test]
fn a_deep_tree_does_not_exhaust_the_stack() {
    let place = Place::new();
    let mut batch = place.batch();
    let mut roots = Vec::new();
    for content in [1, 2] {
        let mut entry = Entry { name: b"f".as_slice().into(), target: Target::Inode(file(2, content)) };
        for _ in 0..10_000 {
            let tree = write_dir(&mut batch, &mut std::iter::once(entry)).unwrap().tree;
            let dir = record(3, 0o040_755, Body::Directory { tree, links: false });
            entry = Entry { name: b"d".as_slice().into(), target: Target::Inode(dir) };
        }
        let tree = write_dir(&mut batch, &mut std::iter::once(entry)).unwrap().tree;
        let inode = record(1, 0o040_755, Body::Directory { tree, links: false });
        roots.push(Root { inode, links: None, next_ino: 10 });
    }
    batch.commit().unwrap();
    let mut count = 0;
    walk(&place.trees, &roots[0], &mut |_, _| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 10_002);
    assert_eq!(events(&place, Some(&roots[0]), &roots[1]).len(), 1);
}

#[test]
fn a_name_without_its_inode_is_corrupt() {
    let place = Place::new();
    let mut batch = place.batch();
    let entry =
        Entry { name: b"x".as_slice().into(), target: Target::Link { ino: 7, kind: FileKind::Regular } };
    let written = write_dir(&mut batch, &mut std::iter::once(entry)).unwrap();
    let links = write_links(&mut batch, &mut std::iter::once(record(7, 0o120_777, Body::Symlink([].into()))))
        .unwrap();
    batch.commit().unwrap();
    let inode = record(1, 0o040_755, Body::Directory { tree: written.tree, links: true });
    for links in [None, links] {
        let root = Root { inode: inode.clone(), links, next_ino: 10 };
        let error = walk(&place.trees, &root, &mut |_, _| Ok(())).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
}
