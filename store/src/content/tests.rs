use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::batch::Batch;
use crate::open::Store;

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// The bytes of a file: each block is a hole (`None`) or filled with one byte, except for a zero at its
/// start. `tail` is the length of the last block.
fn file() -> impl Strategy<Value = Vec<u8>> {
    let block = prop_oneof![1 => Just(None), 3 => (1u8..=255).prop_map(Some)];
    let sizes = prop_oneof![0usize..4, 14usize..20];
    let tail = prop_oneof![Just(BLOCK as usize), Just(1usize), 1..=BLOCK as usize];
    (sizes.prop_flat_map(move |n| proptest::collection::vec(block.clone(), n)), tail).prop_map(
        |(blocks, tail)| {
            let mut bytes = Vec::new();
            for block in &blocks {
                bytes.extend_from_slice(&vec![block.unwrap_or(0); BLOCK as usize]);
                let start = bytes.len() - BLOCK as usize;
                bytes[start] = 0;
            }
            bytes.truncate(bytes.len().saturating_sub(BLOCK as usize - tail));
            bytes
        },
    )
}

fn read_back(store: &Store, content: &FileContent) -> Vec<u8> {
    let mut bytes = vec![0xaa; content.size as usize + 10];
    let n = read_at(store, content, 0, &mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

/// The identity as defined in docs/STORE-FORMAT.md, and the data ranges.
fn naive(bytes: &[u8]) -> (bool, ObjectId, Vec<(u64, u64)>) {
    let mut list = BlockList::new(bytes.len() as u64);
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (i, block) in (0u64..).zip(bytes.chunks(BLOCK as usize)) {
        if block.iter().any(|byte| *byte != 0) {
            list.set(i, Some(ObjectId::of(block)));
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == i * BLOCK => last.1 += block.len() as u64,
                _ => ranges.push((i * BLOCK, block.len() as u64)),
            }
        }
    }
    let plain = bytes.len() as u64 <= SMALL_MAX && list.len() as u64 == block_count(bytes.len() as u64);
    (plain, if plain { ObjectId::of(bytes) } else { ObjectId::of(&list.encode()) }, ranges)
}

fn check(store: &Store, content: &FileContent, bytes: &[u8]) {
    let (plain, hash, ranges) = naive(bytes);
    assert_eq!((content.size, content.is_plain(), content.hash), (bytes.len() as u64, plain, hash));
    assert_eq!(content.data_ranges(), ranges);
    assert!(read_back(store, content) == bytes, "the bytes differ");
    assert!(content.objects().all(|id| store.objects().contains(&id)));
    let mut out = Vec::new();
    content.encode(&mut out);
    let mut decoder = Decoder::new("test", &out);
    assert_eq!(&FileContent::decode(&mut decoder, plain).unwrap(), content);
    decoder.finish().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_way_in_gives_one_identity(bytes in file()) {
        let (dir, store) = store();
        let path = dir.path().join("file");
        fs::write(&path, &bytes).unwrap();
        let file = File::open(&path).unwrap();
        let mut batch = Batch::new(&store).unwrap();
        let streamed = ingest(&mut &bytes[..], &mut batch).unwrap();
        let (_, _, ranges) = naive(&bytes);
        let known = ingest_ranges(&file, bytes.len() as u64, &ranges, &mut batch).unwrap();
        let whole = [(0, bytes.len() as u64)];
        let scanned = ingest_ranges(&file, bytes.len() as u64, &whole, &mut batch).unwrap();
        batch.commit().unwrap();
        let mut batch = Batch::new(&store).unwrap();
        let adopted = adopt(&path, &file, &mut batch).unwrap();
        batch.commit().unwrap();
        for content in [&streamed, &known, &scanned, &adopted] {
            check(&store, content, &bytes);
        }
    }

    #[test]
    fn an_update_gives_what_ingesting_the_result_gives(
        base in file(),
        limit in 0u64..20 * BLOCK,
        size in prop_oneof![0u64..20 * BLOCK, (0u64..20).prop_map(|blocks| blocks * BLOCK)],
        dirty in proptest::collection::btree_set(0u64..20, 0..6),
        source in file(),
        keep in any::<bool>(),
    ) {
        let (_dir, store) = store();
        let mut batch = Batch::new(&store).unwrap();
        let content = ingest(&mut &base[..], &mut batch).unwrap();
        batch.commit().unwrap();
        let (limit, size) = if keep { (u64::MAX, base.len() as u64) } else { (limit, size) };
        let mut data = tempfile::tempfile().unwrap();
        data.write_all(&source).unwrap();

        let expected = apply(&base, limit, size, &dirty, &source);
        let mut batch = Batch::new(&store).unwrap();
        let updated = update(&content, limit, size, &mut dirty.iter().copied().rev(), &data, &mut batch).unwrap();
        batch.commit().unwrap();
        check(&store, &updated, &expected);

        // Again, on the result.
        let dirty: BTreeSet<u64> = dirty.iter().map(|block| (block * 7 + 3) % 20).collect();
        let size = size + 5;
        let again = apply(&expected, u64::MAX, size, &dirty, &source);
        let mut batch = Batch::new(&store).unwrap();
        let updated = update(&updated, u64::MAX, size, &mut dirty.iter().copied(), &data, &mut batch).unwrap();
        batch.commit().unwrap();
        check(&store, &updated, &again);
    }

    #[test]
    fn garbage_is_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..200), plain: bool) {
        let mut decoder = Decoder::new("test", &bytes);
        if let Ok(content) = FileContent::decode(&mut decoder, plain) {
            let mut out = Vec::new();
            content.encode(&mut out);
            prop_assert_eq!(&out[..], &bytes[..decoder.position()]);
        }
        let mut list = b"KBL3".to_vec();
        list.extend_from_slice(&bytes);
        if let Ok(decoded) = BlockList::decode(&list) {
            prop_assert_eq!(decoded.encode(), list);
        }
    }

    #[test]
    fn a_damaged_record_is_refused_or_canonical(
        blocks in proptest::collection::btree_set(0u64..40, 0..12),
        at in any::<proptest::sample::Index>(),
        byte: u8,
    ) {
        let mut list = BlockList::new(40 * BLOCK - 7);
        for block in &blocks {
            list.set(*block, Some(ObjectId::of(&block.to_le_bytes())));
        }
        let mut bytes = list.encode();
        prop_assert_eq!(BlockList::decode(&bytes).unwrap(), list);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(decoded) = BlockList::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), bytes);
        }
    }
}

