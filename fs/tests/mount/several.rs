//! One view mounted in two places: what a call on one has returned, a call on the other sees.
//!
//! The oracle: every object counts upwards. Its only writer, on either side, publishes a count once the call
//! that wrote it has returned; a reader on either side that begins after that must find this count or a later
//! one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use karapace_fs::session::{MountOptions, UnmountHandle};

use crate::mount::support::Mount;

/// A second mount of a view, on a directory of its own.
pub(super) struct Second {
    dir: tempfile::TempDir,
    unmounter: UnmountHandle,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

impl Second {
    pub(super) fn of(mount: &Mount) -> Second {
        let dir = tempfile::tempdir().expect("temporary directory");
        let options = MountOptions { shares: true, ..MountOptions::default() };
        let session = mount.served.serving.mount(dir.path(), "karapace+second", &options).expect("mount");
        let unmounter = session.unmount_handle();
        let thread = Some(std::thread::spawn(move || session.wait()));
        Second { dir, unmounter, thread }
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        if self.unmounter.unmount().is_err() {
            self.unmounter.detach().expect("cannot unmount");
        }
        if let Some(thread) = self.thread.take().filter(|_| !std::thread::panicking()) {
            thread.join().expect("serving does not panic").expect("serving ends well");
        }
    }
}

pub(super) fn shared() -> (Mount, Second) {
    let mount = Mount::with(|options| options.shares = true);
    let second = Second::of(&mount);
    (mount, second)
}

#[test]
fn each_side_sees_what_the_other_did() {
    let (mount, second) = shared();
    let sides = [mount.path(""), second.path("")];
    for (here, there) in [(&sides[0], &sides[1]), (&sides[1], &sides[0])] {
        let (ours, theirs) = (here.join("d/f"), there.join("d/f"));
        assert!(!theirs.exists() && !ours.exists());
        fs::create_dir(here.join("d")).expect("mkdir");
        let listed = || fs::read_dir(there.join("d")).expect("list").count();
        assert_eq!((listed(), listed()), (0, 0));
        fs::write(&ours, "one").expect("write");
        assert_eq!((listed(), listed()), (1, 1));
        assert_eq!(fs::read_to_string(&theirs).expect("read"), "one");
        fs::write(&ours, "two").expect("write");
        assert_eq!(fs::read_to_string(&theirs).expect("read"), "two");
        let mode = fs::Permissions::from_mode(0o640);
        fs::set_permissions(&ours, mode).expect("chmod");
        assert_eq!(fs::metadata(&theirs).expect("stat").mode() & 0o7777, 0o640);
        fs::hard_link(&ours, here.join("d/g")).expect("link");
        assert_eq!(fs::metadata(&theirs).expect("stat").nlink(), 2);
        assert_eq!(
            fs::metadata(there.join("d/g")).expect("stat").ino(),
            fs::metadata(&ours).expect("stat").ino()
        );
        fs::remove_file(here.join("d/g")).expect("unlink");
        assert_eq!(fs::metadata(&theirs).expect("stat").nlink(), 1);
        assert!(!there.join("d/g").exists());
        fs::rename(&ours, here.join("moved")).expect("rename");
        assert!(!theirs.exists());
        assert_eq!(fs::read_to_string(there.join("moved")).expect("read"), "two");
        fs::remove_file(there.join("moved")).expect("unlink");
        fs::remove_dir(there.join("d")).expect("rmdir");
        assert!(!here.join("moved").exists() && !here.join("d").exists());
    }
}

#[test]
fn a_mount_that_ends_gives_back_what_its_kernel_held() {
    let (mount, second) = shared();
    mount.ok("bash", "mkdir -p tree/{a,b,c}; touch tree/{a,b,c}/{1..20}");
    let before = mount.view.stats().cached_inodes;
    let count = || fs::read_dir(second.path("tree/b")).expect("list").count();
    assert_eq!(count(), 20);
    let ino = fs::metadata(second.path("tree/b/7")).expect("stat").ino();
    let held = mount.view.references(ino);
    drop(second);
    assert!(mount.view.references(ino) < held);
    assert_eq!(mount.view.stats().cached_inodes, before);
    let third = Second::of(&mount);
    assert_eq!(fs::read(third.path("tree/b/7")).expect("read"), b"");
}

/// The side that caches has stored into a page, and the other one writes to it.
const STORES: &str = r#"
import mmap, os
here, there = (os.open(side + "/page", os.O_RDWR) for side in (".", SECOND))
mapped = mmap.mmap(there, 4096)
mapped[0:6] = b"mapped"
os.pwrite(here, b"written", 100)
mapped.flush()
for reader in (here, there):
    found = os.pread(reader, 6, 0), os.pread(reader, 7, 100)
    assert found == (b"mapped", b"written"), found
"#;

#[test]
fn stores_into_a_page_that_the_other_side_writes_are_kept() {
    let (mount, second) = shared();
    fs::write(mount.path("page"), [0; 4096]).expect("write");
    let second = second.path("").display().to_string();
    mount.ok("python3", &format!("SECOND = {second:?}\n{STORES}"));
}

/// What is counted upwards.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The content of a file, of one size.
    Content,
    /// The size of a file.
    Size,
    /// The target of a link that is replaced by renaming.
    Target,
    /// The only name in a directory.
    Listing,
    /// A new name each time.
    Names,
    /// The size of a new file each time, which is not known on one side when it is set on the other.
    Fresh,
    /// The modification time.
    Time,
    /// An extended attribute.
    Xattr,
}

