//! Commits and restores under running writers, and what a killed process leaves.
//!
//! There is no mount. A kill is simulated by dropping the view without closing it.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::commit::commit;
use common::reference;
use karapace_fs::Error;
use karapace_fs::attr::{Caller, HeadRef, RenameMode, SetAttr};
use karapace_fs::check;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, ObjectId, RecordId};
use karapace_store::inode::{Ino, ROOT_INO};
use karapace_store::layout::Layout;
use karapace_store::tree::Trees;

const CALLER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
    trees: Arc<Trees>,
    base: HeadRef,
    commits: AtomicU64,
}

fn head(root: ObjectId, n: u64) -> HeadRef {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_le_bytes());
    HeadRef { layer: LayerHash::from_bytes(id), record: RecordId::from_bytes(id), root }
}

impl Place {
    fn new() -> Place {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let base = head(reference::empty_root(&store), 0);
        let trees = Arc::new(Trees::new(store.clone()));
        Place { dir, store, trees, base, commits: AtomicU64::new(0) }
    }

    fn upper(&self) -> PathBuf {
        self.dir.path().join("store/upper")
    }

    /// Opens the view with new, empty tree caches.
    fn open(&self) -> View {
        View::open(&self.store, &self.trees, &self.upper(), self.base, false).unwrap()
    }

    fn commit(&self, view: &View) -> Option<HeadRef> {
        let n = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        commit(view, &mut |root| head(root, n)).unwrap()
    }

    /// Checks that every object matches its name: none shares its bytes with a file that was written.
    fn check_objects(&self) {
        for dir in std::fs::read_dir(Layout::new(self.store.root()).objects()).unwrap() {
            for object in std::fs::read_dir(dir.unwrap().path()).unwrap() {
                let path = object.unwrap().path();
                let parent = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
                let name = format!("{parent}{}", path.file_name().unwrap().to_str().unwrap());
                assert_eq!(ObjectId::of(&std::fs::read(&path).unwrap()).to_hex(), name, "{path:?}");
            }
        }
    }
}

fn create(view: &View, dir: Ino, name: &[u8]) -> Ino {
    view.mknod(&CALLER, dir, name, libc::S_IFREG | 0o644, 0).unwrap().ino
}

fn read(view: &View, ino: Ino) -> Vec<u8> {
    let mut buf = Vec::new();
    view.read(ino, 0, 64 << 20, &mut buf).unwrap();
    buf
}

fn content(view: &View, dir: Ino, name: &[u8]) -> Vec<u8> {
    let ino = view.lookup(dir, name).unwrap().ino;
    let bytes = read(view, ino);
    view.forget(ino, 1);
    bytes
}

