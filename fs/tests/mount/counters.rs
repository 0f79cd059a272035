//! The oracle of mounts that share a view. Every object counts upwards, and only one caller at a time counts
//! it, on any mount. A call is stamped with the count that had been reached before it began: what it finds
//! must be that count or a later one, and none that nobody has begun to write. So no call returns a state
//! that another, which ended before it began, had replaced; a restore, which sets the counts back, is such a
//! call too.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

/// Number of calls in a test, from KARAPACE_SHARED_OPERATIONS.
pub fn operations(default: u64) -> u64 {
    let given = std::env::var("KARAPACE_SHARED_OPERATIONS").ok();
    given.map_or(default, |text| text.parse().expect("a number of operations"))
}

/// What is counted upwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
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
    /// Whether a file has its second name, which goes and comes back.
    Linked,
    /// Which of two names a directory has.
    Moved,
}

const KINDS: [Kind; 10] = [
    Kind::Content,
    Kind::Size,
    Kind::Target,
    Kind::Listing,
    Kind::Names,
    Kind::Fresh,
    Kind::Time,
    Kind::Xattr,
    Kind::Linked,
    Kind::Moved,
];

/// How many of the names of [`Kind::Names`] and [`Kind::Fresh`] are kept.
const KEPT: u64 = 20;

struct Object {
    kind: Kind,
    name: String,
    /// Held by the caller that counts.
    counting: Mutex<()>,
    begun: AtomicU64,
    published: AtomicU64,
}

/// What a reader found.
enum Found {
    Count(u64),
    /// A state that only these counts, up to and including the second, have.
    Between(u64, u64),
    /// A state that only the counts of this parity have.
    Odd(bool),
    /// It was changed meanwhile, and nothing can be said.
    Nothing,
}

impl Object {
    fn new(kind: Kind, number: usize, side: &Path) -> Object {
        let name = format!("{kind:?}-{number}");
        let path = side.join(&name);
        match kind {
            Kind::Content => fs::write(&path, 0u64.to_ne_bytes()).expect("write"),
            Kind::Size => fs::write(&path, "").expect("write"),
            Kind::Time | Kind::Xattr => {
                fs::write(&path, "").expect("write");
                change(kind, &path, 0).expect("set");
            }
            Kind::Target => symlink("0", &path).expect("symlink"),
            Kind::Listing | Kind::Names | Kind::Fresh => {
                fs::create_dir(&path).expect("mkdir");
                fs::write(path.join("0"), "").expect("write");
            }
            Kind::Linked => {
                fs::create_dir(&path).expect("mkdir");
                fs::write(path.join("kept"), "").expect("write");
            }
            Kind::Moved => fs::create_dir_all(path.join("even")).expect("mkdir"),
        }
        let (begun, published) = (AtomicU64::new(0), AtomicU64::new(0));
        Object { kind, name, counting: Mutex::new(()), begun, published }
    }

    /// Counts on one mount, unless another caller does.
    fn count(&self, side: &Path) {
        let Some(_counting) = self.counting.try_lock() else { return };
        let count = self.published.load(Ordering::SeqCst) + 1;
        self.begun.store(count, Ordering::SeqCst);
        let changed = change(self.kind, &side.join(&self.name), count);
        changed.unwrap_or_else(|error| panic!("{} to {count} in {}: {error}", self.name, side.display()));
        self.published.store(count, Ordering::SeqCst);
    }

    /// Reads on one mount; what it finds that it should not.
    fn wrong(&self, side: &Path) -> Option<String> {
        let least = self.published.load(Ordering::SeqCst);
        let found = find(self.kind, &side.join(&self.name), least);
        let (now, most) = (self.published.load(Ordering::SeqCst), self.begun.load(Ordering::SeqCst));
        let (is_right, found) = match found {
            Ok(Found::Count(count)) => ((least..=most).contains(&count), format!("count {count}")),
            Ok(Found::Between(first, last)) => {
                (first <= most && last >= least, format!("a state of counts {first} to {last}"))
            }
            Ok(Found::Odd(odd)) => {
                (most > least || (least % 2 == 1) == odd, format!("a state of odd counts: {odd}"))
            }
            Ok(Found::Nothing) => (most > least, "nothing".to_owned()),
            Err(error) => (false, error.to_string()),
        };
        (!is_right).then(|| {
            format!(
                "{} in {}: {found}; {least} were done before, {now} of {most} after",
                self.name,
                side.display()
            )
        })
    }
}

