use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::open::Store;
use crate::staging::{self, Swept};

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn staged(store: &Store) -> usize {
    fs::read_dir(store.layout().staging()).unwrap().count()
}

#[test]
fn nothing_is_visible_before_commit_and_everything_after() {
    let (_dir, store) = store();
    for count in [1u32, 300] {
        let mut batch = Batch::new(&store).unwrap();
        let ids: Vec<_> = (0..count).map(|i| batch.put(format!("{count} {i}").as_bytes()).unwrap()).collect();
        assert!(ids.iter().all(|id| !store.objects().contains(id)));
        assert_eq!(batch.read(&ids[0], 100).unwrap(), format!("{count} 0").as_bytes());
        let stats = batch.commit().unwrap();
        assert_eq!(stats.objects, u64::from(count));
        for (i, id) in ids.iter().enumerate() {
            let bytes = format!("{count} {i}");
            assert_eq!(store.objects().read(id, 100).unwrap(), bytes.as_bytes());
            assert_eq!(store.objects().size(id).unwrap(), bytes.len() as u64);
            let mode = store.objects().path(id).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o444);
        }
        assert_eq!(staged(&store), 0);
    }
}

#[test]
fn what_is_there_is_not_written_again() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let id = batch.put(b"x").unwrap();
    assert_eq!(batch.put(b"x").unwrap(), id);
    assert_eq!(batch.commit().unwrap(), BatchStats { objects: 1, bytes: 1 });
    let inode = store.objects().path(&id).metadata().unwrap().ino();
    // Two concurrent batches with the same object, and an object from an earlier batch.
    let (mut a, mut b) = (Batch::new(&store).unwrap(), Batch::new(&store).unwrap());
    let other = a.put(b"y").unwrap();
    b.put(b"y").unwrap();
    assert_eq!(a.put(b"x").unwrap(), id);
    assert_eq!(a.commit().unwrap().objects, 1);
    assert_eq!(b.commit().unwrap().objects, 0);
    assert!(store.objects().contains(&other));
    assert_eq!(store.objects().path(&id).metadata().unwrap().ino(), inode);
}

#[test]
fn a_dropped_batch_leaves_nothing() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let id = batch.put(b"gone").unwrap();
    let mut writer = batch.writer().unwrap();
    writer.write_all(b"half").unwrap();
    assert_eq!(staged(&store), 1);
    drop(writer);
    drop(batch);
    assert_eq!(staged(&store), 0);
    assert!(store.objects().read(&id, 10).unwrap_err().is_missing());
    assert!(store.objects().open(&id).unwrap_err().is_missing());
    assert!(store.objects().size(&id).unwrap_err().is_missing());
}

#[test]
fn a_live_batch_holds_a_lock_on_its_directory() {
    let (_dir, store) = store();
    let batch = Batch::new(&store).unwrap();
    let path = fs::read_dir(store.layout().staging()).unwrap().next().unwrap().unwrap().path();
    let lock =
        || nix::fcntl::Flock::lock(File::open(&path).unwrap(), nix::fcntl::FlockArg::LockExclusiveNonblock);
    assert!(lock().is_err());
    drop(batch);
    assert!(!path.exists());
}

#[test]
fn batches_come_and_go_while_others_sweep() {
    let (_dir, store) = store();
    let sweep = |dry_run| assert_eq!(staging::sweep(&store, dry_run).unwrap(), Swept::default());
    thread::scope(|scope| {
        for dry_run in [false, false, true] {
            scope.spawn(move || (0..1000).for_each(|_| sweep(dry_run)));
        }
        for _ in 0..2000 {
            drop(Batch::new(&store).unwrap());
        }
    });
    assert_eq!(staged(&store), 0);
}

