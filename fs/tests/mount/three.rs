//! One view with three kernel connections: one for sessions comes and goes, and caches while it is there.

use std::thread::sleep;
use std::time::Duration;

use crate::mount::counters::{Race, next, operations};
use crate::mount::support::{Mount, Second};

/// Roles change under callers, and the view is restored under readers.
#[test]
fn sessions_come_and_go_under_callers_and_restores() {
    let mount = Mount::with(|options| options.shares = true);
    let second = Second::of(&mount);
    let race = Race::new(vec![mount.path(""), second.path("")], operations(30_000));
    race.run_with(|| {
        let mut random = 7;
        let pause = |random: u64| sleep(Duration::from_millis((random >> 40) % 40));
        let mut saved = None;
        for round in 0.. {
            if !race.goes_on() {
                break;
            }
            let third = Second::with(&mount, true);
            race.joins(third.path(""));
            random = next(random);
            pause(random);
            if round % 3 == 0 {
                saved = Some(race.at_rest(|| mount.commit()));
            }
            race.leaves(&third.path(""));
            random = next(random);
            drop(third);
            pause(random);
            if round % 3 == 2
                && let Some((head, counts)) = saved.take()
            {
                race.set_back(&counts, || {
                    mount.commit();
                    mount.restore(head);
                });
            }
        }
    });
}