/// An open file without a name is in no checkpoint; replay must not depend on later operations on it.
#[test]
fn a_kill_after_writing_to_a_removed_file_leaves_a_view_that_opens() {
    for by_commit in [false, true] {
        let place = Place::new();
        let view = place.open();
        create(&view, ROOT_INO, b"kept");
        let small = create(&view, ROOT_INO, b"small");
        let large = create(&view, ROOT_INO, b"large");
        view.write(small, 0, b"one", false).unwrap();
        view.write(large, 0, &vec![1; 3 << 20], false).unwrap();
        place.commit(&view).unwrap();
        view.write(large, 0, b"two", false).unwrap();
        view.write(small, 0, b"two", false).unwrap();
        view.unlink(ROOT_INO, b"small").unwrap();
        view.unlink(ROOT_INO, b"large").unwrap();
        if by_commit {
            place.commit(&view).unwrap();
        } else {
            view.checkpoint().unwrap();
        }
        for ino in [small, large] {
            view.write(ino, 1 << 20, b"three", false).unwrap();
            view.setattr(ino, &SetAttr { size: Some(5), ..SetAttr::default() }).unwrap();
            view.setattr(ino, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
            view.setxattr(ino, b"user.x", b"y", 0).unwrap();
            assert_eq!(read(&view, ino).len(), 5);
            assert_eq!(read(&view, ino)[..3], *b"two");
        }
        create(&view, ROOT_INO, b"later");
        drop(view);
        let view = place.open();
        assert!(view.lookup(ROOT_INO, b"later").is_ok());
        assert!(view.lookup(ROOT_INO, b"kept").is_ok());
        assert!(matches!(view.lookup(ROOT_INO, b"small"), Err(Error::NotFound)));
        place.check_objects();
    }
}

/// A commit that cannot start a new journal has still taken effect: its checkpoint is in place.
#[test]
fn a_commit_without_room_for_a_journal_leaves_disk_and_memory_alike() {
    let place = Place::new();
    let view = place.open();
    let dir = view.mkdir(&CALLER, ROOT_INO, b"d", 0o755).unwrap().ino;
    let file = create(&view, dir, b"f");
    view.write(file, 0, b"one", false).unwrap();
    // Blocks the temporary file as which the journal is created.
    let obstacle = place.upper().join(".tmp-journal");
    std::fs::create_dir(&obstacle).unwrap();
    let done = commit(&view, &mut |root| head(root, 1));
    assert!(view.setattr(file, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).is_err());
    std::fs::remove_dir(&obstacle).unwrap();
    assert!(done.is_ok());
    assert_eq!(view.head().record, head(place.base.root, 1).record);
    view.setattr(file, &SetAttr { mode: Some(0o640), ..SetAttr::default() }).unwrap();
    view.write(file, 3, b" two", false).unwrap();
    create(&view, dir, b"g");
    drop(view);
    let view = place.open();
    let dir = view.lookup(ROOT_INO, b"d").unwrap().ino;
    assert_eq!(content(&view, dir, b"f"), b"one two");
    assert_eq!(view.lookup(dir, b"f").unwrap().mode & 0o7777, 0o640);
    assert_eq!(content(&view, dir, b"g"), b"");
    place.check_objects();
}

/// A truncation that cannot be journalled fails, and memory agrees with what a crash would leave.
#[test]
fn truncation_without_room_for_its_record() {
    let place = Place::new();
    let view = place.open();
    let file = create(&view, ROOT_INO, b"f");
    view.write(file, 0, &vec![1; 3 << 20], false).unwrap();
    place.commit(&view).unwrap();
    view.write(file, 5, b"x", false).unwrap();
    let obstacle = place.upper().join(".tmp-journal");
    std::fs::create_dir(&obstacle).unwrap();
    view.checkpoint().unwrap();
    let cut = |size| view.setattr(file, &SetAttr { size: Some(size), ..SetAttr::default() });
    assert!(cut(100_000).is_err());
    std::fs::remove_dir(&obstacle).unwrap();
    cut(200_000).unwrap();
    let now = read(&view, file);
    assert_eq!(now.len(), 200_000);
    drop(view);
    assert!(content(&place.open(), ROOT_INO, b"f") == now);
}

/// Runs `work` (with its thread's number and the round) in threads while `meanwhile` loops, for a second or
/// two, and longer on a busy machine until `enough` is true, a minute at most.
fn race(
    threads: u64,
    work: &(dyn Fn(u64, u64) + Sync),
    meanwhile: &(dyn Fn(u64) + Sync),
    enough: &(dyn Fn() -> bool + Sync),
) {
    let end = Instant::now() + Duration::from_millis(1500);
    let limit = Instant::now() + Duration::from_secs(60);
    let goes_on = &|| Instant::now() < end || (!enough() && Instant::now() < limit);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|t| {
                scope.spawn(move || {
                    let mut round = 0;
                    while goes_on() {
                        work(t, round);
                        round += 1;
                    }
                })
            })
            .collect();
        let stop = &stop;
        let other = scope.spawn(move || {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                meanwhile(round);
                round += 1;
            }
        });
        let failed = workers.into_iter().map(|w| w.join()).filter(Result::is_err).count();
        stop.store(true, Ordering::Relaxed);
        other.join().unwrap();
        assert_eq!(failed, 0);
    });
}

