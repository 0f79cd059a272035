//! Which events watchers get from a restore, and that raising them changes nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use karapace_fs::attr::{Became, Told};
use karapace_store::inode::FileKind;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, mknod};

use crate::mount::support::Mount;

/// What the name of a file means for `told`.
fn told(parent: u64, path: &str, became: Became) -> Told {
    Told { path: path.as_bytes().to_vec(), parent, became }
}

/// Runs `ask` on another thread, which the server sees as a different process.
fn another<T: Send>(ask: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(ask).join().expect("no panic"))
}

#[test]
fn calls_of_the_process_are_heard_and_change_nothing() {
    let mount = Mount::new();
    let path = |name: &str| mount.path(name);
    fs::create_dir(path("d")).expect("mkdir");
    let dir = fs::metadata(path("d")).expect("stat").ino();
    for name in ["back", "held", "changed", "stays"] {
        fs::write(path("d").join(name), "first").expect("write");
    }
    let first = mount.commit();
    fs::remove_file(path("d/back")).expect("rm");
    fs::remove_file(path("d/held")).expect("rm");
    fs::write(path("d/extra"), "second").expect("write");
    fs::write(path("d/changed"), "second").expect("write");
    mount.commit();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).expect("inotify");
    let interesting = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB;
    inotify.add_watch(&path("d"), interesting).expect("watch");
    let heard = || -> Vec<(AddWatchFlags, String)> {
        let events = inotify.read_events().unwrap_or_default().into_iter();
        events.map(|e| (e.mask, e.name.unwrap_or_default().into_string().expect("text"))).collect()
    };

    let mut list = mount.restore(first);
    list.sort_by(|a, b| a.path.cmp(&b.path));
    let file = FileKind::Regular;
    assert_eq!(
        list,
        [
            told(dir, "/d/back", Became::Come(file)),
            told(dir, "/d/changed", Became::Content),
            told(dir, "/d/extra", Became::Gone(file)),
            told(dir, "/d/held", Became::Come(file)),
        ]
    );
    assert_eq!(heard(), [], "the restore alone is not heard");
    let held = fs::metadata(path("d/held")).expect("the kernel holds it now").ino();
    let changed = fs::metadata(path("d/changed")).expect("stat");

    // This thread plays the helper process.
    let watchers = &mount.served.watchers;
    let itself = nix::unistd::gettid().as_raw().cast_unsigned();
    assert!(watchers.begin(itself, "probe", &list));
    assert!(!watchers.begin(itself + 1, "other", &list), "one at a time");
    assert_eq!(fs::symlink_metadata(path("probe")).unwrap_err().raw_os_error(), Some(libc::EALREADY));
    assert!(!another(|| path("probe").exists()));
    let mode = Mode::from_bits_truncate(0o600);
    mknod(&path("d/back"), SFlag::S_IFREG, mode, 0).expect("it is made as if it were not there");
    fs::remove_file(path("d/extra")).expect("it is removed as if it were there");
    fs::File::open(path("d/changed")).expect("open").set_modified(SystemTime::UNIX_EPOCH).expect("utimens");
    fs::set_permissions(path("d/stays"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(
        heard(),
        [
            (AddWatchFlags::IN_CREATE, "back".to_owned()),
            (AddWatchFlags::IN_DELETE, "extra".to_owned()),
            (AddWatchFlags::IN_MODIFY, "changed".to_owned()),
            (AddWatchFlags::IN_ATTRIB, "stays".to_owned()),
        ]
    );
    // A name that the kernel holds is not denied, an existing file is not removed, and other names are not
    // created.
    assert_eq!(mknod(&path("d/held"), SFlag::S_IFREG, mode, 0), Err(Errno::EEXIST));
    assert_eq!(fs::metadata(path("d/held")).expect("stat").ino(), held);
    assert!(fs::remove_file(path("d/stays")).is_err() && fs::remove_dir(path("d")).is_err());
    assert_eq!(mknod(&path("d/none"), SFlag::S_IFREG, mode, 0), Err(Errno::ENOENT));
    assert!(fs::create_dir(path("d/none")).is_err());
    // Other processes see the actual state.
    another(|| {
        assert!(!path("d/extra").exists() && !path("d/none").exists());
        assert_eq!(fs::read_to_string(path("d/back")).expect("read"), "first");
        let mut names: Vec<_> =
            fs::read_dir(path("d")).expect("list").map(|e| e.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["back", "changed", "held", "stays"]);
        // They may make any changes meanwhile.
        fs::write(path("d/extra"), "third").expect("write");
    });
    assert!(fs::remove_file(path("d/extra")).is_err(), "it is another one");
    watchers.end();
    assert_eq!(fs::read_to_string(path("d/extra")).expect("read"), "third");
    fs::remove_file(path("d/extra")).expect("an ordinary process again");
    let now = fs::metadata(path("d/changed")).expect("stat");
    assert_eq!((now.mtime_nsec(), now.ctime_nsec()), (changed.mtime_nsec(), changed.ctime_nsec()));
    assert!(now.modified().expect("time").elapsed().expect("past") < Duration::from_secs(600));
    assert_eq!(mount.view.diff().expect("diff"), []);
}