fn apply(base: &[u8], limit: u64, size: u64, dirty: &BTreeSet<u64>, source: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    bytes.truncate(limit.min(size) as usize);
    bytes.resize(size as usize, 0);
    for block in dirty.iter().filter(|block| **block < block_count(size)) {
        let range = (block * BLOCK) as usize..(block * BLOCK + block_length(*block, size)) as usize;
        for i in range {
            bytes[i] = source.get(i).copied().unwrap_or(0);
        }
    }
    bytes
}

#[test]
fn the_empty_file_has_no_object() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let content = ingest(&mut &b""[..], &mut batch).unwrap();
    assert_eq!(batch.commit().unwrap().objects, 0);
    assert_eq!(content, FileContent::empty());
    assert_eq!(content.hash, ObjectId::of(b""));
    assert_eq!((content.extents().count(), content.objects().count()), (0, 0));
}

#[test]
fn a_small_file_of_zeros_is_a_hole() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let content = ingest(&mut &[0u8; 10][..], &mut batch).unwrap();
    batch.commit().unwrap();
    assert!(!content.is_plain() && content.extents.is_empty());
    assert_eq!(read_back(&store, &content), [0; 10]);
}

#[test]
fn a_sparse_file_costs_its_data() {
    let (dir, store) = store();
    let path = dir.path().join("sparse");
    let file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
    let size = 1 << 40;
    file.set_len(size).unwrap();
    file.write_all_at(b"middle", size / 2 + 3).unwrap();
    let began = Instant::now();
    let mut batch = Batch::new(&store).unwrap();
    let content = adopt(&path, &file, &mut batch).unwrap();
    assert_eq!(content.size, size);
    assert_eq!(content.data_ranges(), [(size / 2, BLOCK)]);
    // Punching out the only data leaves one hole; then the list is the only object.
    file.set_len(0).unwrap();
    file.set_len(size).unwrap();
    let hole =
        update(&content, size, size, &mut std::iter::once(size / 2 / BLOCK), &file, &mut batch).unwrap();
    assert!(hole.extents.is_empty());
    assert_eq!(hole.hash, ObjectId::of(&BlockList::new(size).encode()));
    batch.commit().unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn adopting_a_large_whole_file_copies_nothing() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, store) = store();
    let path = dir.path().join("large");
    fs::write(&path, vec![7; 3 << 20]).unwrap();
    let mut file = File::open(&path).unwrap();
    let mut batch = Batch::new(&store).unwrap();
    let content = adopt(&path, &file, &mut batch).unwrap();
    batch.commit().unwrap();
    assert_eq!(content.extents.len(), 1);
    let object = store.objects().path(&content.extents[0].object);
    assert_eq!(object.metadata().unwrap().ino(), path.metadata().unwrap().ino());
    file.rewind().unwrap();
    let mut batch = Batch::new(&store).unwrap();
    assert_eq!(ingest(&mut file, &mut batch).unwrap(), content);
}

#[test]
fn a_fragmented_file_is_repacked() {
    let (_dir, store) = store();
    // Every second block has data, a single byte; the rest of the block reads as zeros.
    let blocks = 2 * (17 << 10);
    let mut list = BlockList::new(blocks * BLOCK);
    let mut batch = Batch::new(&store).unwrap();
    let mut block = vec![0; BLOCK as usize];
    block[0] = 1;
    let (hash, object) = (ObjectId::of(&block), batch.put(&block).unwrap());
    let mut extents = Vec::new();
    for i in (0..blocks).step_by(2) {
        list.set(i, Some(hash));
        extents.push(Extent { offset: i * BLOCK, length: 1, object, object_offset: 0 });
    }
    let id = batch.put(&list.encode()).unwrap();
    let base = FileContent::listed(list.size(), id, extents);
    let data = tempfile::tempfile().unwrap();
    data.set_len(list.size()).unwrap();
    data.write_all_at(&[9], BLOCK).unwrap();
    let before = base.extents.len();
    let content = update(&base, u64::MAX, base.size, &mut std::iter::once(1), &data, &mut batch).unwrap();
    let objects: BTreeSet<_> = content.extents.iter().map(|extent| extent.object).collect();
    assert_eq!(objects.len(), 1, "everything lies in one object");
    assert!(content.extents.len() <= before);
    assert_eq!(content.extents[0].length, 3 * BLOCK);
}

#[test]
fn an_object_that_is_too_short_is_corrupt() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let object = batch.put(b"abc").unwrap();
    batch.commit().unwrap();
    let content = FileContent::plain(4, object);
    let error = read_at(&store, &content, 0, &mut [0; 4]).unwrap_err();
    assert!(matches!(error, crate::error::StoreError::Corrupt { .. }), "{error}");
}
