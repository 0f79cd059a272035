use super::*;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::sync::mpsc::{TryRecvError, channel};

/// A store's directory, and a file beside it that does not belong to the store.
struct Place {
    dir: tempfile::TempDir,
    files: Files,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("store/sub")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join("victim"), "kept").unwrap();
        fs::write(dir.path().join("other/victim"), "kept").unwrap();
        let files = Files::at(&dir.path().join("store")).unwrap();
        Place { dir, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("store").join(name)
    }

    /// Every operation on a file, with its name.
    fn deeds(&self, path: &Path) -> Vec<(&'static str, io::Result<()>)> {
        let files = &self.files;
        vec![
            ("open", files.open(path).map(drop)),
            ("read", files.read(path, 100).map(drop)),
            ("open_to_change", files.open_to_change(path).map(drop)),
            ("open_to_append", files.open_to_append(path).map(drop)),
            ("open_or_make", files.open_or_make(path).map(drop)),
            ("open_shared", files.open_shared(path).map(drop)),
            ("make", files.make(path).map(drop)),
            ("hold", files.hold(path).map(drop)),
            ("set_mode", files.set_mode(path, 0o666)),
        ]
    }

    fn check_victims(&self, what: &str) {
        for victim in ["victim", "other/victim"] {
            let victim = self.dir.path().join(victim);
            assert_eq!(fs::read(&victim).unwrap(), b"kept", "{what}");
            assert_ne!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o666, "{what}");
        }
        let there = fs::read_dir(self.dir.path().join("other")).unwrap().count();
        assert_eq!(there, 1, "{what}");
        assert!(!self.dir.path().join("made").exists(), "{what}");
    }
}

#[test]
fn links_are_not_followed_at_the_end_or_on_the_way() {
    let place = Place::new();
    symlink("../victim", place.path("link")).unwrap();
    symlink("../made", place.path("dangling")).unwrap();
    symlink("../other", place.path("away")).unwrap();
    symlink("sub", place.path("within")).unwrap();
    fs::write(place.path("sub/victim"), "kept").unwrap();
    for name in ["link", "dangling", "away/victim", "away/new", "within/victim", "within/new", "../victim"] {
        for (deed, done) in place.deeds(&place.path(name)) {
            assert!(done.is_err(), "{deed} {name}");
        }
        place.check_victims(name);
    }
    for name in ["away", "within"] {
        let (dir, below) = (place.path(name), place.path(name).join("victim"));
        place.files.open_dir(&dir).unwrap_err();
        place.files.names(&dir).unwrap_err();
        place.files.remove(&below).unwrap_err();
        place.files.remove_tree(&below).unwrap_err();
        place.files.replace(&below).unwrap_err();
        place.files.write(&below, b"other").unwrap_err();
        place.files.make_dir(&dir.join("made")).unwrap_err();
        place.files.stat(&below).unwrap_err();
        place.files.refresh(&below).unwrap_err();
        place.files.make_dirs(&dir.join("made/deep")).unwrap_err();
        place.files.rename(&below, &place.path("taken")).unwrap_err();
        place.check_victims(name);
    }
    assert_eq!(fs::read(place.path("sub/victim")).unwrap(), b"kept");
    let told = place.files.stat(&place.path("link")).unwrap();
    assert_eq!(FileType::from_raw_mode(told.st_mode), FileType::Symlink);
    assert!(place.files.refresh(&place.path("sub/victim")).unwrap());
    assert!(!place.files.refresh(&place.path("sub/none")).unwrap());
    let error = place.files.open(&place.path("link")).unwrap_err().to_string();
    assert!(error.contains("symbolic link") && error.contains("remove it"), "{error}");
}

#[test]
fn links_are_replaced_and_removed_and_not_followed() {
    let place = Place::new();
    let make = || {
        symlink("../victim", place.path("link")).unwrap();
        symlink("../other", place.path("tree")).unwrap();
    };
    make();
    place.files.write(&place.path("link"), b"ours").unwrap();
    assert_eq!(place.files.read(&place.path("link"), 100).unwrap(), b"ours");
    place.files.remove_tree(&place.path("tree")).unwrap_or_default();
    place.files.remove(&place.path("tree")).unwrap_or_default();
    place.files.remove(&place.path("link")).unwrap();
    place.check_victims("removed");
    make();
    place.files.replace(&place.path("link")).unwrap().write_all(b"ours").unwrap();
    place.check_victims("replaced");
}

