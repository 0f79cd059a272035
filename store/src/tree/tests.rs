use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::content::FileContent;
use crate::inode::{Body, Timestamp, Xattrs};

mod compare;
mod diff;
mod graft;
mod retime;

pub(super) struct Place {
    _dir: tempfile::TempDir,
    pub trees: Trees,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::new(Store::open(dir.path()).unwrap());
        Self { _dir: dir, trees }
    }

    pub fn batch(&self) -> Batch {
        Batch::new(self.trees.store()).unwrap()
    }

    fn write(&self, listing: &Listing) -> WrittenDir {
        let mut batch = self.batch();
        let entries =
            listing.iter().map(|(name, target)| Entry { name: name.clone(), target: target.clone() });
        let written = write_dir(&mut batch, &mut entries.into_iter()).unwrap();
        batch.commit().unwrap();
        written
    }

    fn update(&self, base: Option<&ObjectId>, changes: &Changes) -> WrittenDir {
        let mut batch = self.batch();
        let written = update_dir(&self.trees, &mut batch, base, changes).unwrap();
        batch.commit().unwrap();
        written
    }

    fn list(&self, dir: Option<&ObjectId>) -> Listing {
        let mut listing = Listing::new();
        if let Some(dir) = dir {
            let mut last = None;
            let mut add = |entry: EntryRef<'_>| {
                assert!(last.as_deref() < Some(entry.name()), "in order");
                last = Some(entry.name().to_vec());
                listing.insert(entry.name().into(), entry.to_target()?);
                Ok(())
            };
            self.trees.for_each(dir, &mut add).unwrap();
            assert_eq!(self.trees.len(dir).unwrap(), listing.len() as u64);
        }
        listing
    }
}

type Listing = BTreeMap<Box<[u8]>, Target>;
type Changes = BTreeMap<Box<[u8]>, Option<Target>>;

pub(super) fn record(ino: Ino, mode: u32, body: Body) -> InodeRecord {
    let time = Timestamp { secs: 1_700_000_000, nanos: 5 };
    let (atime, mtime, ctime) = (time, time, time);
    InodeRecord {
        ino,
        mode,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime,
        mtime,
        ctime,
        xattrs: Xattrs::new(),
        body,
    }
}

fn target(seed: u64) -> Target {
    if seed.is_multiple_of(50) {
        return Target::Link { ino: 1 + seed, kind: FileKind::Regular };
    }
    let content = FileContent::plain(1 + seed, ObjectId::of(&seed.to_le_bytes()));
    Target::Inode(record(1 + seed, 0o100_644, Body::Regular(content)))
}

fn name(i: u64) -> Box<[u8]> {
    // Some names are not UTF-8.
    [b"f\xff".as_slice(), i.to_string().as_bytes()].concat().into()
}

fn listing(names: impl IntoIterator<Item = u64>) -> Listing {
    names.into_iter().map(|i| (name(i), target(i))).collect()
}

fn apply(base: &Listing, changes: &Changes) -> Listing {
    let mut result = base.clone();
    for (name, target) in changes {
        match target {
            Some(target) => drop(result.insert(name.clone(), target.clone())),
            None => drop(result.remove(name)),
        }
    }
    result
}

fn has_links(listing: &Listing) -> bool {
    listing.values().any(|target| matches!(target, Target::Link { .. }))
}