const KINDS: [Kind; 8] = [
    Kind::Content,
    Kind::Size,
    Kind::Target,
    Kind::Listing,
    Kind::Names,
    Kind::Fresh,
    Kind::Time,
    Kind::Xattr,
];

struct Object {
    kind: Kind,
    name: String,
    published: AtomicU64,
}

impl Object {
    fn new(kind: Kind, number: usize, side: &Path) -> Object {
        let object = Object { kind, name: format!("{kind:?}-{number}"), published: AtomicU64::new(0) };
        let path = side.join(&object.name);
        match kind {
            Kind::Content => fs::write(&path, 0u64.to_ne_bytes()).expect("write"),
            Kind::Size | Kind::Time | Kind::Xattr => fs::write(&path, "").expect("write"),
            Kind::Target => symlink("0", &path).expect("symlink"),
            Kind::Listing | Kind::Names | Kind::Fresh => {
                fs::create_dir(&path).expect("mkdir");
                fs::write(path.join("0"), "").expect("write");
            }
        }
        object
    }

    fn write(&self, side: &Path, count: u64) {
        let path = side.join(&self.name);
        match self.kind {
            Kind::Content => {
                let file = File::options().write(true).open(&path).expect("open");
                file.write_all_at(&count.to_ne_bytes(), 0).expect("write");
            }
            Kind::Size => {
                let file = File::options().write(true).open(&path).expect("open");
                if count.is_multiple_of(2) {
                    file.set_len(count).expect("truncate");
                } else {
                    file.write_all_at(b"x", count - 1).expect("write");
                }
            }
            Kind::Target => {
                let new = side.join(format!("{}.new", self.name));
                symlink(count.to_string(), &new).expect("symlink");
                fs::rename(&new, &path).expect("rename");
            }
            Kind::Listing => {
                fs::rename(path.join((count - 1).to_string()), path.join(count.to_string())).expect("rename");
            }
            Kind::Names => {
                fs::write(path.join(count.to_string()), "").expect("write");
                if count > 20 {
                    fs::remove_file(path.join((count - 20).to_string())).expect("unlink");
                }
            }
            Kind::Fresh => {
                let file = File::create(path.join(count.to_string())).expect("create");
                file.set_len(count).expect("truncate");
                if count > 20 {
                    fs::remove_file(path.join((count - 20).to_string())).expect("unlink");
                }
            }
            Kind::Time => {
                let file = File::options().write(true).open(&path).expect("open");
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(count);
                file.set_modified(time).expect("utimens");
            }
            Kind::Xattr => {
                let value = count.to_string();
                rustix::fs::setxattr(&path, "user.count", value.as_bytes(), rustix::fs::XattrFlags::empty())
                    .expect("setxattr");
            }
        }
        self.published.store(count, Ordering::SeqCst);
    }

    /// Reads on one side; fails if it finds less than was published before it began.
    fn check(&self, side: &Path) {
        let least = self.published.load(Ordering::SeqCst);
        let path = side.join(&self.name);
        let found = match self.kind {
            Kind::Content => {
                let mut bytes = [0; 8];
                File::open(&path).expect("open").read_exact_at(&mut bytes, 0).expect("read");
                u64::from_ne_bytes(bytes)
            }
            Kind::Size => fs::metadata(&path).expect("stat").len(),
            Kind::Target => {
                fs::read_link(&path).expect("readlink").to_str().expect("a number").parse().expect("a number")
            }
            Kind::Listing => {
                let names: HashSet<String> = fs::read_dir(&path)
                    .expect("list")
                    .map(|entry| entry.expect("entry").file_name().into_string().expect("a number"))
                    .collect();
                let counts = names.iter().map(|name| name.parse::<u64>().expect("a number"));
                // Renamed while it was listed, a name may be met twice or not at all.
                match counts.max() {
                    Some(count) => count,
                    None => {
                        return assert!(
                            self.published.load(Ordering::SeqCst) > least,
                            "{} is empty",
                            self.name
                        );
                    }
                }
            }
            Kind::Names => {
                let there = path.join(least.to_string()).exists();
                if !there {
                    // It is removed twenty counts later.
                    assert!(
                        self.published.load(Ordering::SeqCst) >= least + 19,
                        "{}/{least} is absent",
                        self.name
                    );
                }
                // Remembered as absent, until it comes.
                let _remembered = path.join((least + 1).to_string()).exists();
                least
            }
            Kind::Fresh => {
                let _asked_for = fs::metadata(path.join((least + 1).to_string()));
                match fs::metadata(path.join(least.to_string())) {
                    Ok(found) => found.len(),
                    Err(_) => {
                        let now = self.published.load(Ordering::SeqCst);
                        return assert!(now >= least + 19, "{}/{least} is absent", self.name);
                    }
                }
            }
            Kind::Time => fs::metadata(&path).expect("stat").mtime() as u64,
            Kind::Xattr => {
                let mut value = [0; 20];
                match rustix::fs::getxattr(&path, "user.count", &mut value[..]) {
                    Ok(length) => {
                        std::str::from_utf8(&value[..length]).expect("text").parse().expect("a number")
                    }
                    Err(_) if least == 0 => 0,
                    Err(errno) => panic!("getxattr: {errno}"),
                }
            }
        };
        let later = if matches!(self.kind, Kind::Time) && least == 0 { 0 } else { found };
        assert!(later >= least || least == 0, "{}: {later}, and {least} had been written before", self.name);
    }
}

