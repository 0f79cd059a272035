//! Temporary copies of environments and images: they are gone after their session, unless they are kept.

use karapace_store::import::Mounts;
use karapace_store::lock::StoreLock;
use karapace_store::metadata::{EnvState, Metadata};
use karapace_store::progress::Progress;
use karapace_store::tree::Trees;

use super::clone::copy;
use super::create::Built;
use super::scratch::Scratch;
use crate::description::locked::LockFile;
use crate::description::manifest::Manifest;
use crate::engine::instance::{damage, reference};
use crate::engine::{Engine, Error, Report, Result};
use crate::image::ImageError;

/// A temporary environment. Dropping it removes it.
pub(in crate::engine) struct ThrowAway {
    /// The environment.
    pub scratch: Scratch,
    /// The identity of what it is a copy of; for an image, that of the environment that an import would make.
    env_id: String,
}

impl Engine {
    /// Makes a temporary copy of `env`: of a snapshot, or of what it shows now, with its uncommitted changes.
    /// The time does not depend on the size, but on how much is uncommitted and has not been stored yet.
    pub(in crate::engine) fn throw_away(&self, env: &Metadata, snapshot: Option<&str>) -> Result<ThrowAway> {
        self.check_not_temporary(env)?;
        let _shared = StoreLock::shared(self.store())?;
        // Read under the lock: from here on nothing of it can be collected.
        let origin = Metadata::load(self.store(), &env.instance)?;
        if origin.state == EnvState::Defined {
            return Err(Error::Invalid(format!("{} is not built yet: there is nothing to run", origin.name)));
        }
        let (layer, root) = match snapshot {
            None => self.shown(&origin).map_err(|error| without_uncommitted(&origin.name, error))?,
            Some(reference) => {
                let layer = reference::resolve(&origin, reference)?;
                (layer, self.tree_of(&layer.record)?)
            }
        };
        // Do not copy a tree that cannot be read.
        let read = Trees::new(self.store().clone()).root(&root).map(|_| ());
        read.map_err(|error| damage::named(self.store(), &origin.name, &[root], error.into()))?;
        let scratch = Scratch::begin(self, copy(&origin, &layer, KIND)?, root)?;
        self.stand_on(&scratch.env, &root)?;
        Ok(ThrowAway { scratch, env_id: origin.env_id })
    }

    /// Makes a temporary environment of an image. One that was downloaded before is used as it is.
    pub(in crate::engine) fn throw_away_image(&self, image: &str, report: &dyn Report) -> Result<ThrowAway> {
        let report = &Unheeding(report);
        let fetched = self.import_named(image, true, Mounts::LeaveOut, report);
        let (base, image, _shared) = match fetched {
            Err(Error::Image(ImageError::Offline { .. })) => {
                self.import_named(image, false, Mounts::LeaveOut, report)?
            }
            other => other?,
        };
        let manifest = Manifest::for_image(&image);
        let lock = LockFile::resolve(&manifest, &base.digest, Vec::new());
        let origin =
            self.new_metadata(KIND, &manifest, &Built { lock: &lock, base: &base, dependency: None })?;
        let env_id = origin.env_id.clone();
        Ok(ThrowAway { scratch: Scratch::begin(self, origin, base.root)?, env_id })
    }
}

/// How the names of temporary environments begin.
const KIND: &str = "run";

impl ThrowAway {
    /// Makes it the environment `name`, in which everything that was changed is uncommitted; under its own
    /// name if that is taken by now. No command may run in it any more.
    pub fn keep(self, name: &str, report: &dyn Report) -> Result<Metadata> {
        let engine = self.scratch.engine.clone();
        let _shared = StoreLock::shared(engine.store())?;
        self.scratch.keep(name, &self.env_id, report)
    }
}

/// Does not heed interruptions: the session after an import must get the signals, and nothing can give up
/// heeding them. An interrupt during the import ends the program.
struct Unheeding<'a>(&'a dyn Report);

impl Progress for Unheeding<'_> {
    fn add(&self, bytes: u64, entries: u64) {
        self.0.add(bytes, entries);
    }
}

impl Report for Unheeding<'_> {
    fn begin(&self, what: &str, bytes: Option<u64>) {
        self.0.begin(what, bytes);
    }

    fn end(&self) {
        self.0.end();
    }

    fn note(&self, text: &str) {
        self.0.note(text);
    }
}

/// Says what to do if what is uncommitted cannot be stored.
fn without_uncommitted(name: &str, error: Error) -> Error {
    if error.errno() != libc::EROFS {
        return error;
    }
    Error::Invalid(format!(
        "{name} has uncommitted changes, and cannot be written to while it is frozen, archived or mounted read-only, so no copy can \
         have them: {name}@head is a copy without them"
    ))
}
