//! Callers on two mounts of one view, whose kernels have to be told of each other's changes: none waits long.
//! KARAPACE_STALL_SECONDS sets how long it goes on (5); an hour finds more.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, abort};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Scope, sleep};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::common::sys::Mapping;
use crate::mount::support::{Mount, Second};

/// The longest that one call may take, not counting what a machine with other work takes.
const MOST: Duration = Duration::from_secs(2);

/// The longest that a whole `make` may take, and a call before the test gives up.
const STUCK: Duration = Duration::from_secs(120);

/// How often the machine's delays are measured.
const TICK: Duration = Duration::from_millis(20);

/// The calls of one process, and how much later than asked the machine ran a thread meanwhile.
struct Clock {
    start: Instant,
    end: Instant,
    /// In microseconds since the start: the last tick, and the delays up to it.
    ticked: AtomicU64,
    late: AtomicU64,
    calls: AtomicU64,
    longest: Mutex<(Duration, &'static str)>,
    /// Calls in progress.
    under_way: Mutex<Vec<(Instant, Duration, &'static str)>>,
}

impl Clock {
    fn new(length: Duration) -> Clock {
        let start = Instant::now();
        Clock {
            start,
            end: start + length,
            ticked: AtomicU64::new(0),
            late: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            longest: Mutex::new((Duration::ZERO, "nothing")),
            under_way: Mutex::default(),
        }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// The delays so far, with that of a tick that is due.
    fn late(&self) -> Duration {
        let ticked = self.start + Duration::from_micros(self.ticked.load(Ordering::SeqCst));
        let due = ticked.elapsed().saturating_sub(2 * TICK);
        Duration::from_micros(self.late.load(Ordering::SeqCst)) + due
    }

    fn call<T>(&self, what: &'static str, most: Duration, work: impl FnOnce() -> T) -> T {
        let (start, late) = (Instant::now(), self.late());
        self.under_way.lock().push((start, late, what));
        let result = work();
        self.under_way.lock().retain(|call| call.0 != start);
        let took = start.elapsed().saturating_sub(self.late().saturating_sub(late));
        assert!(
            took <= most,
            "{what} took {:?}, of which the machine took all but {took:?}",
            start.elapsed()
        );
        let mut longest = self.longest.lock();
        if most == MOST && took > longest.0 {
            *longest = (took, what);
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Measures until the end, and ends the process if a call hangs: a test cannot end a thread.
    fn watch(&self) {
        while self.goes_on() || !self.under_way.lock().is_empty() {
            let slept = Instant::now();
            sleep(TICK);
            let late = slept.elapsed().saturating_sub(TICK);
            self.late.fetch_add(late.as_micros() as u64, Ordering::SeqCst);
            self.ticked.store(self.start.elapsed().as_micros() as u64, Ordering::SeqCst);
            let now = self.late();
            for (start, late, what) in &*self.under_way.lock() {
                if start.elapsed().saturating_sub(now.saturating_sub(*late)) > STUCK {
                    eprintln!("{what} has not returned for {:?}", start.elapsed());
                    abort();
                }
            }
        }
    }

    fn report(&self, who: &str) {
        let (took, what) = *self.longest.lock();
        println!(
            "{who}: {:?}, {} calls, the longest {what} {took:?}; the machine was late by {:?}",
            self.start.elapsed(),
            self.calls.load(Ordering::Relaxed),
            self.late()
        );
    }
}

fn given() -> Option<String> {
    std::env::var("KARAPACE_STALL_SECONDS").ok()
}

fn length() -> Duration {
    Duration::from_secs(given().map_or(5, |text| text.parse().expect("a number of seconds")))
}

#[test]
fn no_caller_waits_for_two_seconds() {
    // The short form runs beside other tests, whose writes may keep the disk busy for seconds.
    let place = if given().is_some() { std::env::temp_dir() } else { PathBuf::from("/dev/shm") };
    let mount = Mount::below(&place, |options| options.shares = true);
    let second = Second::of(&mount);
    let sides = [mount.path(""), second.path("")];
    fs::create_dir(mount.path("crowd")).expect("mkdir");
    for name in ["page", "mapped"] {
        fs::write(mount.path(name), [0; 8192]).expect("write");
    }
    source(&mount.path("source"));
    let clock = Clock::new(length());
    std::thread::scope(|scope| {
        scope.spawn(|| clock.watch());
        for (side, path) in sides.iter().enumerate() {
            for caller in 0..2 {
                let crowd = path.join("crowd");
                repeat(scope, &clock, move |clock, turn| {
                    creates(clock, &crowd, &format!("{side}-{caller}-{}", turn % 50))
                });
            }
            let (page, mapped) = (path.join("page"), path.join("mapped"));
            repeat(scope, &clock, move |clock, turn| writes(clock, &page, (side as u64 * 100, turn)));
            repeat(scope, &clock, move |clock, turn| truncates(clock, &mapped, turn));
            repeat(scope, &clock, move |clock, _| makes(clock, path, side));
            let mapped = path.join("mapped");
            scope.spawn(move || stores_in_a_child(&mapped));
        }
        repeat(scope, &clock, |clock, _| {
            let third = clock.call("mount", STUCK, || Second::for_sessions(&mount));
            sleep(Duration::from_millis(300));
            creates(clock, &third.path("crowd"), "third")?;
            clock.call("unmount", STUCK, || drop(third));
            sleep(Duration::from_millis(300));
            Ok(())
        });
    });
    clock.report("both sides");
}

fn repeat<'s>(
    scope: &'s Scope<'s, '_>,
    clock: &'s Clock,
    work: impl Fn(&Clock, u64) -> io::Result<()> + Send + 's,
) {
    scope.spawn(move || {
        let mut turn = 0;
        while clock.goes_on() {
            work(clock, turn).expect("a call");
            turn += 1;
        }
    });
}

fn creates(clock: &Clock, dir: &Path, name: &str) -> io::Result<()> {
    let (path, renamed) = (dir.join(name), dir.join(format!("{name}-renamed")));
    clock.call("create", MOST, || File::create(&path))?;
    clock.call("rename", MOST, || fs::rename(&path, &renamed))?;
    clock.call("list", MOST, || fs::read_dir(dir).map(Iterator::count))?;
    clock.call("unlink", MOST, || fs::remove_file(&renamed))
}

/// Both sides write to one page, each to its own part, and find there what they wrote.
fn writes(clock: &Clock, path: &Path, (offset, turn): (u64, u64)) -> io::Result<()> {
    let file = clock.call("open", MOST, || File::options().read(true).write(true).open(path))?;
    clock.call("write", MOST, || file.write_all_at(&turn.to_ne_bytes(), offset))?;
    let mut found = [0; 8];
    clock.call("read", MOST, || file.read_exact_at(&mut found, offset))?;
    assert_eq!(u64::from_ne_bytes(found), turn, "what this side alone writes");
    Ok(())
}

/// The first page, into which the others store, stays.
fn truncates(clock: &Clock, path: &Path, turn: u64) -> io::Result<()> {
    let file = clock.call("open", MOST, || File::options().write(true).open(path))?;
    clock.call("truncate", MOST, || file.set_len(if turn.is_multiple_of(2) { 100 } else { 8192 }))
}

/// Rules that read what both sides read, and write to a directory of the side's own.
const MAKEFILE: &str = "parts := $(patsubst %.c,$(OUT)/%.o,$(wildcard *.c))
$(OUT)/all: $(parts)
\tcat $^ > $@.new
\tmv $@.new $@
$(OUT)/%.o: %.c | $(OUT)
\tcat common.h $< > $@.new
\tmv $@.new $@
$(OUT):
\tmkdir -p $@
";

fn source(dir: &Path) {
    fs::create_dir(dir).expect("mkdir");
    fs::write(dir.join("Makefile"), MAKEFILE).expect("write");
    fs::write(dir.join("common.h"), "common\n").expect("write");
    for part in 0..20 {
        fs::write(dir.join(format!("part-{part}.c")), "part\n").expect("write");
    }
}

fn makes(clock: &Clock, side: &Path, number: usize) -> io::Result<()> {
    let (dir, out) = (side.join("source"), format!("out-{number}"));
    let mut make = Command::new("make");
    make.args(["-j2", "-s", &format!("OUT={out}")]).current_dir(&dir).env_remove("MAKEFLAGS");
    let output = clock.call("make", STUCK, || make.output())?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(dir.join(&out).join("all"))?.len(), 20 * "common\npart\n".len());
    fs::remove_dir_all(dir.join(&out))
}

/// In another process: a page fault waits with the address space locked, which the server needs too.
fn stores_in_a_child(path: &Path) {
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "mount::stalls::child_stores", "--ignored", "--nocapture"]);
    child.env("KARAPACE_STALL_FILE", path).stderr(Stdio::inherit());
    let output = child.output().expect("run the tests");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    print!("{text}");
}

#[test]
#[ignore = "run by no_caller_waits_for_two_seconds"]
fn child_stores() {
    let path = PathBuf::from(std::env::var_os("KARAPACE_STALL_FILE").expect("run by another test only"));
    let clock = Clock::new(length());
    std::thread::scope(|scope| {
        scope.spawn(|| clock.watch());
        repeat(scope, &clock, |clock, turn| {
            let file = clock.call("open", MOST, || File::options().read(true).write(true).open(&path))?;
            let offset = (std::process::id() as u64 % 2) * 50;
            let mapping = clock.call("store", MOST, || Mapping::store(file, offset, &turn.to_ne_bytes()))?;
            if turn.is_multiple_of(2) {
                clock.call("msync", MOST, || mapping.sync())?;
            }
            clock.call("munmap", MOST, || drop(mapping));
            Ok(())
        });
    });
    clock.report("stores");
}