/// Saving a file the way programs do, and reading it, never fails because a commit removes the data file
/// meanwhile.
#[test]
fn saving_and_syncing_go_on_under_commits() {
    let place = Place::new();
    let view = place.open();
    let dirs: Vec<Ino> =
        (0..3u8).map(|t| view.mkdir(&CALLER, ROOT_INO, &[b'a' + t], 0o755).unwrap().ino).collect();
    let last: Vec<AtomicU64> = (0..3).map(|_| AtomicU64::new(0)).collect();
    let save = |t: u64, round: u64| {
        let dir = dirs[t as usize];
        let text = format!("{t} {round} {}", "x".repeat((round % 7000) as usize));
        let ino = create(&view, dir, b"new");
        view.write(ino, 0, text.as_bytes(), false).unwrap();
        if round.is_multiple_of(2) {
            view.fsync(ino).unwrap();
        }
        view.rename(&CALLER, dir, b"new", dir, b"file", RenameMode::Replace).unwrap();
        view.fsync(ino).unwrap();
        assert_eq!(view.lseek(ino, 0, libc::SEEK_DATA).unwrap(), 0);
        assert_eq!(read(&view, ino), text.as_bytes());
        view.write(ino, 0, text.as_bytes(), false).unwrap();
        assert_eq!(read(&view, ino), text.as_bytes());
        view.forget(ino, 1);
        last[t as usize].store(text.len() as u64, Ordering::Relaxed);
    };
    let commit = |_| {
        place.commit(&view);
    };
    race(3, &save, &commit, &|| last.iter().all(|length| length.load(Ordering::Relaxed) > 0));
    drop(view);
    let view = place.open();
    for t in 0..3u8 {
        let dir = view.lookup(ROOT_INO, &[b'a' + t]).unwrap().ino;
        assert_eq!(content(&view, dir, b"file").len() as u64, last[usize::from(t)].load(Ordering::Relaxed));
    }
    place.check_objects();
}

/// Each thread works in its own directory and knows what must be there, whatever is committed meanwhile.
#[test]
fn nothing_is_lost_under_commits_and_checkpoints() {
    let place = Place::new();
    let view = place.open();
    const FILES: u64 = 12;
    type Known = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;
    let known: Vec<std::sync::Mutex<Known>> = (0..2).map(|_| Default::default()).collect();
    let dirs: Vec<Ino> =
        (0..2u8).map(|t| view.mkdir(&CALLER, ROOT_INO, &[b'a' + t], 0o755).unwrap().ino).collect();
    let random = |seed: u64| {
        let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 31;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 29)
    };
    let step = |t: u64, round: u64| {
        let dir = dirs[t as usize];
        let mut known = known[t as usize].lock().unwrap();
        let r = random(round * 2 + t);
        let name = format!("f{}", r % FILES).into_bytes();
        let other = format!("f{}", (r >> 8) % FILES).into_bytes();
        if let std::collections::btree_map::Entry::Vacant(slot) = known.entry(name.clone()) {
            let ino = create(&view, dir, &name);
            view.forget(ino, 1);
            slot.insert(Vec::new());
            return;
        }
        let ino = view.lookup(dir, &name).unwrap().ino;
        match (r >> 16) % 12 {
            0..=5 => {
                let at = if (r >> 20) % 4 == 0 { (r >> 24) % (3 << 20) } else { (r >> 24) % 9000 } as usize;
                let data = vec![(r >> 40) as u8; ((r >> 32) % 5000) as usize + 1];
                assert_eq!(view.write(ino, at as u64, &data, false).unwrap(), data.len());
                let bytes = known.get_mut(&name).unwrap();
                bytes.resize(bytes.len().max(at + data.len()), 0);
                bytes[at..at + data.len()].copy_from_slice(&data);
            }
            6 => {
                let size = (r >> 24) % 2_000_000;
                view.setattr(ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
                known.get_mut(&name).unwrap().resize(size as usize, 0);
            }
            7 => {
                view.unlink(dir, &name).unwrap();
                // The file is still open.
                let bytes = known.remove(&name).unwrap();
                assert!(read(&view, ino) == bytes);
                view.write(ino, 0, b"gone", false).unwrap();
            }
            8 | 9 => {
                view.rename(&CALLER, dir, &name, dir, &other, RenameMode::Replace).unwrap();
                if name != other {
                    let bytes = known.remove(&name).unwrap();
                    known.insert(other, bytes);
                }
            }
            10 => view.fsync(ino).unwrap(),
            _ => assert!(read(&view, ino) == known[&name], "t{t} round {round}"),
        }
        view.forget(ino, 1);
    };
    let meanwhile = |round: u64| {
        // As gc does from another process.
        check::roots(place.store.files(), &place.upper()).unwrap();
        if round % 3 == 2 {
            view.checkpoint().unwrap();
        } else {
            place.commit(&view);
        }
    };
    race(2, &step, &meanwhile, &|| true);
    let check = |view: &View| {
        for t in 0..2u8 {
            let dir = view.lookup(ROOT_INO, &[b'a' + t]).unwrap().ino;
            let known = known[usize::from(t)].lock().unwrap();
            let mut names = Vec::new();
            view.readdir(dir, 0, false, &mut |item| {
                names.push(item.name.to_vec());
                true
            })
            .unwrap();
            names.retain(|n| n != b"." && n != b"..");
            names.sort_unstable();
            assert_eq!(names, known.keys().cloned().collect::<Vec<_>>());
            for (name, bytes) in known.iter() {
                assert!(content(view, dir, name) == *bytes, "{}", String::from_utf8_lossy(name));
            }
        }
    };
    check(&view);
    // Killed and opened again, then committed: everything is in the snapshot.
    drop(view);
    let view = place.open();
    check(&view);
    place.commit(&view);
    check(&view);
    check(&View::snapshot(&place.trees, view.head().root).unwrap());
    drop(view);
    check(&place.open());
    place.check_objects();
}

