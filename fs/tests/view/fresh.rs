//! Blocks of large committed files that were written and not synced: a kill keeps them, a reboot may lose
//! them, and zeros never show in place of committed data.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;

use karapace_fs::attr::{RenameMode, SetAttr};
use karapace_store::fail::{Action, arm};
use karapace_store::inode::{Ino, ROOT_INO};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::view::support::{CALLER, Env, pattern};

const BLOCK: usize = 64 << 10;
/// Whole blocks, and part of one.
const SIZE: usize = 40 * BLOCK + 1000;

struct Large {
    env: Env,
    ino: Ino,
    /// The expected content.
    now: Vec<u8>,
}

impl Large {
    /// A committed file, in a reopened view.
    fn new() -> Large {
        let mut env = Env::new();
        env.file("large", &pattern(SIZE, 1));
        env.commit();
        env.reopen();
        let ino = env.view.lookup(ROOT_INO, b"large").unwrap().ino;
        Large { env, ino, now: pattern(SIZE, 1) }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert_eq!(self.env.view.write(self.ino, offset as u64, bytes, false).unwrap(), bytes.len());
        self.now.resize(self.now.len().max(offset + bytes.len()), 0);
        self.now[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn fsync(&self) {
        self.env.view.fsync(self.ino).unwrap();
    }

    fn reopen(&mut self) {
        self.env.reopen();
        self.ino = self.env.view.lookup(ROOT_INO, b"large").unwrap().ino;
    }

    /// Simulates a reboot: the current boot is not that of the records.
    fn reopen_after_restart(&mut self) {
        let armed = arm("boot.read", Action::Fail(libc::EIO), 1);
        self.reopen();
        drop(armed);
    }

    #[track_caller]
    fn holds(&self, expected: &[u8]) {
        let found = self.env.read(self.ino);
        assert_eq!(found.len(), expected.len());
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "block {}", differs.unwrap_or_default() / BLOCK);
    }

    #[track_caller]
    fn holds_what_was_written(&self) {
        self.holds(&self.now);
    }

    fn data_file(&self) -> PathBuf {
        let files = fs::read_dir(self.env.dir.path().join("store/upper/data")).unwrap().flat_map(|dir| {
            fs::read_dir(dir.unwrap().path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>()
        });
        let files: Vec<PathBuf> = files.collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

#[test]
fn a_kill_keeps_fresh_blocks() {
    let mut large = Large::new();
    for round in 0..3u8 {
        large.write(3 * BLOCK + 5, &[round + 1; 10]);
        large.write((7 + usize::from(round)) * BLOCK, &pattern(2 * BLOCK, round));
        large.write(SIZE - 20 + usize::from(round) * 100, &[9; 300]);
        large.reopen();
        large.holds_what_was_written();
    }
    // A view opened read-only changes nothing.
    large.write(20 * BLOCK, b"last");
    let (store, upper) = (&large.env.store, large.env.dir.path().join("store/upper"));
    let trees = std::sync::Arc::new(karapace_store::tree::Trees::new(store.clone()));
    let head = large.env.view.head();
    let reader = karapace_fs::view::View::open(store, &trees, &upper, head, true).unwrap();
    let mut buf = Vec::new();
    reader.lookup(ROOT_INO, b"large").unwrap();
    reader.read(large.ino, 20 * BLOCK as u64, 4, &mut buf).unwrap();
    assert_eq!(buf, b"last");
    reader.fsync(large.ino).unwrap();
    drop(reader);
    large.reopen();
    large.holds_what_was_written();
}

#[test]
fn a_restart_loses_fresh_blocks_that_were_not_synced() {
    let mut large = Large::new();
    large.write(BLOCK + 100, b"synced");
    large.write(2 * BLOCK, &pattern(BLOCK, 3));
    large.fsync();
    // The blocks are on disk now, so writing continues from there.
    large.write(BLOCK + 200, b"over it");
    let kept = large.now.clone();
    large.write(10 * BLOCK + 7, b"not synced");
    large.write(12 * BLOCK, &pattern(3 * BLOCK, 4));
    large.reopen_after_restart();
    large.holds(&kept);
    // If the boot is unknown, each write waits for the disk.
    large.now = kept;
    large.write(12 * BLOCK + 9, b"waits");
    large.reopen_after_restart();
    large.holds_what_was_written();
}

/// A block in which the committed bytes end is synced first: appended bytes that replace it would read as
/// zeros if lost.
#[test]
fn what_is_appended_is_never_zeros() {
    let mut large = Large::new();
    large.write(SIZE, &pattern(3 * BLOCK, 5));
    large.reopen_after_restart();
    large.holds_what_was_written();
    let mut large = Large::new();
    large.write(5 * BLOCK, &pattern(3 * BLOCK, 6));
    large
        .env
        .view
        .setattr(large.ino, &SetAttr { size: Some(6 * BLOCK as u64 + 10), ..SetAttr::default() })
        .unwrap();
    large.now.truncate(6 * BLOCK + 10);
    large.write(6 * BLOCK + 10, &pattern(BLOCK, 7));
    large.reopen_after_restart();
    large.holds_what_was_written();
}

/// The data file itself may be missing, too.
#[test]
fn a_file_whose_data_file_is_lost_is_as_committed() {
    type Loss = fn(&Large);
    let losses: [(&str, Loss); 3] = [
        ("gone", |large| fs::remove_file(large.data_file()).unwrap()),
        ("empty", |large| drop(File::create(large.data_file()).unwrap())),
        ("there", |_| {}),
    ];
    for (loss, lose) in losses {
        for restarted in [true, false] {
            let mut large = Large::new();
            large.write(4 * BLOCK + 1, b"not synced");
            let attributes = SetAttr { mode: Some(0o640), ..SetAttr::default() };
            large.env.view.setattr(large.ino, &attributes).unwrap();
            lose(&large);
            let written = std::mem::replace(&mut large.now, pattern(SIZE, 1));
            match restarted {
                true => large.reopen_after_restart(),
                false => large.reopen(),
            }
            match (loss, restarted) {
                ("there", false) => large.now = written,
                _ => assert!(large.env.view.stats().dirty_bytes == 0, "{loss} {restarted}"),
            }
            large.holds_what_was_written();
            assert_eq!(large.env.view.getattr(large.ino).unwrap().mode & 0o7777, 0o640);
            large.write(9 * BLOCK - 3, b"and again");
            large.fsync();
            large.reopen_after_restart();
            large.holds_what_was_written();
        }
    }
}

/// Records of appended blocks precede the record that the data file is on disk.
#[test]
fn what_was_appended_to_whole_blocks_is_safe_with_the_rest() {
    let mut env = Env::new();
    env.file("large", &pattern(40 * BLOCK, 1));
    env.commit();
    let ino = env.view.lookup(ROOT_INO, b"large").unwrap().ino;
    let mut large = Large { env, ino, now: pattern(40 * BLOCK, 1) };
    large.write(BLOCK + 1, b"inside");
    large.write(40 * BLOCK, &pattern(3 * BLOCK, 4));
    let grown = 44 * BLOCK;
    large.env.view.setattr(large.ino, &SetAttr { size: Some(grown as u64), ..SetAttr::default() }).unwrap();
    large.now.resize(grown, 0);
    large.reopen_after_restart();
    large.holds_what_was_written();
    large.write(46 * BLOCK, &pattern(BLOCK, 4));
    large.write(3 * BLOCK, b"inside again");
    large.fsync();
    large.reopen_after_restart();
    large.holds_what_was_written();
    large.env.commit();
    large.write(3 * BLOCK, b"inside once more");
    large.write(47 * BLOCK, &pattern(2 * BLOCK, 5));
    large.fsync();
    large.reopen_after_restart();
    large.holds_what_was_written();
}

/// Every way in which fresh blocks reach the disk and count as durable.
#[test]
fn fresh_blocks_are_safe_after_any_sync() {
    type Sync = fn(&mut Large);
    let ways: [(&str, Sync); 7] = [
        ("fsync", |large| large.fsync()),
        ("upkeep", |large| large.env.view.maintain().unwrap()),
        ("close", |large| large.env.view.close().unwrap()),
        ("a kill, and opened again", |large| large.reopen()),
        ("commit", |large| {
            large.env.commit();
        }),
        ("upkeep and checkpoint", |large| {
            large.env.view.maintain().unwrap();
            large.env.view.checkpoint().unwrap();
        }),
        ("a rename over a file", |large| {
            let view = &large.env.view;
            large.env.file("other", b"other");
            let rename = |from: &[u8], to: &[u8]| {
                view.rename(&CALLER, ROOT_INO, from, ROOT_INO, to, RenameMode::Replace).unwrap();
            };
            rename(b"large", b"other");
            rename(b"other", b"large");
        }),
    ];
    for (way, sync) in ways {
        let mut large = Large::new();
        large.write(4 * BLOCK + 1, b"one");
        large.write(9 * BLOCK, &pattern(2 * BLOCK, 8));
        sync(&mut large);
        large.reopen_after_restart();
        let found = large.env.read(large.ino);
        assert!(found == large.now, "{way}");
    }
}

/// The checkpoint records them like the journal.
#[test]
fn a_checkpoint_alone_makes_nothing_safe() {
    let mut large = Large::new();
    large.write(4 * BLOCK + 1, b"synced");
    large.fsync();
    let kept = large.now.clone();
    large.write(9 * BLOCK + 2, b"not synced");
    large.env.view.checkpoint().unwrap();
    large.write(11 * BLOCK + 2, b"nor this");
    let upper = large.env.dir.path().join("store/upper");
    let copy = large.env.dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for file in ["journal", "checkpoint"] {
        fs::copy(upper.join(file), copy.join(file)).unwrap();
    }
    large.reopen_after_restart();
    large.holds(&kept);
    for file in ["journal", "checkpoint"] {
        fs::copy(copy.join(file), upper.join(file)).unwrap();
    }
    large.reopen();
    large.holds_what_was_written();
}

/// The disk was unplugged without a reboot.
#[test]
fn a_block_with_a_hole_is_as_committed() {
    let mut large = Large::new();
    large.write(4 * BLOCK, &pattern(BLOCK, 8));
    large.fsync();
    let kept = large.now.clone();
    large.write(6 * BLOCK + 1, b"one");
    large.write(7 * BLOCK + 1, b"two");
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let file = OpenOptions::new().write(true).open(large.data_file()).unwrap();
    fallocate(&file, flags, 6 * BLOCK as i64 + 8192, 4096).unwrap();
    fallocate(&file, flags, 8 * BLOCK as i64 - 4096, 4096).unwrap();
    // The disk must keep what had been synced.
    fallocate(&file, flags, 4 * BLOCK as i64, 4096).unwrap();
    large.reopen();
    let mut expected = kept;
    expected[4 * BLOCK..4 * BLOCK + 4096].fill(0);
    large.holds(&expected);
}

#[test]
fn a_punched_hole_stays_a_hole() {
    let mut large = Large::new();
    large.write(4 * BLOCK, &pattern(3 * BLOCK, 8));
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    large.env.view.fallocate(large.ino, mode, 5 * BLOCK as u64, 3 * BLOCK as u64).unwrap();
    large.now[5 * BLOCK..8 * BLOCK].fill(0);
    large.reopen();
    large.holds_what_was_written();
    large.write(6 * BLOCK + 3, b"in it");
    large.reopen_after_restart();
    large.holds_what_was_written();
}

/// If killed between the two steps of a truncation, the data file is shorter and the journal does not say
/// why.
#[test]
fn a_truncated_block_reads_as_written() {
    let mut large = Large::new();
    large.write(3 * BLOCK, b"so that the data file is there");
    large.fsync();
    large.write(6 * BLOCK, &pattern(BLOCK, 2));
    let size = 6 * BLOCK + 5000;
    let file: File = OpenOptions::new().write(true).open(large.data_file()).unwrap();
    file.set_len(size as u64).unwrap();
    large.now.truncate(size);
    large.reopen();
    large.holds_what_was_written();
    large.write(size, b"appended");
    large.reopen_after_restart();
    large.holds_what_was_written();
}

/// A commit runs beside writes: what is written after the seal goes to a copy, which is synced whole.
#[test]
fn a_commit_takes_fresh_blocks_and_leaves_later_writes() {
    let mut large = Large::new();
    large.write(4 * BLOCK, &pattern(2 * BLOCK, 8));
    let committed = large.now.clone();
    let head = large.env.commit();
    assert!(large.env.view.diff().unwrap().is_empty());
    large.write(4 * BLOCK + 9, b"later");
    large.reopen_after_restart();
    large.holds(&committed);
    large.write(20 * BLOCK, b"and more");
    large.fsync();
    large.env.commit();
    large.env.restore(head);
    large.reopen();
    large.holds(&committed);
}
