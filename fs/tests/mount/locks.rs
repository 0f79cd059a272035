//! Locks on files of one view that is mounted twice.

use karapace_fs::session::{LockScope, MountOptions};

use crate::mount::several::race;
use crate::mount::support::{Mount, Second};

fn with(locks: LockScope) -> (Mount, Second) {
    let set = |options: &mut MountOptions| (options.shares, options.locks) = (true, locks);
    let mount = Mount::with(set);
    let second = Second::with(&mount, set);
    (mount, second)
}

const COMMON: &str = r#"
import errno, fcntl, os, select, signal, struct, subprocess, time
OFD_SETLK, OFD_SETLKW = 37, 38
open("f", "w").close()
SIDES = "f", SECOND + "/f"

def record(kind, start=0, length=0):
    return struct.pack("hhqqi4x", kind, 0, start, length, 0)

def get(fd, kind=fcntl.F_WRLCK):
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, record(kind)))

WAYS = {
    "flock": lambda fd, how: fcntl.flock(fd, how),
    "posix": lambda fd, how: fcntl.lockf(fd, how),
    "ofd": lambda fd, how: fcntl.fcntl(fd, OFD_SETLK if how & fcntl.LOCK_NB else OFD_SETLKW,
        record(fcntl.F_RDLCK if how & fcntl.LOCK_SH else fcntl.F_WRLCK)) and None,
}

def tried(way, fd, how=fcntl.LOCK_EX):
    try:
        WAYS[way](fd, how | fcntl.LOCK_NB)
        return True
    except OSError as error:
        assert error.errno == errno.EAGAIN, error
        return False

class Other:
    """A process that has opened a file and runs what it is told."""
    def __init__(self, path):
        (theirs, self.to), (self.of, ours) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for inherited in set(range(3, 100)) - {theirs, ours}:
                try: os.close(inherited)
                except OSError: pass
            fd = os.open(path, os.O_RDWR)
            os.write(ours, b"r")
            while True:
                line = os.read(theirs, 4096)
                if not line: os._exit(0)
                try: result = repr(eval(line.decode(), {**globals(), "fd": fd}))
                except OSError as error: result = repr(errno.errorcode[error.errno])
                os.write(ours, result.encode())
        os.close(theirs); os.close(ours)
        os.read(self.of, 1)
    def ask(self, line):
        os.write(self.to, line.encode())
    def answer(self):
        return eval(os.read(self.of, 4096).decode())
    def do(self, line):
        self.ask(line)
        return self.answer()
    def waits(self):
        return not select.select([self.of], [], [], 0.3)[0]
    def end(self):
        os.close(self.to); os.close(self.of)
        return os.waitpid(self.pid, 0)[1]
"#;

fn run(locks: LockScope, script: &str) {
    let (mount, second) = with(locks);
    let dir = second.path("").display().to_string();
    mount.ok("python3", &format!("SECOND = {dir:?}\n{COMMON}\n{script}"));
}

#[test]
fn local_locks_exclude_on_their_own_side_only() {
    run(
        LockScope::Local,
        r#"
for way in WAYS:
    for here, there in (SIDES, SIDES[::-1]):
        one, same, other = Other(here), Other(here), Other(there)
        assert one.do(f"tried('{way}', fd)") and not same.do(f"tried('{way}', fd)")
        assert other.do(f"tried('{way}', fd)")
        [o.end() for o in (one, same, other)]
"#,
    );
}

#[test]
fn shared_locks_exclude_and_wake_across_both_sides() {
    run(
        LockScope::Shared,
        r#"
for way in WAYS:
    for here, there in (SIDES, SIDES[::-1]):
        one, other, third = Other(here), Other(there), Other(here)
        assert one.do(f"tried('{way}', fd)"), way
        assert not other.do(f"tried('{way}', fd)"), way
        assert not other.do(f"tried('{way}', fd, fcntl.LOCK_SH)"), way
        for kind in set(WAYS) - {way}:
            excludes = {kind, way} == {"posix", "ofd"}
            assert other.do(f"tried('{kind}', fd)") != excludes, (way, kind)
            if not excludes:
                other.do("fcntl.flock(fd, fcntl.LOCK_UN), fcntl.lockf(fd, fcntl.LOCK_UN), "
                    "fcntl.fcntl(fd, OFD_SETLK, record(fcntl.F_UNLCK))")
        # A blocked request gets the lock when the other side gives it back, closes, or dies.
        other.ask(f"WAYS['{way}'](fd, fcntl.LOCK_EX)")
        assert other.waits(), way
        third.ask(f"WAYS['{way}'](fd, fcntl.LOCK_EX)")
        assert third.waits(), way
        one.do("os.close(fd)")
        # Whose request came first.
        ready = select.select([other.of, third.of], [], [], 60)[0]
        first, last = (other, third) if other.of in ready else (third, other)
        assert first.answer() is None and last.waits(), way
        os.kill(first.pid, signal.SIGKILL); first.end()
        assert last.answer() is None, way
        one.end(); last.end()
        fd = os.open(there, os.O_RDWR)
        assert tried(way, fd), way
        os.close(fd)
"#,
    );
}