/// A restore happens on exactly the state that was committed, or not at all: whatever was written is in some
/// snapshot.
#[test]
fn writers_and_restores() {
    let place = Place::new();
    let view = place.open();
    create(&view, ROOT_INO, b"start");
    let target = place.commit(&view).unwrap();
    let restored = AtomicU64::new(0);
    let write = |t: u64, round: u64| {
        let name = format!("{t}-{}", round % 20);
        let ino = match view.mknod(&CALLER, ROOT_INO, name.as_bytes(), libc::S_IFREG | 0o644, 0) {
            Ok(attr) => attr.ino,
            Err(Error::Exists) => match view.lookup(ROOT_INO, name.as_bytes()) {
                Ok(attr) => attr.ino,
                Err(Error::NotFound) => return,
                Err(e) => panic!("{e}"),
            },
            Err(e) => panic!("{e}"),
        };
        view.write(ino, 0, name.as_bytes(), false).unwrap();
        assert_eq!(read(&view, ino), name.as_bytes());
        view.fsync(ino).unwrap();
        view.forget(ino, 1);
        std::thread::sleep(Duration::from_millis(round % 7));
    };
    let restore = |_| match view.clean_generation().unwrap() {
        None => {
            place.commit(&view);
        }
        Some(generation) => match view.restore(target, generation) {
            Ok(_) => {
                restored.fetch_add(1, Ordering::Relaxed);
            }
            Err(Error::TryAgain) => {}
            Err(e) => panic!("{e}"),
        },
    };
    let was_restored = || restored.load(Ordering::Relaxed) > 0;
    race(2, &write, &restore, &was_restored);
    assert!(was_restored(), "no restore took place");
    drop(view);
    let view = place.open();
    assert!(view.lookup(ROOT_INO, b"start").is_ok());
    place.check_objects();
}

/// A process in an environment can create paths of any depth; thread stacks are limited.
#[test]
fn very_deep_directories() {
    const DEPTH: u32 = 8_000;
    let place = Place::new();
    let view = place.open();
    create(&view, ROOT_INO, b"start");
    let shallow = place.commit(&view).unwrap();
    let mut at = ROOT_INO;
    for _ in 0..DEPTH {
        at = view.mkdir(&CALLER, at, b"d", 0o755).unwrap().ino;
    }
    create(&view, at, b"bottom");
    assert_eq!(view.diff().unwrap().len(), DEPTH as usize + 1);
    let deep = place.commit(&view).unwrap();
    for target in [shallow, deep] {
        let generation = view.clean_generation().unwrap().unwrap();
        view.restore(target, generation).unwrap();
    }
}
