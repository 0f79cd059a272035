//! Order of removal of buried data, and failing checkpoints.

use super::*;
use karapace_store::fail::{Action, arm};
use karapace_store::id::{LayerHash, ObjectId, RecordId};

fn head() -> HeadRef {
    let layer = LayerHash::from_bytes([1; 32]);
    HeadRef { layer, record: RecordId::from_bytes([2; 32]), root: ObjectId::from_bytes([3; 32]) }
}

fn open(dir: &tempfile::TempDir) -> Loaded {
    let files = Files::at(dir.path()).unwrap();
    Upper::open(&files, &dir.path().join("upper"), head(), true).unwrap()
}

fn append(upper: &Upper, ino: u64) {
    upper.append(&[Item::Next { ino }], Room::Ordinary).unwrap();
}

/// Also, a thread that needs their space waits for a removal in progress.
#[test]
fn buried_files_are_removed_when_there_are_many() {
    let dir = tempfile::tempdir().unwrap();
    let upper = open(&dir).upper;
    let bury = |ino: u64| {
        let data = DataFile::new(ino, 0);
        upper.data.create_file(&data).unwrap();
        data.gone_with(BURIED_BYTES / 2);
        upper.bury([data]);
    };
    let left = || upper.data.strangers(&|_, _| false).unwrap().len();
    append(&upper, 100);
    (1..=2).for_each(bury);
    assert!(!upper.wants_relief());
    bury(3);
    assert!(upper.wants_relief());
    assert!(!upper.wants_relief(), "said once");
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            let _slow = arm("data.remove", Action::Sleep(std::time::Duration::from_millis(200)), 1);
            upper.relieve();
        });
        while upper.removing.try_lock().is_some() && !removal.is_finished() {
            std::thread::yield_now();
        }
        upper.reclaim();
        assert_eq!(left(), 0);
    });
    (4..=6).for_each(bury);
    assert!(upper.wants_relief());
    assert!(upper.reclaim());
    assert_eq!(left(), 0);
    assert!(!upper.reclaim());
}

/// Whichever step of a checkpoint fails, records appended afterwards are found on reopen.
#[test]
fn a_checkpoint_that_fails_at_any_step_loses_nothing() {
    let steps = [
        "checkpoint.write",
        "file.write",
        "file.sync",
        "file.rename",
        "file.sync-dir",
        "checkpoint.journal",
        "journal.create",
    ];
    for step in steps {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
            let dir = tempfile::tempdir().unwrap();
            let upper = open(&dir).upper;
            append(&upper, 100);
            let armed = arm(step, Action::Fail(errno), 1);
            let done = upper.checkpoint(head(), vec![Item::Next { ino: 101 }]);
            drop(armed);
            append(&upper, 102);
            upper.sync().unwrap();
            drop(upper);
            let found = open(&dir);
            let before = if done.is_ok() { 101 } else { 100 };
            let items = [found.settled, found.replayed].concat();
            assert_eq!(
                items,
                [Item::Next { ino: before }, Item::Next { ino: 102 }],
                "{step} {errno} {done:?}"
            );
            // The journal's reserve leaves enough space for the checkpoint that replaces the journal.
            let has_room = errno != libc::EIO && ["checkpoint.write", "file.write"].contains(&step);
            assert!(!has_room || done.is_ok(), "{step} {errno}: {done:?}");
        }
    }
}