#[test]
fn a_writer_hashes_as_it_goes() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let mut writer = batch.writer().unwrap();
    writer.write_all(b"hello ").unwrap();
    writer.write_all(b"world").unwrap();
    assert_eq!(writer.position(), 11);
    let id = writer.finish(&mut batch).unwrap();
    assert_eq!(id, ObjectId::of(b"hello world"));
    let again = batch.writer().unwrap();
    let mut other = Batch::new(&store).unwrap();
    assert!(matches!(again.finish(&mut other), Err(StoreError::Invalid(_))));
    batch.commit().unwrap();
    assert_eq!(store.objects().read(&id, 11).unwrap(), b"hello world");
}

#[test]
fn adopting_links_the_file_and_publishing_protects_it() {
    let (dir, store) = store();
    let path = dir.path().join("private");
    fs::write(&path, b"content").unwrap();
    let id = ObjectId::of(b"content");
    let mut batch = Batch::new(&store).unwrap();
    protect(&File::open(&path).unwrap()).unwrap();
    batch.adopt(path.clone(), 7, id).unwrap();
    assert_eq!(batch.commit().unwrap(), BatchStats { objects: 1, bytes: 7 });
    let object = store.objects().path(&id).metadata().unwrap();
    assert_eq!(object.ino(), path.metadata().unwrap().ino());
    assert_eq!(object.mode() & 0o7777, 0o444);
    assert_eq!(store.objects().read(&id, 7).unwrap(), b"content");
}

#[test]
fn many_files_are_taken_and_found_before_and_after_the_commit() {
    let (dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let known = batch.put(b"content 7").unwrap();
    batch.commit().unwrap();
    let mut batch = Batch::new(&store).unwrap();
    let mut ids = Vec::new();
    for number in 0..1000 {
        let (path, content) = (dir.path().join(number.to_string()), format!("content {number}"));
        fs::write(&path, &content).unwrap();
        ids.push(ObjectId::of(content.as_bytes()));
        batch.adopt(path, content.len() as u64, ids[number]).unwrap();
    }
    assert_eq!(batch.read(&ids[500], 11).unwrap(), b"content 500");
    assert_eq!(batch.commit().unwrap().objects, 999, "one was there");
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(store.objects().read(id, 11).unwrap(), format!("content {number}").as_bytes());
        let object = store.objects().path(id).metadata().unwrap().ino();
        let file = dir.path().join(number.to_string()).metadata().unwrap().ino();
        assert_eq!(object == file, *id != known);
    }
    assert_eq!(fs::read_dir(store.layout().staging()).unwrap().count(), 0);
}

#[test]
fn adopting_from_another_file_system_copies() {
    let (_dir, store) = store();
    let shm = Path::new("/dev/shm");
    let here = store.layout().staging().metadata().unwrap().dev();
    if !shm.metadata().is_ok_and(|there| there.dev() != here) {
        eprintln!("not tried: /dev/shm is not another file system");
        return;
    }
    let mut file = tempfile::NamedTempFile::new_in(shm).unwrap();
    file.write_all(b"far away").unwrap();
    let id = ObjectId::of(b"far away");
    let mut batch = Batch::new(&store).unwrap();
    batch.adopt(file.path().to_owned(), 8, id).unwrap();
    batch.commit().unwrap();
    assert_eq!(store.objects().read(&id, 8).unwrap(), b"far away");
    assert_eq!(store.objects().path(&id).metadata().unwrap().mode() & 0o7777, 0o444);
    assert_ne!(file.as_file().metadata().unwrap().mode() & 0o222, 0);
}

#[test]
fn reading_verifies_and_is_bounded() {
    let (_dir, store) = store();
    let mut batch = Batch::new(&store).unwrap();
    let id = batch.put(b"genuine").unwrap();
    batch.commit().unwrap();
    assert!(matches!(store.objects().read(&id, 6), Err(StoreError::Corrupt { .. })));
    let path = store.objects().path(&id);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"forgery").unwrap();
    let error = store.objects().read(&id, 100).unwrap_err();
    assert!(
        matches!(error, StoreError::Corrupt { .. }) && error.to_string().contains(&id.to_hex()),
        "{error}"
    );
}
