//! Compares the view with a reference model: random operations must give the same results and the same tree.
//!
//! There is no mount. `KARAPACE_MODEL_CASES` sets the number of sequences; the seed is printed, and
//! `KARAPACE_MODEL_SEED` repeats a run.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::commit::commit;
use common::generator::{P, bytes, name, offset, path, run_random};
use common::reference::{self, Model};
use karapace_fs::attr::{Caller, HeadRef, RenameMode, SetAttr};
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::inode::{FileKind, Ino, ROOT_INO};
use karapace_store::tree::Trees;
use proptest::prelude::*;

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

#[derive(Clone, Debug)]
enum Op {
    Create(P),
    Mkdir(P),
    Symlink(P, u8),
    Mkfifo(P),
    Link(P, P),
    Unlink(P),
    Rmdir(P),
    Rename(P, P, u8),
    Write(P, u32, u32, u8),
    Truncate(P, u32),
    Punch(P, u32, u32),
    Chmod(P, u16),
    Chown(P, u8, u8),
    Xattr(P, u8, u8),
    Unxattr(P, u8),
    Read(P),
    Commit,
    Restore(u8),
    Reopen,
    Checkpoint,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => path().prop_map(Op::Create),
        6 => path().prop_map(Op::Mkdir),
        2 => (path(), 0u8..4).prop_map(|(p, t)| Op::Symlink(p, t)),
        1 => path().prop_map(Op::Mkfifo),
        4 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        3 => path().prop_map(Op::Unlink),
        1 => path().prop_map(Op::Rmdir),
        8 => (path(), path(), 0u8..4).prop_map(|(a, b, m)| Op::Rename(a, b, m)),
        12 => (path(), offset(), 1u32..200_000, any::<u8>()).prop_map(|(p, o, n, b)| Op::Write(p, o, n, b)),
        4 => (path(), offset()).prop_map(|(p, n)| Op::Truncate(p, n)),
        2 => (path(), offset(), 1u32..300_000).prop_map(|(p, o, n)| Op::Punch(p, o, n)),
        3 => (path(), 0u16..0o10000).prop_map(|(p, m)| Op::Chmod(p, m)),
        2 => (path(), 0u8..3, 0u8..3).prop_map(|(p, u, g)| Op::Chown(p, u, g)),
        2 => (path(), 0u8..3, any::<u8>()).prop_map(|(p, n, v)| Op::Xattr(p, n, v)),
        1 => (path(), 0u8..3).prop_map(|(p, n)| Op::Unxattr(p, n)),
        4 => path().prop_map(Op::Read),
        3 => Just(Op::Commit),
        2 => any::<u8>().prop_map(Op::Restore),
        2 => Just(Op::Reopen),
        1 => Just(Op::Checkpoint),
    ]
}

struct System {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    trees: Arc<Trees>,
    view: View,
    model: Model,
    snapshots: Vec<(HeadRef, Model)>,
}

fn head(root: karapace_store::id::ObjectId, n: u8) -> HeadRef {
    HeadRef { layer: LayerHash::from_bytes([n; 32]), record: RecordId::from_bytes([n; 32]), root }
}

impl System {
    fn new() -> System {
        // In memory if possible: this tests behaviour, not durability.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let root = reference::empty_root(&store);
        let trees = Arc::new(Trees::new(store.clone()));
        let base = head(root, 0);
        let view = View::open(&store, &trees, &dir.path().join("store/upper"), base, false).unwrap();
        let model = Model::new();
        System { snapshots: vec![(base, model.clone())], dir, store, trees, view, model }
    }

    fn upper(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("store/upper")
    }

    /// The parent directory and the name, as the kernel would resolve them.
    fn parent(&self, p: &P) -> Result<(Ino, Vec<u8>), i32> {
        let (last, dirs) = p.0.split_last().unwrap();
        let mut at = ROOT_INO;
        for part in dirs {
            let found = self.view.lookup(at, &name(*part)).map_err(|e| e.errno());
            self.release(at);
            let attr = found?;
            at = attr.ino;
            if FileKind::from_mode(attr.mode) != Some(FileKind::Directory) {
                self.view.forget(at, 1);
                return Err(libc::ENOTDIR);
            }
        }
        Ok((at, name(*last)))
    }

