//! The inner loops of the store: decoding a directory, writing a layer's tar, finding paths.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use karapace_store::Store;
use karapace_store::batch::Batch;
use karapace_store::content::FileContent;
use karapace_store::id::ObjectId;
use karapace_store::inode::{Body, Ino, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use karapace_store::paths::{Ignore, resolve};
use karapace_store::root::Root;
use karapace_store::tar::identity_hash;
use karapace_store::tree::{Entry, StoredTree, Target, Tree, Trees, WrittenDir, write_dir};

/// Directories below the root, and files in each.
const DIRECTORIES: u64 = 20;
const FILES: u64 = 200;

struct Fixture {
    trees: Trees,
    /// The listing of one of the directories.
    listing: ObjectId,
    root: Arc<Root>,
    _place: tempfile::TempDir,
}

fn record(ino: Ino, mode: u32, body: Body) -> InodeRecord {
    let time = Timestamp { secs: 1_000_000_000, nanos: 5 };
    InodeRecord {
        ino,
        mode,
        nlink: if mode & 0o170_000 == 0o040_000 { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        xattrs: Xattrs::default(),
        body,
    }
}

fn directory(ino: Ino, dir: WrittenDir) -> InodeRecord {
    record(ino, 0o040_755, Body::Directory { tree: dir.tree, links: dir.links })
}

fn entry(name: String, record: InodeRecord) -> Entry {
    Entry { name: name.into_bytes().into(), target: Target::Inode(record) }
}

fn fixture() -> karapace_store::Result<Fixture> {
    let place = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&place.path().join("store"))?;
    let mut batch = Batch::new(&store)?;
    let mut ino = ROOT_INO;
    let mut next = || {
        ino += 1;
        ino
    };
    let mut top = Vec::new();
    let mut listing = None;
    for d in 0..DIRECTORIES {
        let mut files = Vec::new();
        for f in 0..FILES {
            let name = format!("file-{f:05}");
            let content = FileContent::plain(name.len() as u64, ObjectId::of(name.as_bytes()));
            files.push(entry(name, record(next(), 0o100_644, Body::Regular(content))));
        }
        let written = write_dir(&mut batch, &mut files.into_iter())?;
        listing = written.tree;
        top.push(entry(format!("directory-{d:05}"), directory(next(), written)));
    }
    let written = write_dir(&mut batch, &mut top.into_iter())?;
    let mut inode = directory(ROOT_INO, written);
    inode.nlink = 2 + DIRECTORIES as u32;
    let root = Root { inode, links: None, next_ino: next() }.write(&mut batch)?;
    batch.commit()?;
    let trees = Trees::new(store);
    let root = trees.root(&root)?;
    Ok(Fixture { trees, listing: listing.expect("a directory that is not empty"), root, _place: place })
}

fn inner_loops(c: &mut Criterion) {
    let made = fixture().expect("a store");
    let bytes = made.trees.store().objects().read(&made.listing, 1 << 24).expect("the listing");
    c.bench_function("tree decode, 200 entries", |b| {
        b.iter(|| {
            let tree = Tree::parse(bytes.clone()).expect("a listing");
            tree.iter().map(|entry| black_box(entry.ino())).sum::<u64>()
        });
    });
    c.bench_function("tar encode and hash, 4,021 entries", |b| {
        b.iter(|| identity_hash(&made.trees, None, &made.root).expect("a tar"));
    });
    let paths: Vec<Vec<u8>> =
        (0..DIRECTORIES).map(|d| format!("/directory-{d:05}/file-00123").into_bytes()).collect();
    c.bench_function("path resolution, 20 paths", |b| {
        let tree = StoredTree::new(&made.trees, &made.root);
        b.iter(|| resolve(&tree, black_box(&paths), &Ignore::default()).expect("paths").len());
    });
}

criterion_group!(benches, inner_loops);
criterion_main!(benches);