/// Numbers for names: few, around the limit of one leaf, or many.
fn names() -> impl Strategy<Value = BTreeSet<u64>> {
    prop_oneof![
        proptest::collection::btree_set(0u64..40, 0..20),
        (0u64..40, 1000u64..1040).prop_map(|(from, count)| (from..from + count).collect()),
        (0u64..3000, 1500u64..4000, 1u64..4)
            .prop_map(|(from, count, step)| (from..from + count).step_by(step as usize).collect()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_update_gives_what_writing_the_result_gives(
        base in names(),
        removed in names(),
        added in names(),
        few in any::<bool>(),
    ) {
        let place = Place::new();
        let base = listing(base);
        let written = place.write(&base);
        prop_assert_eq!(place.list(written.tree.as_ref()), base.clone());
        prop_assert_eq!(written.links, has_links(&base));

        let limit = if few { 3 } else { usize::MAX };
        let mut changes = Changes::new();
        changes.extend(removed.into_iter().rev().take(limit).map(|i| (name(i), None)));
        changes.extend(added.into_iter().take(limit).map(|i| (name(i), Some(target(i + 7)))));
        let result = apply(&base, &changes);
        let updated = place.update(written.tree.as_ref(), &changes);
        prop_assert_eq!(updated, place.write(&result));
        prop_assert_eq!(place.list(updated.tree.as_ref()), result.clone());

        // And back, with the steps in another order.
        let back: Changes =
            changes.keys().map(|name| (name.clone(), base.get(name).cloned())).collect();
        let mut tree = updated.tree;
        for step in [0, 1] {
            let half = back.iter().enumerate().filter(|(i, _)| i % 2 == step);
            let half = half.map(|(_, (name, target))| (name.clone(), target.clone())).collect();
            tree = place.update(tree.as_ref(), &half).tree;
        }
        prop_assert_eq!(tree, written.tree);
        for (name, target) in &base {
            let found = place.trees.lookup(&tree.unwrap(), name).unwrap();
            prop_assert_eq!(found.as_ref(), Some(target));
        }
    }

    #[test]
    fn leaves_of_any_records_round_trip(
        entries in proptest::collection::btree_map(
            proptest::collection::vec(any::<u8>(), 1..20),
            crate::inode::tests::record(),
            1..20,
        )
    ) {
        let place = Place::new();
        let listing: Listing = entries
            .into_iter()
            .filter(|(name, _)| Keys::Names.reject(name).is_none())
            .map(|(name, record)| (name.into(), Target::Inode(record)))
            .collect();
        let written = place.write(&listing);
        let links = |target: &Target| matches!(target, Target::Inode(InodeRecord { body: Body::Directory { links: true, .. }, .. }));
        prop_assert_eq!(written.links, listing.values().any(links));
        prop_assert_eq!(place.list(written.tree.as_ref()), listing);
    }
}

proptest! {
    #[test]
    fn garbage_is_refused(form in 0u8..3, keys in 0u8..3, count in prop_oneof![0u32..4, any::<u32>()], rest: Vec<u8>) {
        let mut bytes = b"KTR3".to_vec();
        bytes.extend_from_slice(&[form, keys, 0, 0]);
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&rest);
        exercise(bytes);
        exercise(rest);
    }

    #[test]
    fn damage_is_refused_or_harmless(at in any::<proptest::sample::Index>(), byte: u8, cut in any::<proptest::sample::Index>()) {
        let mut leaf = codec::LeafBuilder::new(b"a");
        let mut raw = Vec::new();
        for i in 0..5 {
            raw.clear();
            codec::encode_target(&mut raw, &target(i * 10));
            leaf.push(codec::raw_entry(&name(i), &raw)).unwrap();
        }
        let chunk = |i| Chunk { first: name(i), id: ObjectId::of(b"x"), count: 3, links: i == 2 };
        let index = Index::new(Keys::Names, (0..5).map(chunk).collect());
        for mut bytes in [leaf.encode(Keys::Names), index.encode()] {
            prop_assert!(Node::parse(&ObjectId::of(b""), bytes.clone()).is_ok());
            let at = at.index(bytes.len());
            bytes[at] = byte;
            exercise(bytes.clone());
            bytes.truncate(cut.index(bytes.len()));
            exercise(bytes);
        }
    }
}

/// Parses the bytes and, if that succeeds, uses every part.
fn exercise(bytes: Vec<u8>) {
    match Node::parse(&ObjectId::of(b""), bytes.clone()) {
        Ok(Node::Leaf(tree)) => {
            for entry in tree.iter() {
                assert_eq!(tree.get(entry.name()).unwrap().raw(), entry.raw());
                let front = (entry.ino(), entry.kind(), entry.has_links(), entry.is_link());
                match entry.to_target() {
                    Ok(Target::Inode(record)) => assert_eq!(front.0, record.ino),
                    Ok(Target::Link { ino, kind }) => assert_eq!(front, (ino, kind, true, true)),
                    Err(_) => {}
                }
            }
            assert!(tree.get(b"\xff\xff\xff").is_none());
        }
        Ok(Node::Index(index)) => {
            assert!(index.chunks().len() * 32 < bytes.len());
            assert_eq!(index.encode(), bytes);
            assert!(index.chunk_of(b"\xff\xff\xff").is_some());
        }
        Ok(Node::Root(_)) | Err(_) => {}
    }
}

#[test]
fn one_change_in_a_long_directory_writes_two_objects() {
    let place = Place::new();
    let base = listing(0..20_000);
    let tree = place.write(&base).tree.unwrap();
    let mut batch = place.batch();
    let changes = Changes::from([(name(7777), Some(target(3)))]);
    update_dir(&place.trees, &mut batch, Some(&tree), &changes).unwrap();
    let stats = batch.commit().unwrap();
    assert_eq!(stats.objects, 2, "a chunk and the index");
    assert!(stats.bytes < 500 << 10, "{stats:?}");
}

#[test]
fn a_stretch_without_borders_is_cut_and_updated_alike() {
    let place = Place::new();
    let dull: Vec<u64> = (0..).filter(|i| !split::is_border(&name(*i))).take(10_000).collect();
    let mut base = listing(dull.iter().copied());
    let mut tree = place.write(&base).tree;
    let border = (0..).find(|i| split::is_border(&name(*i))).unwrap();
    for changes in [
        Changes::from([(name(dull[5000]), None)]),
        Changes::from([(b"a".as_slice().into(), Some(target(9)))]),
        Changes::from([(name(border), Some(target(9)))]),
        Changes::from([(name(border), None)]),
        Changes::from([(b"a".as_slice().into(), None), (name(dull[5000]), Some(target(4)))]),
    ] {
        base = apply(&base, &changes);
        tree = place.update(tree.as_ref(), &changes).tree;
        assert_eq!(tree, place.write(&base).tree);
    }
}

#[test]
fn losing_border_names_joins_stretches() {
    let place = Place::new();
    let base = listing(0..6000);
    let tree = place.write(&base).tree;
    let borders: Vec<_> = base.keys().filter(|name| split::is_border(name)).cloned().collect();
    assert!(borders.len() > 3);
    for lost in [&borders[..1], &borders[1..3], &borders[borders.len() - 1..], &borders[..]] {
        let changes: Changes = lost.iter().map(|name| (name.clone(), None)).collect();
        assert_eq!(place.update(tree.as_ref(), &changes), place.write(&apply(&base, &changes)));
    }
}

#[test]
fn bad_names_records_and_orders_are_refused() {
    let place = Place::new();
    let refused = |entries: Vec<(&[u8], Target)>| {
        let entries = entries.into_iter().map(|(name, target)| Entry { name: name.into(), target });
        let error = write_dir(&mut place.batch(), &mut entries.into_iter()).unwrap_err();
        assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    };
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        refused(vec![(bad, target(1))]);
    }
    refused(vec![(b"b", target(1)), (b"a", target(2))]);
    refused(vec![(b"a", target(1)), (b"a", target(2))]);
    refused(vec![(b"a", Target::Inode(record(1 << 48, 0o100_644, Body::Regular(FileContent::empty()))))]);
    refused(vec![(b"a", Target::Inode(record(5, 0o100_644, Body::Special)))]);
    refused(vec![(b"a", Target::Inode(record(5, 0o644, Body::Regular(FileContent::empty()))))]);
}