    /// Calls `f` with the inode at the path.
    fn with<T>(&self, p: &P, f: impl FnOnce(Ino) -> Result<T, karapace_fs::Error>) -> Result<T, i32> {
        let (dir, name) = self.parent(p)?;
        let attr = self.view.lookup(dir, &name).map_err(|e| e.errno());
        self.release(dir);
        let attr = attr?;
        let result = f(attr.ino).map_err(|e| e.errno());
        self.view.forget(attr.ino, 1);
        result
    }

    fn release(&self, dir: Ino) {
        if dir != ROOT_INO {
            self.view.forget(dir, 1);
        }
    }

    fn create(
        &self,
        p: &P,
        f: impl FnOnce(Ino, &[u8]) -> Result<u64, karapace_fs::Error>,
    ) -> Result<(), i32> {
        let (dir, name) = self.parent(p)?;
        let made = f(dir, &name).map_err(|e| e.errno());
        self.release(dir);
        self.view.forget(made?, 1);
        Ok(())
    }

    fn remove(&self, p: &P, f: impl FnOnce(Ino, &[u8]) -> Result<(), karapace_fs::Error>) -> Result<(), i32> {
        let (dir, name) = self.parent(p)?;
        let done = f(dir, &name).map_err(|e| e.errno());
        self.release(dir);
        done
    }

    fn rename(&self, a: &P, b: &P, mode: RenameMode) -> Result<(), i32> {
        let (dir, from) = self.parent(a)?;
        let target = self.parent(b);
        let done = target.and_then(|(to_dir, to)| {
            let done = self.view.rename(&CALLER, dir, &from, to_dir, &to, mode).map_err(|e| e.errno());
            self.release(to_dir);
            done
        });
        self.release(dir);
        done
    }

    fn link(&self, a: &P, b: &P) -> Result<(), i32> {
        let (dir, from) = self.parent(a)?;
        let found = self.view.lookup(dir, &from).map_err(|e| e.errno());
        self.release(dir);
        let ino = found?.ino;
        let made = self.create(b, |dir, name| Ok(self.view.link(ino, dir, name)?.ino));
        self.view.forget(ino, 1);
        made
    }

