//! Directories that other processes change during the import.

use std::sync::Mutex;

use super::*;

/// A progress that calls a function on every call, with the number of entries imported so far.
struct Meddler<F>(Mutex<(u64, F)>);

impl<F: FnMut(u64) + Send> Meddler<F> {
    fn new(meddle: F) -> Self {
        Self(Mutex::new((0, meddle)))
    }
}

impl<F: FnMut(u64) + Send> Progress for Meddler<F> {
    fn add(&self, _bytes: u64, entries: u64) {
        let (count, meddle) = &mut *self.0.lock().unwrap();
        *count += entries;
        meddle(*count);
    }

    fn is_cancelled(&self) -> bool {
        self.add(0, 0);
        false
    }
}

/// A directory to import. It has `usr`, last by name, so that it looks like a root filesystem.
fn source(place: &Place) -> std::path::PathBuf {
    fs::create_dir(place.src().join("usr")).unwrap();
    place.src()
}

fn names(place: &Place, root: &ObjectId) -> Vec<String> {
    place.list(root).keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

#[test]
fn vanished_entries_are_left_out_with_a_note() {
    let place = Place::new();
    let src = source(&place);
    for dir in ["b-dir", "c-dir"] {
        fs::create_dir(src.join(dir)).unwrap();
        fs::write(src.join(dir).join("in"), "").unwrap();
    }
    for file in ["a", "d-file", "e", "g"] {
        fs::write(src.join(file), file).unwrap();
    }
    symlink("a", src.join("f-link")).unwrap();
    // In the order of names: after `a`, a directory, a file and a link are removed.
    let meddler = Meddler::new(|entries| {
        if entries == 1 {
            drop(fs::remove_dir_all(src.join("b-dir")));
            drop(fs::remove_file(src.join("d-file")));
            drop(fs::remove_file(src.join("f-link")));
        }
    });
    let imported = import_path(&place.store, &src, &meddler).unwrap();
    assert_eq!(names(&place, &imported.root), ["/", "/a", "/c-dir", "/c-dir/in", "/e", "/g", "/usr"]);
    let [warning] = &imported.warnings[..] else { panic!("{:?}", imported.warnings) };
    assert!(warning.starts_with("3 entries vanished"), "{warning}");
    for name in ["b-dir", "d-file", "f-link"] {
        assert!(warning.contains(&src.join(name).display().to_string()), "{warning}");
    }
}

#[test]
fn entries_that_vanish_from_an_open_directory_are_noted() {
    let place = Place::new();
    let src = source(&place);
    fs::create_dir(src.join("dir")).unwrap();
    for number in 0..10 {
        fs::write(src.join(format!("dir/{number}")), "").unwrap();
    }
    // A directory is counted once it has been listed.
    let meddler = Meddler::new(|entries| {
        if entries == 2 {
            drop(fs::remove_dir_all(src.join("dir")));
        }
    });
    let imported = import_path(&place.store, &src, &meddler).unwrap();
    assert_eq!(names(&place, &imported.root), ["/", "/dir", "/dir/0", "/usr"]);
    let [warning] = &imported.warnings[..] else { panic!("{:?}", imported.warnings) };
    assert!(warning.starts_with("9 entries vanished") && warning.ends_with("and 4 more"), "{warning}");
}

#[test]
fn files_that_change_while_they_are_read_are_kept_with_a_note() {
    let place = Place::new();
    let src = source(&place);
    fs::write(src.join("log"), vec![1; 1 << 20]).unwrap();
    let sparse = fs::File::create(src.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(&[2; 4096], 4 << 20).unwrap();
    fs::write(src.join("still"), "still").unwrap();
    let log = fs::File::options().append(true).open(src.join("log")).unwrap();
    let (mut said, mut size) = (0, 8 << 20);
    let meddler = Meddler::new(|entries| {
        said += 1;
        // Appends to the log while it is read (the import polls before each piece), and truncates the other
        // file while its bytes are counted.
        if entries == 0 && (3..6).contains(&said) {
            (&log).write_all(b"more").unwrap();
        }
        if entries == 1 {
            size -= 4096;
            sparse.set_len(size).unwrap();
        }
    });
    let imported = import_path(&place.store, &src, &meddler).unwrap();
    assert_eq!(names(&place, &imported.root), ["/", "/log", "/sparse", "/still", "/usr"]);
    let [warning] = &imported.warnings[..] else { panic!("{:?}", imported.warnings) };
    assert!(warning.starts_with("2 files changed") && !warning.contains("still"), "{warning}");
    assert!(warning.contains("/log, ") && warning.ends_with("/sparse"), "{warning}");
    let list = place.list(&imported.root);
    assert!(place.content(&list[&b"/log"[..]]).starts_with(&[1; 1 << 20]));
}

#[test]
fn the_top_must_not_vanish() {
    let place = Place::new();
    let src = place.src();
    for name in ["a", "b", "c"] {
        fs::write(src.join(name), name).unwrap();
    }
    let meddler = Meddler::new(|entries| {
        if entries == 1 {
            drop(fs::remove_dir_all(&src));
        }
    });
    let error = import_path(&place.store, &src, &meddler).unwrap_err().to_string();
    assert!(error.contains("it was removed in the meantime"), "{error}");
    let gone = place.dir.path().join("never");
    assert!(matches!(import_path(&place.store, &gone, &NoProgress), Err(StoreError::Io { .. })));
    let error = import_path(&place.store, Path::new("/proc"), &NoProgress).unwrap_err().to_string();
    assert!(error.contains("kernel's state (proc)"), "{error}");
}
