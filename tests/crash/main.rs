//! Nothing accepted is lost: the real program, on a real mount, killed and made to fail; afterwards what it
//! holds is compared with the log of what had returned. docs/DURABILITY.md says what is promised.
//!
//! Runs as root, with the cargo feature `failpoints`. `KARAPACE_CRASH=long` does more of everything,
//! `KARAPACE_CRASH_SEED` repeats one seed: every failure names its own.

mod device;
mod errors;
mod kills;
mod model;
mod power;
mod session;
mod world;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Whether to take long.
fn long() -> bool {
    std::env::var_os("KARAPACE_CRASH").is_some_and(|mode| mode == "long")
}

/// The seeds to go through: one that was asked for, or so many from a new one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KARAPACE_CRASH_SEED") {
        Ok(seed) => vec![seed.parse().expect("KARAPACE_CRASH_SEED is a number")],
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock");
            let first = now.as_secs() % 1_000_000 * 1000;
            (first..first + count).collect()
        }
    }
}

/// Calls `work` for every item, on a few threads; a panic of one is that of the test.
fn side_by_side<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                own_mounts();
                while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Gives this thread, and what it starts, mounts that nobody else sees: a mount lives as long as the last
/// namespace that has a copy of it, and other tests make such.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
}

/// These tests mount and read what root alone may.
fn need_root() {
    assert!(nix::unistd::geteuid().is_root(), "run the crash tests as root: they mount");
    assert!(std::path::Path::new("/dev/fuse").exists(), "/dev/fuse is missing: nothing can be mounted");
}