#[test]
fn the_holder_of_a_range_is_told_with_its_process() {
    run(
        LockScope::Shared,
        r#"
one = Other(SIDES[0]); fd = os.open(SIDES[1], os.O_RDWR)
one.do("fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)"); one.do("fcntl.lockf(fd, fcntl.LOCK_SH, 10, 30)")
assert get(fd) == (fcntl.F_WRLCK, 0, 5, 10, one.pid), get(fd)
one.do("fcntl.lockf(fd, fcntl.LOCK_UN, 6, 7)")
assert get(fd) == (fcntl.F_WRLCK, 0, 5, 2, one.pid), get(fd)
one.do("fcntl.lockf(fd, fcntl.LOCK_UN, 20, 0)")
assert get(fd) == (fcntl.F_RDLCK, 0, 30, 10, one.pid), get(fd)
assert get(fd, fcntl.F_RDLCK)[0] == fcntl.F_UNLCK
one.end()
assert get(fd)[0] == fcntl.F_UNLCK
"#,
    );
}

/// The end of an open file is told after close(2) has returned, and after a process was waited for.
#[test]
fn a_lock_is_free_once_its_holder_has_ended() {
    run(
        LockScope::Shared,
        r#"
for way in WAYS:
    for turn in range(200):
        here, there = SIDES[turn % 2], SIDES[turn // 2 % 2]
        fd = os.open(here, os.O_RDWR); WAYS[way](fd, fcntl.LOCK_EX); os.close(fd)
        fd = os.open(there, os.O_RDWR)
        assert tried(way, fd), (way, turn)
        os.close(fd)
for turn in range(50):
    subprocess.check_call(["flock", "-n", SIDES[turn % 2], "true"])
"#,
    );
}

#[test]
fn waiting_ends_with_a_signal_and_a_killed_waiter_gets_nothing() {
    run(
        LockScope::Shared,
        r#"
def interrupted(*_): raise InterruptedError(errno.EINTR, "interrupted")
for way in WAYS:
    holder, waiter, next = Other(SIDES[0]), Other(SIDES[1]), Other(SIDES[1])
    assert holder.do(f"tried('{way}', fd)")
    waiter.do("(signal.signal(signal.SIGALRM, interrupted), None)[1]")
    for turn in range(3):
        waiter.ask(f"signal.setitimer(signal.ITIMER_REAL, 0.1), WAYS['{way}'](fd, fcntl.LOCK_EX)")
        began = time.time()
        assert waiter.answer() == "EINTR", way
        assert time.time() - began < 5
    # A handler that returns: the call goes on waiting.
    waiter.do("(signal.signal(signal.SIGALRM, lambda *_: None), None)[1]")
    waiter.ask(f"signal.setitimer(signal.ITIMER_REAL, 0.1), WAYS['{way}'](fd, fcntl.LOCK_EX)")
    assert waiter.waits(), way
    next.ask(f"WAYS['{way}'](fd, fcntl.LOCK_EX)")
    assert next.waits(), way
    began = time.time()
    os.kill(waiter.pid, signal.SIGKILL); waiter.end()
    assert time.time() - began < 5, way
    holder.end()
    assert next.answer() is None, way
    next.end()
    holder = Other(SIDES[0]); holder.do("fcntl.flock(fd, fcntl.LOCK_EX)")
    began = time.time()
    assert subprocess.call(["timeout", "1", "flock", SIDES[1], "true"]) == 124
    assert time.time() - began < 5
    holder.end()
"#,
    );
}

#[test]
fn a_mount_that_ends_gives_its_locks_back() {
    let (mount, second) = with(LockScope::Shared);
    std::fs::write(mount.path("f"), "").expect("write");
    let theirs = std::fs::File::open(second.path("f")).expect("open");
    theirs.lock().expect("lock");
    let ours = std::fs::File::open(mount.path("f")).expect("open");
    assert!(ours.try_lock().is_err());
    // In use, so it is not unmounted, but the connection is aborted.
    let aborted = std::process::Command::new("umount").arg("-f").arg(second.path("")).output();
    assert!(!aborted.expect("umount").status.success());
    ours.lock().expect("lock");
    drop(theirs);
}

#[test]
fn posix_waiters_that_wait_for_each_other_are_told() {
    run(
        LockScope::Shared,
        r#"
one, two = Other(SIDES[0]), Other(SIDES[1])
one.do("fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)"); two.do("fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)")
one.ask("fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)")
assert one.waits()
two.ask("fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)")
# Whose request came last.
ready = select.select([one.of, two.of], [], [], 60)[0]
told, other = (two, one) if two.of in ready else (one, two)
assert told.answer() in ("EDEADLK", "EDEADLOCK")
told.end()
assert other.answer() is None
other.end()
"#,
    );
}

/// The kernel keeps pages over an open that is answered.
#[test]
fn concurrent_callers_on_both_sides_see_what_had_been_done() {
    let (mount, second) = with(LockScope::Shared);
    race(&mount, &second);
}

#[test]
fn each_side_reads_what_the_other_wrote_and_status_tells_the_scope() {
    let (mount, second) = with(LockScope::Shared);
    let second = second.path("").display().to_string();
    let script = r#"
import os
for n in range(50):
    for here, there in ((".", SECOND), (SECOND, ".")):
        with open(here + "/page", "w") as f: f.write(f"{n} {here}")
        assert open(there + "/page").read() == f"{n} {here}"
        assert open(here + "/page").read() == f"{n} {here}"
print(open(".karapace/status").read())
"#;
    let status = mount.ok("python3", &format!("SECOND = {second:?}\n{script}"));
    assert!(status.contains("\nlocks: shared\n"), "{status}");
    assert!(Mount::new().read_control("status").contains("\nlocks: local\n"));
}
