//! Tests of data files.

use super::*;
use std::os::unix::fs::FileExt;

fn dir() -> (tempfile::TempDir, DataDir) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = DataDir::new(&Files::at(tmp.path()).unwrap(), tmp.path().join("data"));
    dir.create().unwrap();
    (tmp, dir)
}

#[test]
fn unseal_copies_bytes_and_holes() {
    let (_tmp, dir) = dir();
    let data = DataFile::new(0x1234, 0);
    let file = dir.create_file(&data).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(b"here", 5 << 20).unwrap();
    let copy = dir.unseal(&data, u64::MAX).unwrap();
    assert_eq!(copy.generation, 1);
    let copied = dir.file(&copy).unwrap();
    assert_eq!(copied.metadata().unwrap().size(), 10 << 20);
    assert!(copied.metadata().unwrap().blocks() < 2048);
    let mut buf = [0; 4];
    copied.read_exact_at(&mut buf, 5 << 20).unwrap();
    assert_eq!(&buf, b"here");
}

#[test]
fn data_files_made_ahead_are_used_or_removed() {
    let (_tmp, dir) = dir();
    let (written, unused) = (DataFile::new(7, 0), DataFile::new(8, 0));
    dir.make_ahead(7);
    dir.make_ahead(8);
    let file = dir.create_file(&written).unwrap();
    file.write_all_at(b"here", 0).unwrap();
    // This one exists and is being written.
    dir.make_ahead(7);
    assert!(dir.path(&unused).exists());
    dir.drop_ahead();
    assert!(!dir.path(&unused).exists());
    assert_eq!(std::fs::read(dir.path(&written)).unwrap(), b"here");
}

#[test]
fn few_data_files_are_made_ahead_if_files_stay_empty() {
    let (_tmp, dir) = dir();
    let files = || dir.strangers(&|_, _| false).unwrap().len();
    (1..=100).for_each(|ino| dir.make_ahead(ino));
    assert_eq!(files(), AHEAD);
    // A file that was not created ahead gets its first write, so one more may be created.
    dir.create_file(&DataFile::new(100, 0)).unwrap();
    dir.make_ahead(101);
    dir.make_ahead(102);
    assert!(dir.path(&DataFile::new(101, 0)).exists());
    assert_eq!(files(), AHEAD + 1);
    dir.drop_ahead();
    assert_eq!(files(), 1);
}

#[test]
fn a_second_link_seals() {
    let (tmp, dir) = dir();
    let data = DataFile::new(7, 0);
    dir.create_file(&data).unwrap();
    dir.open.lock().clear();
    std::fs::hard_link(dir.path(&data), tmp.path().join("object")).unwrap();
    assert!(!data.is_sealed());
    dir.file(&data).unwrap();
    assert!(data.is_sealed());
}

#[test]
fn sweep_removes_only_strangers() {
    let (_tmp, dir) = dir();
    let keep = DataFile::new(1, 2);
    let stray = DataFile::new(2, 0);
    dir.create_file(&keep).unwrap();
    dir.create_file(&stray).unwrap();
    assert_eq!(dir.sweep(&|ino, g| (ino, g) == (1, 2)).unwrap(), 1);
    assert!(dir.path(&keep).exists());
    assert!(!dir.path(&stray).exists());
}

#[test]
fn a_file_is_not_lost_if_one_was_made_ahead_at_that_moment() {
    let (_tmp, dir) = dir();
    for ino in 1..5000 {
        let data = DataFile::new(ino, 0);
        let both = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                both.wait();
                dir.make_ahead(ino);
            });
            both.wait();
            dir.create_file(&data).unwrap();
        });
        dir.drop_ahead();
        assert!(dir.path(&data).exists(), "{ino} was removed as one that nobody has written");
    }
}
