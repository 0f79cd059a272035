//! A view over its own store, and helpers for the tests.

use std::path::PathBuf;
use std::sync::Arc;

use karapace_fs::attr::{Caller, HeadRef, Invalidation};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::inode::{Ino, ROOT_INO};
use karapace_store::layout::Layout;
use karapace_store::tree::Trees;

use crate::common::commit::commit;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

pub struct Env {
    pub dir: tempfile::TempDir,
    pub store: Arc<Store>,
    pub view: View,
    commits: u8,
}

impl Env {
    pub fn new() -> Env {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let base = head(crate::common::reference::empty_root(&store), 0);
        let view = open(&store, dir.path().join("store/upper"), base);
        Env { dir, store, view, commits: 0 }
    }

    /// Where the store's files lie.
    pub fn layout(&self) -> Layout {
        Layout::new(self.store.root())
    }

    pub fn reopen(&mut self) {
        self.view = open(&self.store, self.dir.path().join("store/upper"), self.view.head());
    }

    pub fn commit(&mut self) -> HeadRef {
        self.commits += 1;
        let n = self.commits;
        commit(&self.view, &mut |root| head(root, n)).unwrap().expect("something to commit")
    }

    pub fn restore(&self, to: HeadRef) -> Vec<Invalidation> {
        let generation = self.view.clean_generation().unwrap().expect("committed before");
        self.view.restore(to, generation).unwrap().stale
    }

    /// Creates a file in the root and keeps its reference, as for a program that has it open.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Ino {
        let ino = self.view.mknod(&CALLER, ROOT_INO, name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap().ino;
        self.view.write(ino, 0, bytes, false).unwrap();
        ino
    }

    pub fn read(&self, ino: Ino) -> Vec<u8> {
        let mut buf = Vec::new();
        self.view.read(ino, 0, 64 << 20, &mut buf).unwrap();
        buf
    }

    pub fn names_from(&self, cookie: u64, most: usize) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        self.view
            .readdir(ROOT_INO, cookie, false, &mut |item| {
                let room = found.len() < most;
                if room {
                    found.push((item.cookie, item.name.to_vec()));
                }
                room
            })
            .unwrap();
        found
    }
}

pub fn head(root: karapace_store::id::ObjectId, n: u8) -> HeadRef {
    HeadRef { layer: LayerHash::from_bytes([n; 32]), record: RecordId::from_bytes([n; 32]), root }
}

pub fn open(store: &Arc<Store>, upper: PathBuf, head: HeadRef) -> View {
    let trees = Arc::new(Trees::new(store.clone()));
    View::open(store, &trees, &upper, head, false).unwrap()
}

pub fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(37).wrapping_add((i >> 16) as u8).wrapping_add(seed) | 1)
        .collect()
}