#[test]
fn link_tables_are_not_directories() {
    let place = Place::new();
    let file = |ino| record(ino, 0o100_644, Body::Regular(FileContent::empty()));
    let mut batch = place.batch();
    // These keys contain slashes and zero bytes, which names cannot.
    let links = write_links(&mut batch, &mut (1..3000).map(file)).unwrap();
    let dir =
        write_dir(&mut batch, &mut std::iter::once(Entry { name: name(1), target: target(1) })).unwrap();
    batch.commit().unwrap();
    let mut root = Root {
        inode: record(1, 0o040_755, Body::Directory { tree: dir.tree, links: false }),
        links,
        next_ino: 5000,
    };
    assert_eq!(place.trees.link(&root, 47).unwrap(), Some(file(47)));
    assert_eq!(place.trees.link(&root, 3000).unwrap(), None);
    assert!(place.trees.lookup(&links.unwrap(), &1u64.to_be_bytes()).is_err());
    assert!(place.trees.for_each(&links.unwrap(), &mut |_| Ok(())).is_err());

    let mut changed = file(2000);
    changed.uid = 7;
    let changes = BTreeMap::from([(47, None), (2000, Some(changed.clone())), (4000, Some(file(4000)))]);
    let mut batch = place.batch();
    let updated = update_links(&place.trees, &mut batch, links.as_ref(), &changes).unwrap();
    let all = (1..3000).chain([4000]).filter(|ino| *ino != 47);
    let all = all.map(|ino| if ino == 2000 { changed.clone() } else { file(ino) });
    assert_eq!(updated, write_links(&mut batch, &mut all.into_iter()).unwrap());
    let none = (1..3000).chain([4000]).map(|ino| (ino, None)).collect();
    assert_eq!(update_links(&place.trees, &mut batch, updated.as_ref(), &none).unwrap(), None);

    root.links = dir.tree;
    assert!(matches!(place.trees.link(&root, 1), Err(StoreError::Corrupt { .. })));
}

