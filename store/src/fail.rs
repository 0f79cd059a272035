//! Failpoints: named places where a test kills the program or makes a step fail.
//!
//! They exist only with the cargo feature `failpoints`; without it [`point`] does nothing. The crash tests
//! (`tests/crash`) iterate over `POINTS`, so a point that is added here is tested, and one that no test
//! reaches is detected.
//!
//! `KARAPACE_FAIL=NAME=ACTION[@N][,…]` arms points of the whole process, `arm` those of one thread. The
//! action happens once, the N-th time that the point is reached (by default the first): `kill` (SIGKILL to
//! the process itself), `eio`, `enospc` and `edquot` (the step fails with that error), `sleep:MILLISECONDS`.
//! `KARAPACE_FAIL_LOG` names a file to which the name is appended when the action happens, except for
//! `sleep`.

/// All points. A name is `what.step`; the point is just before the step.
#[cfg(feature = "failpoints")]
pub const POINTS: &[&str] = &[
    // Small files that are replaced: records, metadata, checkpoints.
    "file.write",
    "file.sync",
    "file.rename",
    "file.sync-dir",
    // Pins and intents.
    "held.write",
    "held.rename",
    "held.remove",
    "wal.begun",
    // Batches of objects.
    "batch.stage",
    "batch.put",
    "batch.adopt",
    "batch.sync",
    "batch.publish",
    "batch.sync-names",
    "batch.done",
    // What the store records.
    "layer.write",
    "metadata.save",
    "metadata.delete",
    "metadata.deleted",
    "gc.mark",
    "gc.sweep-objects",
    "gc.sweep-staging",
    "gc.remove",
    // The upper.
    "boot.read",
    "journal.create",
    "journal.room",
    "journal.append",
    "journal.appended",
    "journal.sync",
    "checkpoint.write",
    "checkpoint.journal",
    "data.create",
    "data.write",
    "data.truncate",
    "data.sync",
    "data.remove",
    "data.sweep",
    "copyup.fill",
    "copyup.record",
    "unseal.copy",
    // What commands do to a view.
    "commit.seal",
    "commit.build",
    "commit.publish",
    "commit.finish",
    "commit.release",
    "restore.plan",
    "restore.swap",
    "restore.release",
    "restore.record",
    // Environments.
    "create.dir",
    "create.record",
    "replace.begun",
    "replace.record",
    "replace.old",
    "replace.dir",
    "destroy.dir",
];

/// Marks that a failpoint is reached.
///
/// # Errors
/// The armed error.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Whether a test has planted the fault `name` in this process, to see that it is found
/// (`KARAPACE_PLANT=NAME[,…]`).
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn planted(_name: &'static str) -> bool {
    false
}

/// Marks a failpoint after which nothing can fail any more: an armed error is only logged.
pub fn passed(name: &'static str) {
    if let Err(error) = point(name) {
        tracing::debug!("{name}: {error}, where nothing can fail");
    }
}

#[cfg(feature = "failpoints")]
pub use armed::{Action, Armed, arm, planted, point};

#[cfg(feature = "failpoints")]
mod armed {
    use std::cell::RefCell;
    use std::io::{self, Write as _};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::POINTS;

    /// Whether a test has planted the fault `name` in this process, to see that it is found
    /// (`KARAPACE_PLANT=NAME[,…]`).
    pub fn planted(name: &'static str) -> bool {
        static PLANTED: OnceLock<String> = OnceLock::new();
        let planted = PLANTED.get_or_init(|| std::env::var("KARAPACE_PLANT").unwrap_or_default());
        planted.split(',').any(|one| one == name)
    }