fn change(kind: Kind, path: &Path, count: u64) -> io::Result<()> {
    let open = || File::options().write(true).open(path);
    match kind {
        Kind::Content => open()?.write_all_at(&count.to_ne_bytes(), 0),
        Kind::Size if count.is_multiple_of(2) => open()?.set_len(count),
        Kind::Size => open()?.write_all_at(b"x", count - 1),
        Kind::Target => {
            let new = path.with_extension("new");
            symlink(count.to_string(), &new)?;
            fs::rename(&new, path)
        }
        Kind::Listing => fs::rename(path.join((count - 1).to_string()), path.join(count.to_string())),
        Kind::Names | Kind::Fresh => {
            let file = File::create(path.join(count.to_string()))?;
            if kind == Kind::Fresh {
                file.set_len(count)?;
            }
            if count < KEPT { Ok(()) } else { fs::remove_file(path.join((count - KEPT).to_string())) }
        }
        Kind::Time => open()?.set_modified(UNIX_EPOCH + Duration::from_secs(count)),
        Kind::Xattr => {
            let flags = rustix::fs::XattrFlags::empty();
            Ok(rustix::fs::setxattr(path, "user.count", count.to_string().as_bytes(), flags)?)
        }
        Kind::Linked if count.is_multiple_of(2) => fs::remove_file(path.join("odd")),
        Kind::Linked => {
            let [kept, odd] = ["kept", "odd"].map(|name| path.join(name));
            match fs::hard_link(&kept, &odd) {
                // A kernel that caches counts the names itself: one that it had learned to be gone before the
                // answer to UNLINK came is counted twice, until it gets the attributes again.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && fs::metadata(&kept)?.nlink() == 1 =>
                {
                    fs::hard_link(&kept, &odd)
                }
                linked => linked,
            }
        }
        Kind::Moved => {
            let [from, to] = if count.is_multiple_of(2) { ["odd", "even"] } else { ["even", "odd"] };
            fs::rename(path.join(from), path.join(to))
        }
    }
}

/// `least`: a count that has been reached.
fn find(kind: Kind, path: &Path, least: u64) -> io::Result<Found> {
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    Ok(match kind {
        Kind::Content => {
            let mut bytes = [0; 8];
            File::open(path)?.read_exact_at(&mut bytes, 0)?;
            Found::Count(u64::from_ne_bytes(bytes))
        }
        Kind::Size => Found::Count(fs::metadata(path)?.len()),
        Kind::Target => Found::Count(number(&fs::read_link(path)?.to_string_lossy())?),
        Kind::Listing => {
            let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
            let names = names.collect::<io::Result<HashSet<_>>>()?;
            let counts = names.iter().map(|name| number(&name.to_string_lossy()));
            // Renamed while it was listed, a name may be met twice or not at all.
            match counts.collect::<io::Result<Vec<_>>>()?.into_iter().max() {
                Some(count) => Found::Count(count),
                None => Found::Nothing,
            }
        }
        Kind::Names | Kind::Fresh => {
            // Remembered as absent, until it comes.
            if path.join((least + 1).to_string()).try_exists()? {
                return Ok(Found::Between(least + 1, u64::MAX));
            }
            if least >= KEPT && path.join((least - KEPT).to_string()).try_exists()? {
                return Ok(Found::Between(0, least - 1));
            }
            match fs::metadata(path.join(least.to_string())) {
                // It gets its size after it has come, but before the count is reached.
                Ok(found) if kind == Kind::Fresh && found.len() != least => Found::Count(found.len()),
                Ok(_) => Found::Between(least, least + KEPT),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Found::Between(least + KEPT, u64::MAX)
                }
                Err(error) => return Err(error),
            }
        }
        Kind::Time => Found::Count(fs::metadata(path)?.mtime() as u64),
        Kind::Xattr => {
            let mut value = [0; 20];
            let length = rustix::fs::getxattr(path, "user.count", &mut value[..])?;
            Found::Count(number(&String::from_utf8_lossy(&value[..length]))?)
        }
        Kind::Linked | Kind::Moved => Found::Odd(path.join("odd").try_exists()?),
    })
}