/// A directory that is exchanged for a symbolic link as soon as it exists.
#[test]
fn a_new_directory_gets_its_mode_and_nothing_else_does() {
    let place = Place::new();
    let (other, link, made) = (place.dir.path().join("other"), place.path("link"), place.path("made"));
    let kept = 0o755;
    fs::set_permissions(&other, fs::Permissions::from_mode(kept)).unwrap();
    symlink("../other", &link).unwrap();
    let (ended, goes_on) = channel::<()>();
    let (from, to) = (link.clone(), made.clone());
    let exchanges = std::thread::spawn(move || {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        while goes_on.try_recv() == Err(TryRecvError::Empty) {
            // Fails while `made` does not exist.
            renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_EXCHANGE).unwrap_or_default();
        }
    });
    for _ in 0..1000 {
        // May succeed or fail.
        place.files.make_dir(&made).unwrap_or_default();
        // They may be exchanged meanwhile.
        while fs::remove_dir(&made).is_err() && fs::remove_dir(&link).is_err() {}
        let gone = |path: &Path| path.symlink_metadata().is_err();
        if gone(&link) {
            fs::rename(&made, &link).unwrap();
        }
        assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, kept);
    }
    drop(ended);
    exchanges.join().unwrap();
    place.files.make_dirs_in(&place.path("sub"), ["x", "y"].into_iter()).unwrap();
    place.files.make_dirs_in(&place.path("sub"), ["y", "z"].into_iter()).unwrap();
    for name in ["x", "y", "z"] {
        let mode = fs::metadata(place.path("sub").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, PRIVATE_DIR, "{name}");
    }
}

#[test]
fn only_regular_files_are_opened_and_nothing_is_waited_for() {
    let place = Place::new();
    nix::unistd::mkfifo(&place.path("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    drop(std::os::unix::net::UnixListener::bind(place.path("socket")).unwrap());
    for name in ["fifo", "socket", "sub"] {
        for (deed, done) in place.deeds(&place.path(name)) {
            assert!(done.is_err() || ["hold", "set_mode"].contains(&deed), "{deed} {name}");
        }
    }
    let mut read = Vec::new();
    place.files.open_object(&place.path("fifo")).unwrap().read_to_end(&mut read).unwrap();
}

#[test]
fn a_file_with_another_hard_link_is_not_changed_in_place() {
    let place = Place::new();
    fs::hard_link(place.dir.path().join("victim"), place.path("hard")).unwrap();
    let path = place.path("hard");
    place.files.open_to_change(&path).unwrap_err();
    place.files.open_to_append(&path).unwrap_err();
    place.files.open_or_make(&path).unwrap_err();
    assert_eq!(place.files.open_shared(&path).unwrap().names, 2);
    place.files.replace(&path).unwrap().write_all(b"ours").unwrap();
    place.check_victims("hard");
}

#[test]
fn files_opened_for_reading_refuse_every_change() {
    let place = Place::new();
    fs::write(place.path("file"), "kept").unwrap();
    let files = Files::for_reading(&place.path("")).unwrap();
    let (file, new) = (place.path("file"), place.path("new"));
    assert_eq!(files.read(&file, 100).unwrap(), b"kept");
    assert!(!files.open_shared(&file).unwrap().writable);
    let refused = [
        files.open_to_change(&file).map(drop),
        files.open_or_make(&new).map(drop),
        files.open_to_append(&file).map(drop),
        files.make(&new).map(drop),
        files.replace(&file).map(drop),
        files.remove(&file),
        files.remove_from_known(&file),
        files.remove_tree(&place.path("sub")),
        files.rename(&file, &new),
        files.make_dirs(&new),
        files.make_dirs_in(&place.path("sub"), ["x"].into_iter()),
        files.set_mode(&file, 0o666),
    ];
    for (i, refused) in refused.into_iter().enumerate() {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem, "{i}");
    }
    files.write(&file, b"other").unwrap_err();
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 2);
}

#[test]
fn another_users_file_is_not_opened() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = Place::new();
    let path = place.path("theirs");
    fs::write(&path, "theirs").unwrap();
    std::os::unix::fs::chown(&path, Some(54_321), None).unwrap();
    std::os::unix::fs::chown(place.path("sub"), Some(54_321), None).unwrap();
    for (deed, done) in place.deeds(&path) {
        assert!(done.is_err() || ["hold", "set_mode"].contains(&deed), "{deed}");
    }
    place.files.open_dir(&place.path("sub")).unwrap_err();
}
