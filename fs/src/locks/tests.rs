use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;

const ALL: (u64, u64) = (0, i64::MAX as u64);
const ONE: File = File { link: None, node: 2 };
const OTHER: File = File { link: None, node: 3 };

/// A lock through an open file of the same number as its owner.
fn lock(link: u64, number: u64, mode: Mode, range: (u64, u64)) -> Lock {
    Lock { owner: Owner { link, number }, mode, range, pid: 7, handle: number, closed: None }
}

fn ask(locks: &Arc<Locks>, file: File, kind: Kind, lock: Lock, otherwise: Else) -> Receiver<Result<(), i32>> {
    let (sender, receiver) = channel();
    let answer = Box::new(move |result| sender.send(result).expect("somebody waits"));
    locks.take(file, kind, lock, otherwise, answer);
    receiver
}

/// Asks for a lock without waiting for it.
fn take(locks: &Arc<Locks>, kind: Kind, lock: Lock) -> Result<(), i32> {
    let answer = ask(locks, ONE, kind, lock, Else::Refuse).try_recv();
    answer.expect("an answer at once")
}

fn wait(locks: &Arc<Locks>, file: File, kind: Kind, lock: Lock) -> Receiver<Result<(), i32>> {
    ask(locks, file, kind, lock, Else::Wait(0))
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn locks_exclude_between_connections() {
    for kind in [Kind::Posix, Kind::Flock] {
        let locks = Arc::new(Locks::default());
        let (mine, theirs) = (lock(1, 9, Mode::Exclusive, ALL), lock(2, 9, Mode::Shared, ALL));
        assert_eq!(take(&locks, kind, mine), Ok(()));
        assert_eq!(take(&locks, kind, theirs), Err(libc::EAGAIN));
        let other = if kind == Kind::Posix { Kind::Flock } else { Kind::Posix };
        assert_eq!(take(&locks, other, theirs), Ok(()), "the kinds ignore each other");
        locks.ended(1);
        assert_eq!(take(&locks, kind, theirs), Ok(()));
        assert_eq!(take(&locks, kind, lock(3, 1, Mode::Shared, ALL)), Ok(()));
        locks.ended(2);
        locks.ended(3);
        assert!(locks.is_empty());
    }
}

#[test]
fn the_lock_in_the_way_is_told() {
    let locks = Arc::new(Locks::default());
    let held = lock(1, 9, Mode::Exclusive, (10, 19));
    assert_eq!(take(&locks, Kind::Posix, held), Ok(()));
    assert_eq!(locks.against(ONE, &lock(2, 9, Mode::Shared, ALL)), Some(held));
    assert_eq!(locks.against(ONE, &lock(2, 9, Mode::Shared, (20, 30))), None);
    assert_eq!(locks.against(ONE, &lock(1, 9, Mode::Shared, ALL)), None);
    assert_eq!(locks.against(OTHER, &lock(2, 9, Mode::Shared, ALL)), None);
}

#[test]
fn those_that_wait_get_the_lock_in_order() {
    let locks = Arc::new(Locks::default());
    assert_eq!(take(&locks, Kind::Posix, lock(1, 1, Mode::Exclusive, ALL)), Ok(()));
    let second = wait(&locks, ONE, Kind::Posix, lock(2, 2, Mode::Exclusive, (0, 9)));
    let third = wait(&locks, ONE, Kind::Posix, lock(1, 3, Mode::Exclusive, (5, 20)));
    let apart = wait(&locks, ONE, Kind::Posix, lock(1, 4, Mode::Shared, (100, 100)));
    assert!(second.try_recv().is_err() && third.try_recv().is_err() && apart.try_recv().is_err());
    locks.give_back(ONE, Kind::Posix, Owner { link: 1, number: 1 }, (50, u64::MAX));
    assert_eq!(apart.try_recv(), Ok(Ok(())));
    assert!(second.try_recv().is_err());
    locks.closed(ONE, Owner { link: 1, number: 1 }, 1);
    assert_eq!(second.try_recv(), Ok(Ok(())));
    assert!(third.try_recv().is_err());
    locks.ended(2);
    assert_eq!(third.try_recv(), Ok(Ok(())));
}

/// Shared for exclusive makes room at once, exclusive for shared waits for the others.
#[test]
fn modes_change() {
    for kind in [Kind::Posix, Kind::Flock] {
        let locks = Arc::new(Locks::default());
        assert_eq!(take(&locks, kind, lock(1, 1, Mode::Exclusive, ALL)), Ok(()));
        let reader = wait(&locks, ONE, kind, lock(2, 2, Mode::Shared, ALL));
        assert!(reader.try_recv().is_err());
        assert_eq!(take(&locks, kind, lock(1, 1, Mode::Shared, ALL)), Ok(()));
        assert_eq!(reader.try_recv(), Ok(Ok(())));
        let upgrade = wait(&locks, ONE, kind, lock(1, 1, Mode::Exclusive, ALL));
        assert!(upgrade.try_recv().is_err());
        locks.ended(2);
        assert_eq!(upgrade.try_recv(), Ok(Ok(())));
    }
}

/// As flock(2) says, of a change of mode that fails.
#[test]
fn a_refused_change_of_mode_loses_the_lock() {
    let locks = Arc::new(Locks::default());
    assert_eq!(take(&locks, Kind::Flock, lock(1, 1, Mode::Shared, ALL)), Ok(()));
    assert_eq!(take(&locks, Kind::Flock, lock(2, 2, Mode::Shared, ALL)), Ok(()));
    assert_eq!(take(&locks, Kind::Flock, lock(1, 1, Mode::Exclusive, ALL)), Err(libc::EAGAIN));
    assert_eq!(take(&locks, Kind::Flock, lock(2, 2, Mode::Exclusive, ALL)), Ok(()));
}

/// What was closed is gone for the process, and with the last descriptor for all.
#[test]
fn closing_and_the_end_of_an_open_file() {
    let locks = Arc::new(Locks::default());
    let (posix, ofd) = (lock(1, 8, Mode::Exclusive, (0, 0)), lock(1, 5, Mode::Exclusive, (1, 1)));
    assert_eq!(take(&locks, Kind::Posix, Lock { handle: 5, ..posix }), Ok(()));
    assert_eq!(take(&locks, Kind::Posix, ofd), Ok(()));
    assert_eq!(take(&locks, Kind::Flock, lock(1, 5, Mode::Exclusive, ALL)), Ok(()));
    // Another open file of the same process: only its POSIX locks are gone.
    locks.closed(ONE, Owner { link: 1, number: 8 }, 6);
    assert_eq!(take(&locks, Kind::Posix, lock(2, 1, Mode::Exclusive, (0, 0))), Ok(()));
    assert_eq!(take(&locks, Kind::Posix, lock(2, 1, Mode::Exclusive, (1, 1))), Err(libc::EAGAIN));
    assert_eq!(take(&locks, Kind::Flock, lock(2, 1, Mode::Exclusive, ALL)), Err(libc::EAGAIN));
    locks.released(ONE, 2, 5);
    assert_eq!(take(&locks, Kind::Flock, lock(2, 1, Mode::Exclusive, ALL)), Err(libc::EAGAIN));
    locks.released(ONE, 1, 5);
    assert_eq!(take(&locks, Kind::Posix, lock(2, 1, Mode::Exclusive, (1, 1))), Ok(()));
    assert_eq!(take(&locks, Kind::Flock, lock(2, 1, Mode::Exclusive, ALL)), Ok(()));
}

/// The end of an open file is told after close(2) has returned.
#[test]
fn a_closed_file_may_still_give_its_lock_back() {
    let locks = Arc::new(Locks::default());
    let theirs = lock(2, 2, Mode::Exclusive, ALL);
    assert_eq!(take(&locks, Kind::Flock, lock(1, 1, Mode::Exclusive, ALL)), Ok(()));
    locks.closed(ONE, Owner { link: 1, number: 77 }, 1);
    let soon = ask(&locks, ONE, Kind::Flock, theirs, Else::Refuse);
    assert!(soon.try_recv().is_err());
    locks.released(ONE, 1, 1);
    assert_eq!(soon.try_recv(), Ok(Ok(())));
    locks.closed(ONE, Owner { link: 2, number: 77 }, 2);
    let in_vain = ask(&locks, ONE, Kind::Flock, lock(1, 3, Mode::Exclusive, ALL), Else::Refuse);
    assert_eq!(in_vain.recv_timeout(SOON), Ok(Err(libc::EAGAIN)));
    assert_eq!(take(&locks, Kind::Flock, lock(1, 3, Mode::Exclusive, ALL)), Err(libc::EAGAIN));
}

#[test]
fn owners_that_wait_for_each_other() {
    let locks = Arc::new(Locks::default());
    let own = |number| lock(number, number, Mode::Exclusive, (number, number));
    let of = |other, number: u64| Lock { range: (other, other), ..own(number) };
    for number in 1..=3 {
        assert_eq!(take(&locks, Kind::Posix, own(number)), Ok(()));
    }
    let first = wait(&locks, ONE, Kind::Posix, of(2, 1));
    let second = wait(&locks, ONE, Kind::Posix, of(3, 2));
    assert_eq!(take(&locks, Kind::Posix, of(1, 3)), Err(libc::EAGAIN));
    assert_eq!(wait(&locks, ONE, Kind::Posix, of(1, 3)).try_recv(), Ok(Err(libc::EDEADLK)));
    locks.ended(3);
    assert_eq!(second.try_recv(), Ok(Ok(())));
    locks.ended(2);
    assert_eq!(first.try_recv(), Ok(Ok(())));
}

#[test]
fn a_deadlock_over_two_files() {
    let locks = Arc::new(Locks::default());
    let (a, b) = (lock(1, 1, Mode::Exclusive, ALL), lock(2, 2, Mode::Exclusive, ALL));
    assert_eq!(ask(&locks, ONE, Kind::Posix, a, Else::Refuse).try_recv(), Ok(Ok(())));
    assert_eq!(ask(&locks, OTHER, Kind::Posix, b, Else::Refuse).try_recv(), Ok(Ok(())));
    let waits = wait(&locks, OTHER, Kind::Posix, a);
    assert_eq!(wait(&locks, ONE, Kind::Posix, b).try_recv(), Ok(Err(libc::EDEADLK)));
    locks.ended(2);
    assert_eq!(waits.try_recv(), Ok(Ok(())));
}

#[test]
fn nothing_is_left() {
    let locks = Arc::new(Locks::default());
    assert_eq!(take(&locks, Kind::Flock, lock(1, 1, Mode::Exclusive, ALL)), Ok(()));
    let waits = wait(&locks, ONE, Kind::Flock, lock(2, 2, Mode::Exclusive, ALL));
    locks.ended(2);
    assert_eq!(waits.try_recv(), Ok(Err(libc::EIO)), "nobody is there to wait");
    locks.released(ONE, 1, 1);
    locks.released(OTHER, 1, 1);
    assert!(locks.is_empty());
    let start = Instant::now();
    while locks.state.lock().watched {
        assert!(start.elapsed() < SOON, "the thread does not end");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_file_has_a_limit() {
    let locks = Arc::new(Locks::default());
    for number in 0..MOST as u64 {
        assert_eq!(take(&locks, Kind::Posix, lock(1, number, Mode::Shared, (0, 0))), Ok(()));
    }
    assert_eq!(take(&locks, Kind::Posix, lock(2, 2, Mode::Shared, ALL)), Err(libc::ENOLCK));
    locks.ended(1);
    assert_eq!(take(&locks, Kind::Posix, lock(2, 2, Mode::Shared, ALL)), Ok(()));
}