#[test]
fn a_base_may_be_staged_in_the_same_batch() {
    let place = Place::new();
    let mut batch = place.batch();
    let changes: Changes = (0..2000).map(|i| (name(i), Some(target(i)))).collect();
    let first = update_dir(&place.trees, &mut batch, None, &changes).unwrap();
    let second = Changes::from([(name(5), None)]);
    let second = update_dir(&place.trees, &mut batch, first.tree.as_ref(), &second).unwrap();
    batch.commit().unwrap();
    assert_eq!(place.list(second.tree.as_ref()).len(), 1999);
}

#[test]
fn a_chunk_that_is_not_what_its_index_says_is_corrupt() {
    let place = Place::new();
    let mut batch = place.batch();
    let mut leaf = |names: std::ops::Range<u64>| {
        let entries = listing(names).into_iter().map(|(name, target)| Entry { name, target });
        write_dir(&mut batch, &mut entries.into_iter()).unwrap().tree.unwrap()
    };
    let (a, b) = (leaf(0..5), leaf(3..9));
    let chunk = |i, id, count| Chunk { first: name(i), id, count, links: true };
    let mut ids = Vec::new();
    for chunks in [
        vec![chunk(0, a, 4)],
        vec![chunk(1, a, 5)],
        // Overlapping chunks.
        vec![chunk(0, a, 5), chunk(3, b, 6)],
    ] {
        ids.push(batch.put(&Index::new(Keys::Names, chunks).encode()).unwrap());
    }
    // An index inside an index.
    ids.push(batch.put(&Index::new(Keys::Names, vec![chunk(0, ids[0], 4)]).encode()).unwrap());
    batch.commit().unwrap();
    for id in ids {
        let result = place.trees.for_each(&id, &mut |_| Ok(()));
        assert!(matches!(result, Err(StoreError::Corrupt { .. })), "{result:?}");
    }
}

#[test]
fn the_cache_is_bounded_and_roots_are_kept_apart() {
    const LIMIT: usize = 2 << 20;
    let place = Place::new();
    place.trees.cache.lock().limit = LIMIT;
    let mut batch = place.batch();
    let mut trees = Vec::new();
    for i in 0..60 {
        let entries =
            listing(i * 1000..i * 1000 + 1000).into_iter().map(|(name, target)| Entry { name, target });
        trees.push(write_dir(&mut batch, &mut entries.into_iter()).unwrap().tree.unwrap());
    }
    let root = Root {
        inode: record(1, 0o040_755, Body::Directory { tree: Some(trees[0]), links: true }),
        links: None,
        next_ino: 2,
    };
    let root_id = root.write(&mut batch).unwrap();
    batch.commit().unwrap();
    for tree in &trees {
        assert_eq!(place.trees.len(tree).unwrap(), 1000);
    }
    let cache = place.trees.cache.lock();
    assert!(cache.cost <= LIMIT && cache.cost > LIMIT / 2 && cache.nodes.len() < 60);
    assert_eq!(cache.cost, cache.nodes.iter().map(|(_, node)| node.cost()).sum::<usize>());
    drop(cache);
    let read = place.trees.root(&root_id).unwrap();
    assert_eq!(*read, root);
    assert!(Arc::ptr_eq(&read, &place.trees.root(&root_id).unwrap()));
    assert!(place.trees.root(&trees[59]).is_err());
    assert!(place.trees.lookup(&root_id, b"x").is_err());
    assert!(place.trees.root(&ObjectId::of(b"nothing")).unwrap_err().is_missing());
}

#[test]
fn an_ordinary_entry_is_compact() {
    let place = Place::new();
    let mut batch = place.batch();
    let entries = (0..500u64).map(|i| Entry {
        name: format!("libexample-{i:04}.so").into_bytes().into(),
        target: target(10_000 + i * 3 + u64::from((10_000 + i * 3).is_multiple_of(50))),
    });
    write_dir(&mut batch, &mut entries.into_iter()).unwrap();
    let bytes = batch.commit().unwrap().bytes;
    assert!(bytes / 500 < 90, "{} bytes an entry", bytes / 500);
}