    /// Runs the operation on both sides and returns whether it succeeded.
    fn apply(&mut self, op: &Op) -> bool {
        let model = path_names(op);
        let (a, b) = (model.0, model.1);
        let mut expected = self.model.clone();
        let (real, wanted): (Result<(), i32>, Result<(), i32>) = match op {
            Op::Create(p) => (
                self.create(p, |d, n| Ok(self.view.mknod(&CALLER, d, n, libc::S_IFREG | 0o644, 0)?.ino)),
                expected.make(&a, reference::Kind::File, 0o644),
            ),
            Op::Mkfifo(p) => (
                self.create(p, |d, n| Ok(self.view.mknod(&CALLER, d, n, libc::S_IFIFO | 0o600, 0)?.ino)),
                expected.make(&a, reference::Kind::Fifo, 0o600),
            ),
            Op::Mkdir(p) => (
                self.create(p, |d, n| Ok(self.view.mkdir(&CALLER, d, n, 0o755)?.ino)),
                expected.make(&a, reference::Kind::Dir, 0o755),
            ),
            Op::Symlink(p, t) => (
                self.create(p, |d, n| Ok(self.view.symlink(&CALLER, d, n, &name(*t))?.ino)),
                expected.make(&a, reference::Kind::Symlink(name(*t)), 0o777),
            ),
            Op::Link(p, q) => (self.link(p, q), expected.link(&a, &b)),
            Op::Unlink(p) => (self.remove(p, |d, n| self.view.unlink(d, n)), expected.unlink(&a)),
            Op::Rmdir(p) => (self.remove(p, |d, n| self.view.rmdir(d, n)), expected.rmdir(&a)),
            Op::Rename(p, q, m) => {
                let mode =
                    [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange, RenameMode::Whiteout]
                        [usize::from(*m)];
                (self.rename(p, q, mode), expected.rename(&a, &b, mode))
            }
            Op::Write(p, o, n, s) => {
                let data = bytes(*n, *s);
                let real = self.with(p, |ino| {
                    let written = self.view.write(ino, u64::from(*o), &data, false)?;
                    assert_eq!(written, data.len());
                    Ok(())
                });
                (real, expected.write(&a, *o as usize, &data))
            }
            Op::Truncate(p, n) => {
                let set = SetAttr { size: Some(u64::from(*n)), ..SetAttr::default() };
                (
                    self.with(p, |ino| self.view.setattr(ino, &set).map(drop)),
                    expected.truncate(&a, *n as usize),
                )
            }
            Op::Punch(p, o, n) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                (
                    self.with(p, |ino| self.view.fallocate(ino, mode, u64::from(*o), u64::from(*n))),
                    expected.punch(&a, *o as usize, *n as usize),
                )
            }
            Op::Chmod(p, m) => {
                let set = SetAttr { mode: Some(u32::from(*m)), ..SetAttr::default() };
                (
                    self.with(p, |ino| self.view.setattr(ino, &set).map(drop)),
                    expected.chmod(&a, u32::from(*m)),
                )
            }
            Op::Chown(p, u, g) => {
                let set =
                    SetAttr { uid: Some(u32::from(*u)), gid: Some(u32::from(*g)), ..SetAttr::default() };
                (self.with(p, |ino| self.view.setattr(ino, &set).map(drop)), expected.chown(&a, *u, *g))
            }
            Op::Xattr(p, n, v) => {
                let (key, value) = (format!("user.{n}"), vec![*v; usize::from(*v)]);
                (
                    self.with(p, |ino| self.view.setxattr(ino, key.as_bytes(), &value, 0)),
                    expected.setxattr(&a, &key, &value),
                )
            }
            Op::Unxattr(p, n) => {
                let key = format!("user.{n}");
                (
                    self.with(p, |ino| self.view.removexattr(ino, key.as_bytes())),
                    expected.removexattr(&a, &key),
                )
            }
            Op::Read(p) => {
                let mut buf = Vec::new();
                let real = self.with(p, |ino| self.view.read(ino, 0, 8 << 20, &mut buf));
                let wanted = expected.read(&a);
                if let Ok(data) = &wanted {
                    assert!(buf == *data, "content of {a:?} differs");
                }
                (real, wanted.map(drop))
            }
            Op::Commit => (self.commit(), Ok(())),
            Op::Restore(i) => (self.restore(*i, &mut expected), Ok(())),
            Op::Reopen => (self.reopen(), Ok(())),
            Op::Checkpoint => (self.view.checkpoint().map_err(|e| e.errno()), Ok(())),
        };
        assert_eq!(real, wanted, "{op:?}");
        if wanted.is_ok() {
            self.model = expected;
        }
        wanted.is_ok()
    }

    fn commit(&mut self) -> Result<(), i32> {
        let n = self.snapshots.len() as u8;
        let before =
            self.snapshots.iter().rev().find(|(h, _)| h.layer == self.view.head().layer).unwrap().1.clone();
        let done = commit(&self.view, &mut |root| head(root, n)).map_err(|e| e.errno())?;
        match done {
            Some(head) => self.snapshots.push((head, self.model.clone())),
            None => assert!(before.same(&self.model), "a commit found nothing, and there was something"),
        }
        let left = self.view.diff().unwrap();
        assert!(left.is_empty(), "after a commit the diff has {left:?}");
        Ok(())
    }

    fn restore(&mut self, i: u8, expected: &mut Model) -> Result<(), i32> {
        self.commit()?;
        let (head, model) = self.snapshots[usize::from(i) % self.snapshots.len()].clone();
        let generation = self.view.clean_generation().unwrap().expect("nothing changes here but we");
        self.view.restore(head, generation).map_err(|e| e.errno())?;
        *expected = model;
        Ok(())
    }

    /// Simulates kill -9: nothing is closed, and the upper is opened again.
    fn reopen(&mut self) -> Result<(), i32> {
        self.trees = Arc::new(Trees::new(self.store.clone()));
        let head = self.view.head();
        self.view =
            View::open(&self.store, &self.trees, &self.upper(), head, false).map_err(|e| e.errno())?;
        assert_eq!(self.view.head(), head);
        Ok(())
    }

    /// Compares every name, attribute and byte.
    fn check(&self) {
        let real = reference::dump(&self.view);
        let wanted = self.model.dump();
        assert_eq!(real, wanted);
        let head = self.view.head();
        let base = &self.snapshots.iter().rev().find(|(h, _)| h.layer == head.layer).unwrap().1;
        let mut real: Vec<(char, Vec<u8>)> =
            self.view.diff().unwrap().into_iter().map(|d| (d.kind.letter(), d.path)).collect();
        real.sort();
        // The model has no times, so the diff may list more paths as modified; added and deleted paths must
        // agree.
        let wanted = base.diff(&self.model);
        for change in &wanted {
            assert!(real.contains(change), "{change:?} is missing in {real:?}");
        }
        let named = |v: &[(char, Vec<u8>)]| v.iter().filter(|(k, _)| *k != 'M').cloned().collect::<Vec<_>>();
        assert_eq!(named(&real), named(&wanted));
    }
}

