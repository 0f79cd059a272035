//! Restoring a snapshot, whole or for chosen paths.

use karapace_fs::attr::{HeadRef, Restored};
use karapace_fs::control::Times;
use karapace_store::fail;
use karapace_store::id::LayerHash;
use karapace_store::root::Root;

use super::commit::Keep;
use super::damage;
use super::layering::{Layering, normalised};
use super::open::{Instance, RestoreOutcome, Wait};
use super::reference::{self, LayerRef};
use crate::engine::{Error, Result};

/// How many attempts a restore makes before it gives up. Each attempt stores what was written during the
/// last.
const ATTEMPTS: u32 = 20;

/// From this attempt on, writers wait.
const HELD_FROM: u32 = 3;

/// The times that a restore gives by default. A whole restore brings back the snapshot as it was; chosen
/// paths get the current time, because they are newer than anything made from their previous content.
fn default_times(paths: &[Vec<u8>]) -> Times {
    if paths.is_empty() { Times::Kept } else { Times::Present }
}

/// What a restore changed in the view.
struct Swapped {
    saved: Option<LayerHash>,
    restored: Restored,
    changed: Option<u64>,
    touched: u64,
}

impl Instance {
    /// Makes the view equal to a snapshot, except for ignored paths. Uncommitted changes are committed first.
    ///
    /// With `paths`, only these are restored from the snapshot (or removed, if the snapshot does not have
    /// them), as uncommitted changes. Uncommitted changes at these paths are committed first; nothing else is
    /// touched.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::NoSnapshot`], `TryAgain` if the instance is closed, and EBUSY if files
    /// changed during each of `ATTEMPTS` attempts. [`Error::Invalid`] if the view is restored but the
    /// kernel could not be told.
    pub fn restore(
        &self,
        reference: &str,
        paths: &[Vec<u8>],
        times: Option<Times>,
        wait: Wait,
    ) -> Result<RestoreOutcome> {
        let shared = self.lock_store(wait)?;
        let turn = self.take_turn()?;
        self.check_writable()?;
        // Resolved before the commit below, because `head`, `latest` and `~k` mean what they meant when the
        // command was given.
        let LayerRef { hash, record } = reference::resolve(&self.metadata(), reference)?;
        let target = HeadRef { layer: hash, record, root: self.root_of(&record)? };
        let paths = normalised(paths, &self.ignore)?;
        let times = times.unwrap_or_else(|| default_times(&paths));
        let swapped = if paths.is_empty() {
            self.swap_whole(target, times)
        } else {
            self.swap_paths(target, &paths, times)
        };
        let swapped = swapped.map_err(|error| {
            let env = self.metadata().name;
            damage::named(self.store(), &env, &[target.root, self.view.head().root], error)
        })?;
        fail::passed("restore.record");
        // The view has changed: whatever fails from here on, the kernel must be told.
        let head = self.view.head();
        let recorded = self
            .update_metadata(|metadata| (metadata.head, metadata.head_record) = (head.layer, head.record));
        self.pin_head();
        if let Some(invalidator) = self.invalidator.get() {
            invalidator.send(&swapped.restored.stale).map_err(|e| {
                Error::Invalid(format!(
                    "{hash} is restored, but the kernel still has old entries ({e}): unmount and mount again"
                ))
            })?;
        }
        // If the record could not be written, the next open of the environment corrects it.
        recorded?;
        let Swapped { saved, changed, touched, restored } = swapped;
        // Other commands need not wait for the watchers.
        drop((turn, shared));
        if let Some(teller) = self.teller.get() {
            teller.tell(&restored.told);
        }
        Ok(RestoreOutcome { hash, saved, changed, touched })
    }

    /// Commits what is uncommitted and restores `target` on exactly that state. Starts over if something is
    /// written in between.
    fn swap_whole(&self, target: HeadRef, times: Times) -> Result<Swapped> {
        let message = format!("before restore of {}", &target.layer.to_hex()[..12]);
        let mut saved = None;
        let (restored, touched) = self.undisturbed(|| {
            let is_committed = self.between()?.files == 0;
            let Some(generation) = self.view.clean_generation()?.filter(|_| is_committed) else {
                let outcome = self.commit_changes(None, Keep::Nothing, None, Some(&message))?;
                saved = outcome.created.then_some(outcome.hash).or(saved);
                return Ok(None);
            };
            let made = self.with_layering(|layering, now| {
                layering.restored(&target.root, now, times, self.view.next_ino())
            })?;
            let done = self.exchange(HeadRef { root: made.id, ..target }, generation)?;
            Ok(done.map(|done| (done, made.touched)))
        })?;
        Ok(Swapped { saved, restored, changed: None, touched })
    }

    /// Commits what is uncommitted at the chosen paths and restores these paths in a tree that holds the
    /// whole view.
    fn swap_paths(&self, target: HeadRef, paths: &[Vec<u8>], times: Times) -> Result<Swapped> {
        let snapshot = self.trees.root(&target.root)?;
        let message = format!("before restore of paths from {}", &target.layer.to_hex()[..12]);
        let mut saved = None;
        let (restored, changed, touched) = self.undisturbed(|| {
            // Do this first: the paths are then looked up in one tree that holds everything.
            if self.view.clean_generation()?.is_none() {
                self.settle()?;
            }
            let here: Vec<Vec<u8>> =
                self.with_layering(|layering, now| layering.present(now, &snapshot, paths))?;
            if !here.is_empty() {
                let outcome = self.commit_changes(Some(&here), Keep::Nothing, None, Some(&message))?;
                saved = outcome.created.then_some(outcome.hash).or(saved);
            }
            let Some(generation) = self.view.clean_generation()? else { return Ok(None) };
            let head = self.view.head();
            let (made, changed) = self.with_layering(|layering, now| {
                layering.restored_paths(&snapshot, now, &head.root, (paths, times), self.view.next_ino())
            })?;
            let done = self.exchange(HeadRef { root: made.id, ..head }, generation)?;
            Ok(done.map(|done| (done, changed, made.touched)))
        })?;
        Ok(Swapped { saved, restored, changed: Some(changed), touched })
    }

    /// Calls `attempt` until it succeeds, which requires that nothing is written during it. The first
    /// attempts do not block writers; from `HELD_FROM` on, writers wait.
    fn undisturbed<T>(&self, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let mut hold = None;
        for count in 0..ATTEMPTS {
            if count == HELD_FROM {
                hold = Some(self.view.hold());
            }
            if let Some(done) = attempt()? {
                return Ok(done);
            }
        }
        drop(hold);
        let env = self.metadata().name;
        Err(Error::Served {
            errno: libc::EBUSY,
            reason: format!(
                "nothing was restored, because files in {env} changed during each of {ATTEMPTS} attempts: stop what writes \
                 there and try again"
            ),
        })
    }

    /// Switches the view to `target`. `None` if something has changed since `generation`.
    fn exchange(&self, target: HeadRef, generation: u64) -> Result<Option<Restored>> {
        match self.view.restore(target, generation) {
            Ok(done) => Ok(Some(done)),
            Err(karapace_fs::Error::TryAgain) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Calls `f` with this environment's layering and the tree that the upper lies over.
    fn with_layering<T>(&self, f: impl FnOnce(&Layering<'_>, &Root) -> Result<T>) -> Result<T> {
        let below = self.view.head();
        let head_id = self.root_of(&below.record)?;
        let (head, now) = (self.trees.root(&head_id)?, self.trees.root(&below.root)?);
        f(&Layering { trees: &self.trees, ignore: &self.ignore, head: &head, head_id }, &now)
    }
}