    /// The action at a point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Action {
        /// The process is killed, as by kill -9.
        Kill,
        /// The step fails with this errno.
        Fail(i32),
        /// The step is delayed by this time.
        Sleep(Duration),
    }

    #[derive(Debug)]
    struct Rule {
        name: String,
        action: Action,
        /// How many more times the point must be reached until the action happens; 0: it has happened.
        left: AtomicU64,
    }

    static PROCESS: OnceLock<Vec<Rule>> = OnceLock::new();
    thread_local! {
        static THREAD: RefCell<Vec<Rule>> = const { RefCell::new(Vec::new()) };
    }

    /// A point armed in this thread; dropping it disarms all points of the thread.
    #[derive(Debug)]
    pub struct Armed(());

    impl Drop for Armed {
        fn drop(&mut self) {
            THREAD.with_borrow_mut(Vec::clear);
        }
    }

    /// Arms a point in this thread: `action` happens the `n`-th time it is reached from now on.
    pub fn arm(name: &'static str, action: Action, n: u64) -> Armed {
        assert!(POINTS.contains(&name), "there is no failpoint {name}");
        let rule = Rule { name: name.to_owned(), action, left: AtomicU64::new(n) };
        THREAD.with_borrow_mut(|rules| rules.push(rule));
        Armed(())
    }

    /// Marks that a failpoint is reached.
    ///
    /// # Errors
    /// The armed error.
    pub fn point(name: &'static str) -> io::Result<()> {
        debug_assert!(POINTS.contains(&name), "the failpoint {name} is not listed");
        let process = PROCESS.get_or_init(|| {
            let text = std::env::var("KARAPACE_FAIL").unwrap_or_default();
            text.split(',').filter(|rule| !rule.is_empty()).map(parse).collect()
        });
        let due = process.iter().find_map(|rule| rule.due(name));
        match due.or_else(|| THREAD.with_borrow(|rules| rules.iter().find_map(|rule| rule.due(name)))) {
            Some(action) => happen(name, action),
            None => Ok(()),
        }
    }

    impl Rule {
        fn due(&self, name: &str) -> Option<Action> {
            let count = |left: u64| left.checked_sub(1);
            let came_by = self.name == name
                && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) == Ok(1);
            came_by.then_some(self.action)
        }
    }

    fn happen(name: &str, action: Action) -> io::Result<()> {
        let log = std::env::var_os("KARAPACE_FAIL_LOG").filter(|_| !matches!(action, Action::Sleep(_)));
        if let Some(log) = log {
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
            writeln!(log, "{name}")?;
        }
        match action {
            Action::Kill => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
                Ok(())
            }
            Action::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            Action::Sleep(time) => {
                std::thread::sleep(time);
                Ok(())
            }
        }
    }

    /// Parses a rule of `KARAPACE_FAIL`. A bad rule ends the program: a test that arms nothing proves
    /// nothing.
    fn parse(text: &str) -> Rule {
        let bad = || -> ! { panic!("KARAPACE_FAIL: {text} is not NAME=ACTION[@N] of a known failpoint") };
        let Some((name, rest)) = text.split_once('=') else { bad() };
        let (action, n) = rest.split_once('@').unwrap_or((rest, "1"));
        let action = match action.split_once(':') {
            Some(("sleep", ms)) => ms.parse().ok().map(|ms| Action::Sleep(Duration::from_millis(ms))),
            None if action == "kill" => Some(Action::Kill),
            None if action == "eio" => Some(Action::Fail(nix::libc::EIO)),
            None if action == "edquot" => Some(Action::Fail(nix::libc::EDQUOT)),
            None if action == "enospc" => Some(Action::Fail(nix::libc::ENOSPC)),
            _ => None,
        };
        match (action, n.parse()) {
            (Some(action), Ok(n)) if POINTS.contains(&name) => {
                Rule { name: name.to_owned(), action, left: AtomicU64::new(n) }
            }
            _ => bad(),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_fails_once_at_its_turn_and_in_its_thread() {
            let armed = arm("layer.write", Action::Fail(nix::libc::ENOSPC), 2);
            std::thread::spawn(|| point("layer.write").unwrap()).join().unwrap();
            point("layer.write").unwrap();
            point("gc.mark").unwrap();
            assert_eq!(point("layer.write").unwrap_err().raw_os_error(), Some(nix::libc::ENOSPC));
            point("layer.write").unwrap();
            drop(armed);
            let rule = parse("gc.mark=sleep:20@3");
            assert_eq!((rule.action, rule.left.into_inner()), (Action::Sleep(Duration::from_millis(20)), 3));
        }
    }
}