fn path_names(op: &Op) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    match op {
        Op::Link(a, b) | Op::Rename(a, b, _) => (a.names(), b.names()),
        Op::Create(a)
        | Op::Mkdir(a)
        | Op::Symlink(a, _)
        | Op::Mkfifo(a)
        | Op::Unlink(a)
        | Op::Rmdir(a)
        | Op::Write(a, ..)
        | Op::Truncate(a, _)
        | Op::Punch(a, ..)
        | Op::Chmod(a, _)
        | Op::Chown(a, ..)
        | Op::Xattr(a, ..)
        | Op::Unxattr(a, _)
        | Op::Read(a) => (a.names(), Vec::new()),
        Op::Commit | Op::Restore(_) | Op::Reopen | Op::Checkpoint => (Vec::new(), Vec::new()),
    }
}

/// A lower view to work on: directories, a small file, a large one with a hole.
fn base() -> Vec<Op> {
    let p = |parts: &[u8]| P(parts.to_vec());
    vec![
        Op::Mkdir(p(&[0])),
        Op::Mkdir(p(&[1])),
        Op::Create(p(&[0, 0])),
        Op::Write(p(&[0, 0]), 0, 199_999, 7),
        Op::Write(p(&[0, 0]), 1_100_000, 199_999, 9),
        Op::Create(p(&[1, 0])),
        Op::Write(p(&[1, 0]), 0, 70_000, 3),
        Op::Create(p(&[0, 1])),
        Op::Link(p(&[0, 1]), p(&[1, 1])),
        Op::Commit,
    ]
}

/// Returns the number of operations that succeeded.
fn run(ops: &[Op]) -> u64 {
    let mut system = System::new();
    let mut succeeded = 0;
    for (i, op) in base().iter().chain(ops).enumerate() {
        succeeded += u64::from(system.apply(op));
        if i % 16 == 15 {
            system.check();
        }
    }
    system.check();
    system.reopen().unwrap();
    system.check();
    succeeded
}

#[test]
fn random_operations_give_what_the_model_gives() {
    run_random("model test", 500, 200, op(), |ops| Ok(run(ops)));
}

/// Sequences that failed in the past.
#[test]
fn regressions() {
    let p = |parts: &[u8]| P(parts.to_vec());
    // Truncating a large file of the lower view to zero never returned.
    run(&[Op::Truncate(p(&[0, 0]), 0), Op::Read(p(&[0, 0])), Op::Write(p(&[0, 0]), 5, 10, 1)]);
    // A directory that moved, restored to its old place and then to its new one.
    run(&[
        Op::Rename(p(&[0, 0]), p(&[2]), 0),
        Op::Reopen,
        Op::Rmdir(p(&[0])),
        Op::Link(p(&[0, 2]), p(&[0])),
        Op::Rename(p(&[0]), p(&[1, 2, 0]), 0),
        Op::Checkpoint,
        Op::Rename(p(&[1]), p(&[0, 0]), 0),
        Op::Restore(1),
        Op::Restore(2),
        Op::Xattr(p(&[0, 0]), 0, 0),
    ]);
}
