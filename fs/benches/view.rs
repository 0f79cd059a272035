//! The inner loops of a view: what a request costs without the kernel.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use karapace_fs::attr::{Caller, HeadRef};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::batch::Batch;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::inode::{Body, InodeRecord, ROOT_INO, Timestamp, Xattrs};
use karapace_store::root::Root;
use karapace_store::tree::Trees;

/// Files in the directory that names are looked up in.
const FILES: usize = 1000;

fn empty_root(store: &Arc<Store>) -> karapace_store::Result<HeadRef> {
    let time = Timestamp { secs: 1_000_000_000, nanos: 5 };
    let inode = InodeRecord {
        ino: ROOT_INO,
        mode: 0o040_755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        xattrs: Xattrs::default(),
        body: Body::Directory { tree: None, links: false },
    };
    let mut batch = Batch::new(store)?;
    let root = Root { inode, links: None, next_ino: ROOT_INO + 1 }.write(&mut batch)?;
    batch.commit()?;
    Ok(HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root })
}

fn inner_loops(c: &mut Criterion) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&place.path().join("store")).expect("a store");
    let head = empty_root(&store).expect("a tree");
    let trees = Arc::new(Trees::new(store.clone()));
    let view = View::open(&store, &trees, &place.path().join("store/upper"), head, false).expect("a view");
    let caller = Caller { uid: 0, gid: 0, umask: 0o022 };
    let regular = libc::S_IFREG | 0o644;
    let names: Vec<Vec<u8>> = (0..FILES).map(|n| format!("file-{n:05}").into_bytes()).collect();
    for name in &names {
        let made = view.mknod(&caller, ROOT_INO, name, regular, 0).expect("a file");
        view.forget(made.ino, 1);
    }
    let mut next = names.iter().cycle();
    c.bench_function("path resolution, one name of 1,000", |b| {
        b.iter(|| {
            let name = next.next().expect("a cycle");
            let found = view.lookup(ROOT_INO, black_box(name)).expect("it is there");
            view.forget(found.ino, 1);
        });
    });
    c.bench_function("journal append, create and unlink", |b| {
        b.iter(|| {
            let made = view.mknod(&caller, ROOT_INO, b"new", regular, 0).expect("a file");
            view.unlink(ROOT_INO, b"new").expect("it is there");
            view.forget(made.ino, 1);
        });
    });
}

criterion_group!(benches, inner_loops);
criterion_main!(benches);
