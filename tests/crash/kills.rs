//! Kills: at every failpoint, and at random times.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karapace_store::fail::POINTS;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::model::Random;
use crate::session::{Broken, Session, Step};
use crate::{long, need_root, seeds, side_by_side};

/// Comes by every failpoint: mounted and not, through the control file and as a command.
pub const SCENARIO: &[Step] = &[
    Step::Mount,
    Step::Fixed,
    Step::Commit,
    Step::Files(15),
    Step::CommitBeside,
    Step::Files(15),
    Step::Restore,
    Step::Files(10),
    Step::CommitPath,
    Step::CommitCommand,
    Step::ImportOther,
    Step::RestoreCommand,
    Step::DestroyOther,
    Step::RemoveSnapshot,
    Step::Verify,
    Step::Gc,
    Step::Files(10),
    Step::Umount,
    Step::Rebuild,
    Step::Mount,
    Step::Files(10),
    Step::Umount,
    Step::CommitCommand,
    Step::RestoreCommand,
    Step::Mount,
    Step::Files(5),
];

/// Goes through the scenario as far as it gets.
pub fn scenario(session: &mut Session) -> Option<Box<Broken>> {
    SCENARIO.iter().find_map(|step| session.step(*step).err())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Server,
    Command,
}

/// One kill at the `n`-th time that the victim comes by a point; false when it never does.
fn kill_at(point: &str, victim: Victim, n: u64, seed: u64) -> bool {
    let mut session = Session::new(seed);
    let rule = format!("{point}=kill@{n}");
    // The second commit is the one that files change beside.
    let server = "commit.build=sleep:100@2".to_owned();
    (session.world.arm_server, session.world.arm_commands) = match victim {
        Victim::Server => (format!("{server},{rule}"), String::new()),
        Victim::Command => (server, rule),
    };
    let what = format!("kill of the {victim:?} at {point} (time {n}, seed {seed})");
    let broken = scenario(&mut session);
    let fired = session.world.fired().lines().any(|line| line == point);
    match (broken, fired) {
        (None, false) => return false,
        (Some(broken), false) => session.fail(&what, &format!("nothing was killed, and yet {broken:?}")),
        (None, true) => session.fail(&what, "it was killed and nobody noticed"),
        (Some(broken), true) => {
            if let Err(error) = session.recover(&broken).and_then(|()| session.check_all(1)) {
                session.fail(&what, &format!("during {}: {error}", broken.what));
            }
        }
    }
    true
}

/// A data file that nothing refers to is met when an upper is opened after a kill.
fn kill_in_sweep(seed: u64) {
    let mut session = Session::new(seed);
    session.world.arm_server = "commit.release=kill".to_owned();
    let first = scenario(&mut session).expect("the first kill");
    session.world.kill();
    session.world.arm_server = "data.sweep=kill".to_owned();
    assert!(!session.world.mount().expect("a mount"), "the sweep met nothing (seed {seed})");
    if let Err(error) = session.recover(&first).and_then(|()| session.check_all(1)) {
        session.fail(&format!("kill in the sweep of data files (seed {seed})"), &error);
    }
}

#[test]
fn a_kill_at_every_failpoint() {
    need_root();
    let seed = seeds(1)[0];
    let times: &[u64] = if long() { &[1, 2, 3, 5, 8] } else { &[1] };
    let only = std::env::var("KARAPACE_CRASH_POINT").ok();
    let points: Vec<&&str> = POINTS.iter().filter(|p| only.as_deref().is_none_or(|o| o == **p)).collect();
    let kills = AtomicUsize::new(0);
    side_by_side(&points, |point| {
        let met = if **point == "data.sweep" {
            kill_in_sweep(seed);
            2
        } else {
            let tries = times.iter().flat_map(|n| [(n, Victim::Server), (n, Victim::Command)]);
            tries.filter(|(n, victim)| kill_at(point, *victim, **n, seed)).count()
        };
        assert!(met > 0, "no step of the scenario comes by {point}");
        kills.fetch_add(met, Ordering::Relaxed);
    });
    println!("{} kills at {} failpoints, seed {seed}", kills.into_inner(), points.len());
}

/// What a kill at a random time meets.
fn random_step(random: &mut Random) -> Step {
    match random.below(24) {
        0..=9 => Step::Files(20),
        10..=12 => Step::Commit,
        13 => Step::CommitCommand,
        14 | 15 => Step::Restore,
        16 => Step::RestoreCommand,
        17 => Step::Gc,
        18 => Step::RemoveSnapshot,
        19 => Step::Verify,
        21 => Step::CommitPath,
        20 => Step::SwapOther,
        _ => Step::Files(60),
    }
}

/// Kills the server at a random time, again and again, in one world.
fn random_kills(seed: u64, kills: u32) {
    let mut session = Session::new(seed);
    let mut random = Random::new(seed ^ 0xdead);
    let what = |kills| format!("kill {kills} at a random time (seed {seed})");
    if let Err(broken) = session.step(Step::Mount) {
        session.fail(&what(0), &format!("{broken:?}"));
    }
    for number in 1..=kills {
        let delay = Duration::from_micros(random.below(250_000) as u64);
        let pid = Pid::from_raw(session.world.server_pid().expect("a server"));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            kill(pid, Signal::SIGKILL).expect("kill");
        });
        let broken = loop {
            // Not so many snapshots that reading them takes the time.
            let step = match random_step(&mut random) {
                Step::Commit | Step::CommitCommand | Step::CommitPath if session.snapshots.len() > 8 => {
                    Step::Files(20)
                }
                step => step,
            };
            if let Err(broken) = session.step(step) {
                break broken;
            }
        };
        killer.join().expect("the killer");
        let checked = session.recover(&broken).and_then(|()| match number % 4 {
            0 => session.world.check_store(),
            _ => Ok(()),
        });
        if let Err(error) = checked {
            session.fail(&what(number), &format!("during {} ({}): {error}", broken.what, broken.error));
        }
    }
    if let Err(error) = session.check_all(2) {
        session.fail(&what(kills), &error);
    }
}

#[test]
fn kills_at_random_times() {
    need_root();
    let (worlds, kills) = if long() { (25, 12) } else { (4, 6) };
    let seeds = seeds(worlds);
    side_by_side(&seeds, |seed| random_kills(*seed, kills));
    println!("{worlds} worlds of {kills} kills, seeds from {}", seeds[0]);
}