/// Removes the objects at the end of a race, so that there can be another one.
struct Removed<'a>(&'a Path, &'a [Object]);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        for object in self.1 {
            let path = self.0.join(&object.name);
            let removed = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }
}

/// Number of changes, from KARAPACE_OPERATIONS.
fn operations() -> u64 {
    std::env::var("KARAPACE_OPERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

#[test]
fn concurrent_callers_on_both_sides_see_what_had_been_done() {
    let (mount, second) = shared();
    race(&mount, &second);
}

/// The second mount comes and goes meanwhile, and with it the caching.
#[test]
fn mounts_come_and_go_under_callers() {
    let (mount, second) = shared();
    let mut second = Some(second);
    for _ in 0..5 {
        race(&mount, second.as_ref().expect("mounted"));
        drop(second.take());
        fs::write(mount.path("alone"), "one").expect("write");
        assert!(!mount.path("absent").exists());
        second = Some(Second::of(&mount));
        let second = second.as_ref().expect("mounted");
        fs::write(second.path("alone"), "two").expect("write");
        fs::write(second.path("absent"), "").expect("write");
        assert_eq!(fs::read_to_string(mount.path("alone")).expect("read"), "two");
        assert!(mount.path("absent").exists(), "the absence that the first mount had cached");
        fs::remove_file(mount.path("absent")).expect("unlink");
    }
}

/// Each fault is found within a minute by one of the tests above.
#[test]
fn planted_faults_are_found() {
    for (fault, test) in [
        ("no-second-try", "concurrent_callers_on_both_sides_see_what_had_been_done"),
        ("answer-first", "concurrent_callers_on_both_sides_see_what_had_been_done"),
        ("listing-left", "concurrent_callers_on_both_sides_see_what_had_been_done"),
        ("told-only-after", "stores_into_a_page_that_the_other_side_writes_are_kept"),
    ] {
        let program = std::env::current_exe().expect("this program");
        let mut command = std::process::Command::new(program);
        command.args(["--exact", &format!("mount::several::{test}")]);
        command.env("KARAPACE_PLANT", fault).env("KARAPACE_OPERATIONS", "1000000");
        let start = std::time::Instant::now();
        let output = command.output().expect("run the tests");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("running 1 test") && !output.status.success(), "{fault} is not found");
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{fault}: {:?}", start.elapsed());
    }
}

fn race(mount: &Mount, second: &Second) {
    let sides = [mount.path(""), second.path("")];
    let objects: Vec<Object> =
        (0..2 * KINDS.len()).map(|n| Object::new(KINDS[n % KINDS.len()], n, &sides[0])).collect();
    let _removed = Removed(&sides[0], &objects);
    let (left, failed) = (AtomicU64::new(operations()), AtomicBool::new(false));
    let go_on = |left: &AtomicU64| left.load(Ordering::Relaxed) > 0 && !failed.load(Ordering::Relaxed);
    struct Tell<'a>(&'a AtomicBool);
    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    std::thread::scope(|scope| {
        for part in objects.chunks(objects.len() / 4 + 1) {
            let (left, failed, sides, go_on) = (&left, &failed, &sides, &go_on);
            scope.spawn(move || {
                let _tell = Tell(failed);
                let mut random = 1 + part.as_ptr() as u64;
                let mut count = vec![0; part.len()];
                while go_on(left) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let at = (random >> 33) as usize % part.len();
                    count[at] += 1;
                    part[at].write(&sides[(random >> 60) as usize % 2], count[at]);
                    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
                }
            });
        }
        for reader in 0..4 {
            let (left, failed, side, go_on, objects) = (&left, &failed, &sides[reader % 2], &go_on, &objects);
            scope.spawn(move || {
                let _tell = Tell(failed);
                let mut random = 99 + reader as u64;
                while go_on(left) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    objects[(random >> 33) as usize % objects.len()].check(side);
                }
            });
        }
    });
}
