//! A full disk (or a broken one) at every failpoint: the error reaches who asked, what is there stays
//! consistent, and the work goes on without a new mount.

use std::sync::Mutex;

use karapace_store::fail::POINTS;

use crate::kills::SCENARIO;
use crate::session::{Session, Step};
use crate::{long, need_root, seeds, side_by_side};

/// A line of the table: the point, what was under way, the error as it was seen, and what it left.
struct Row {
    point: &'static str,
    victim: &'static str,
    step: String,
    error: String,
}

/// Makes a point fail once, in the server or in the commands, and goes through the whole scenario all the
/// same.
fn fail_at(point: &'static str, error: &str, victim: &'static str, seed: u64) -> Option<Row> {
    let mut session = Session::new(seed);
    let rule = format!("{point}={error}");
    let server = "commit.build=sleep:100@2".to_owned();
    (session.world.arm_server, session.world.arm_commands) = match victim {
        "server" => (format!("{server},{rule}"), String::new()),
        _ => (server, rule.clone()),
    };
    let what = format!("{rule} in the {victim} (seed {seed})");
    let mut row = None;
    let mut steps = SCENARIO.iter();
    let mut again = None;
    while let Some(step) = again.take().or_else(|| steps.next()) {
        let Err(broken) = session.step(*step) else { continue };
        if row.is_some() {
            session.fail(&what, &format!("a second error: {broken:?} after {:?}", row.map(|r: Row| r.error)));
        }
        let place = session.world.store().to_string_lossy().into_owned();
        let seen = broken.error.replace(&place, "STORE");
        row = Some(Row { point, victim, step: broken.what.clone(), error: seen });
        (session.world.arm_server, session.world.arm_commands) = (String::new(), String::new());
        // Under the same mount, if there is one: what was under way has happened or has not.
        let mounted = session.is_mounted();
        if !mounted && let Err(broken) = session.step(Step::Mount) {
            session.fail(&what, &format!("no mount after the error: {broken:?}"));
        }
        if let Err(error) = session.settle(&broken) {
            session.fail(&what, &format!("after {} had failed ({}): {error}", broken.what, broken.error));
        }
        if !mounted
            && !matches!(step, Step::Mount)
            && let Err(broken) = session.step(Step::Umount)
        {
            session.fail(&what, &format!("no umount after the error: {broken:?}"));
        }
        // What failed goes well now: but for operations on files, of which the rest of the step is left out.
        again = match step {
            Step::Fixed | Step::Files(_) | Step::Umount | Step::Mount | Step::CommitBeside => None,
            Step::ImportOther if session.world.run(&["inspect", crate::world::OTHER]).is_ok() => None,
            Step::DestroyOther if session.world.run(&["inspect", crate::world::OTHER]).is_err() => None,
            step => Some(step),
        };
        if let Step::Umount = step
            && session.is_mounted()
            && let Err(broken) = session.step(Step::Umount)
        {
            session.fail(&what, &format!("no umount after the error: {broken:?}"));
        }
    }
    let fired = session.world.fired().lines().any(|line| line == point);
    if !fired {
        return None;
    }
    // On disk there is what the mount showed.
    if let Err(error) = session.recover_idle().and_then(|()| session.check_all(1)) {
        session.fail(&what, &format!("after a kill at the end: {error}"));
    }
    let nothing =
        || Row { point, victim, step: "-".to_owned(), error: "none: logged, the work went on".to_owned() };
    Some(row.unwrap_or_else(nothing))
}

#[test]
fn an_error_at_every_failpoint() {
    need_root();
    let seed = seeds(1)[0];
    let errors: &[&str] =
        if long() { &["enospc", "eio", "edquot", "enospc@2", "eio@3"] } else { &["enospc"] };
    let only = std::env::var("KARAPACE_CRASH_POINT").ok();
    let points: Vec<&'static str> =
        POINTS.iter().copied().filter(|p| only.as_deref().is_none_or(|o| o == *p)).collect();
    let table = Mutex::new(Vec::new());
    side_by_side(&points, |point| {
        for error in errors {
            for victim in ["server", "commands"] {
                let row = fail_at(point, error, victim, seed);
                table.lock().expect("the table").extend(row);
            }
        }
    });
    let mut table = table.into_inner().expect("the table");
    for point in points.iter().filter(|point| **point != "data.sweep") {
        assert!(table.iter().any(|row| row.point == *point), "no step of the scenario comes by {point}");
    }
    table.sort_by_key(|row| (POINTS.iter().position(|p| *p == row.point), row.victim));
    println!(
        "{:<18} {:<9} {:<28} error seen (afterwards consistent, and the work went on)",
        "step", "in", "under way"
    );
    for row in &table {
        let (under_way, error): (String, String) = (
            row.step.chars().take(27).collect(),
            row.error.lines().next().unwrap_or_default().chars().take(200).collect(),
        );
        println!("{:<18} {:<9} {:<28} {error}", row.point, row.victim, under_way);
    }
    println!("seed {seed}");
}
