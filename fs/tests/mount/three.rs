//! One view with three kernel connections: one for sessions comes and goes, and caches while it is there.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use karapace_fs::session::{End, Handover, MountOptions, mount_device, unmount};

use crate::mount::counters::{Race, next, operations};
use crate::mount::support::{Mount, Second};

/// Roles change under callers, and the view is restored under readers.
#[test]
fn sessions_come_and_go_under_callers_and_restores() {
    let mount = Mount::with(|options| options.shares = true);
    let second = Second::of(&mount);
    let race = Race::new(vec![mount.path(""), second.path("")], operations(20_000));
    race.run_with(|| {
        let mut random = 7;
        let pause = |random: u64| sleep(Duration::from_millis((random >> 40) % 40));
        let mut saved = None;
        for round in 0.. {
            if !race.goes_on() {
                break;
            }
            let third = Second::for_sessions(&mount);
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

/// A mount that was made elsewhere and handed over shows and makes changes like one that is made here, and
/// ends as it was asked to.
#[test]
fn a_mount_that_is_handed_over_is_served() {
    let mount = Mount::with(|options| options.shares = true);
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = MountOptions { shares: true, for_sessions: true, ..MountOptions::default() };
    let device = mount_device(dir.path(), "karapace+handed", &options).expect("mount");
    let (place, process) = (dir.path().to_owned(), std::process::id());
    let handover = Handover {
        device,
        dir: dir.path().to_owned(),
        process,
        unmount: Box::new(move |end| unmount(&place, end == End::Detach).map(drop)),
    };
    let session = mount.served.serving.take_over(handover, &options).expect("take over");
    let unmounter = session.unmount_handle();
    let serving = std::thread::spawn(move || session.wait());
    let (ours, theirs) = (mount.path("f"), dir.path().join("f"));
    assert!(!theirs.exists(), "which its kernel remembers");
    fs::write(&ours, "ours").expect("write");
    assert_eq!(fs::read_to_string(&theirs).expect("read"), "ours");
    fs::write(&theirs, "theirs").expect("write");
    assert_eq!(fs::read_to_string(&ours).expect("read"), "theirs");
    unmounter.unmount().expect("unmount");
    serving.join().expect("serving does not panic").expect("serving ends well");
    assert_eq!(fs::read_dir(dir.path()).expect("the directory below").count(), 0);
    fs::write(&ours, "alone").expect("write");
    assert_eq!(fs::read_to_string(&ours).expect("read"), "alone");
}