/// Callers that count and read, all at once.
pub struct Race {
    /// The mounts. A caller holds this shared during a call.
    sides: RwLock<Vec<PathBuf>>,
    objects: Vec<Object>,
    /// Held shared by those that count.
    counting: RwLock<()>,
    /// Odd while counts are set back.
    restores: AtomicU64,
    calls: u64,
    left: AtomicU64,
    failed: AtomicBool,
}

impl Race {
    /// A race of so many `calls` on the mounts `sides`.
    pub fn new(sides: Vec<PathBuf>, calls: u64) -> Race {
        Race::of(&KINDS, sides, calls)
    }

    /// Counts only these kinds of objects.
    pub fn of(kinds: &[Kind], sides: Vec<PathBuf>, calls: u64) -> Race {
        let object = |n: usize| Object::new(kinds[n % kinds.len()], n, &sides[0]);
        Race {
            objects: (0..2 * KINDS.len()).map(object).collect(),
            sides: RwLock::new(sides),
            counting: RwLock::new(()),
            restores: AtomicU64::new(0),
            calls,
            left: AtomicU64::new(calls),
            failed: AtomicBool::new(false),
        }
    }

    pub fn run(&self) {
        self.run_with(|| {});
    }

    /// Runs the race, and `meanwhile`.
    pub fn run_with(&self, meanwhile: impl FnOnce()) {
        std::thread::scope(|scope| {
            for caller in 0..8 {
                scope.spawn(move || {
                    let _tell = Tell(&self.failed);
                    let mut random = 99 + caller;
                    while self.goes_on() {
                        random = next(random);
                        self.call(random);
                    }
                });
            }
            let _tell = Tell(&self.failed);
            meanwhile();
        });
    }

    pub fn goes_on(&self) -> bool {
        self.left.load(Ordering::Relaxed) > 0 && !self.failed.load(Ordering::Relaxed)
    }

    fn call(&self, random: u64) {
        let object = &self.objects[(random >> 33) as usize % self.objects.len()];
        let sides = self.sides.read();
        let side = &sides[(random >> 48) as usize % sides.len()];
        if random >> 63 == 0 {
            let _counting = self.counting.read();
            object.count(side);
        } else {
            let restores = self.restores.load(Ordering::SeqCst);
            let wrong = object.wrong(side);
            let undisturbed = restores.is_multiple_of(2) && restores == self.restores.load(Ordering::SeqCst);
            if let Some(wrong) = wrong.filter(|_| undisturbed) {
                panic!("{wrong}; call {}", self.calls - self.left.load(Ordering::Relaxed));
            }
        }
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).ok();
    }

    /// Adds a mount, whose callers begin now.
    pub fn joins(&self, side: PathBuf) {
        self.sides.write().push(side);
    }

    /// Waits until no caller uses the mount any more.
    pub fn leaves(&self, side: &Path) {
        self.sides.write().retain(|other| other != side);
    }

    /// Runs `work` while nobody counts, and returns the counts with its result.
    pub fn at_rest<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<u64>) {
        let _rest = self.counting.write();
        let counts = self.objects.iter().map(|object| object.published.load(Ordering::SeqCst)).collect();
        (work(), counts)
    }

    /// Runs `restore`, which sets the counts back, while others read.
    pub fn set_back(&self, counts: &[u64], restore: impl FnOnce()) {
        let _rest = self.counting.write();
        self.restores.fetch_add(1, Ordering::SeqCst);
        restore();
        for (object, count) in self.objects.iter().zip(counts) {
            object.published.store(*count, Ordering::SeqCst);
            object.begun.store(*count, Ordering::SeqCst);
        }
        self.restores.fetch_add(1, Ordering::SeqCst);
    }
}

/// Removes the objects, so that there can be another race.
impl Drop for Race {
    fn drop(&mut self) {
        for object in &self.objects {
            let path = self.sides.get_mut()[0].join(&object.name);
            let removed = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }
}

/// Ends the race when a caller fails.
struct Tell<'a>(&'a AtomicBool);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// The next of a row of pseudo-random numbers; its high bits count.
pub fn next(random: u64) -> u64 {
    random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)
}
