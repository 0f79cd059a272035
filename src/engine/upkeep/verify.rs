//! Verifying the whole store, and repairing what can be repaired.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use karapace_fs::check::{self, FaultKind};
use karapace_store::error::StoreError;
use karapace_store::id::{InstanceId, ObjectId};
use karapace_store::import::import_path;
use karapace_store::integrity::repair::{self, Action, Deed};
use karapace_store::integrity::{self, Finding, Kind, UpperState, Verified};
use karapace_store::lock::{EnvLock, StoreLock};
use karapace_store::metadata::Metadata;
use karapace_store::quarantine::{self, keep_copy};
use serde::Serialize;

use crate::description::manifest::Manifest;
use crate::engine::At as _;
use crate::engine::{Engine, Error, Report, Result, Silent};
use crate::image::Image;

/// The result of a repair.
#[derive(Debug, Serialize)]
pub struct Repaired {
    /// The actions taken, in order.
    pub actions: Vec<Action>,
    /// The result of the verification after it.
    #[serde(skip)]
    pub after: Verified,
}

/// Reads everything in the store and checks every reference, including those of uncommitted changes. A
/// finding may be damage ([`Finding::is_damage`]) or only worth knowing. Changes nothing.
pub fn verify(engine: &Engine, report: &dyn Report) -> Result<Verified> {
    report.begin("verifying", None);
    let uppers = |instance: &InstanceId| upper_state(engine, instance);
    let verified = integrity::verify(engine.store(), &uppers, report);
    report.end();
    Ok(verified?)
}

/// Verifies, repairs what can be repaired, moves what is damaged to the quarantine, and verifies again.
/// Deletes nothing.
///
/// # Errors
/// Errors that prevent the verification or the moving of files. What was done before stays done.
pub fn verify_and_repair(engine: &Engine, report: &dyn Report) -> Result<Repaired> {
    let before = verify(engine, report)?;
    let mut actions = repair::repair(engine.store(), &before.findings)?;
    for finding in before.findings.iter().filter(|finding| finding.kind == Kind::CorruptUpper) {
        if let Some(instance) = finding.object.as_ref().and_then(|id| id.parse().ok()) {
            actions.extend(mend_upper(engine, &instance, report)?);
        }
    }
    fetch(engine, &before.findings, &mut actions, report)?;
    Ok(Repaired { actions, after: verify(engine, report)? })
}

/// The state of an environment's upper, in the store's form. The upper of a served environment changes
/// meanwhile: see [`karapace_fs::check`].
fn upper_state(engine: &Engine, instance: &InstanceId) -> std::result::Result<UpperState, StoreError> {
    let upper = engine.store().upper_dir(instance);
    let served = || EnvLock::holder(engine.store(), instance).map(|holder| holder.is_some());
    let served_before = served()?;
    let check = check::check(engine.store().files(), &upper, served_before).map_err(|error| match error {
        karapace_fs::Error::Store(error) => error,
        other => StoreError::corrupt("upper", upper.display(), other.to_string()),
    })?;
    // A mount that has just started removes and makes files of its own.
    let served = served_before || served()?;
    let mut faults = Vec::new();
    for fault in check.faults {
        let kind = match fault.kind {
            FaultKind::Missing => Kind::MissingData,
            FaultKind::Short => Kind::ShortData,
            FaultKind::Leftover if served => continue,
            FaultKind::Leftover => Kind::Leftover,
        };
        faults.push((kind, fault.file, fault.reason));
    }
    Ok(UpperState { roots: check.roots, faults })
}

/// Corrects a flipped bit in a checkpoint, and cuts a journal before its damage, after keeping a copy. Does
/// nothing while a process holds the environment.
fn mend_upper(engine: &Engine, instance: &InstanceId, report: &dyn Report) -> Result<Vec<Action>> {
    let (store, files) = (engine.store(), engine.store().files());
    let upper = store.upper_dir(instance);
    let _lock = match EnvLock::try_acquire(engine.store(), instance) {
        Err(StoreError::Locked { holder, .. }) => {
            report.note(&format!(
                "the uncommitted changes in {} are damaged, but {holder} holds the environment: unmount it and repair again",
                upper.display()
            ));
            return Ok(Vec::new());
        }
        other => other?,
    };
    let mut actions = Vec::new();
    let name = Some(instance.to_hex());
    let checkpoint = upper.join("checkpoint");
    let bytes = files.read(&checkpoint, u64::MAX).unwrap_or_default();
    if !check::is_sound_checkpoint(&bytes) {
        let Some(good) = repair::mend(&bytes, &check::is_sound_checkpoint) else { return Ok(actions) };
        let kept =
            keep_copy(store, quarantine::Kind::Uppers, &checkpoint, &format!("{instance}.checkpoint"))?;
        files.write(&checkpoint, &good)?;
        let message = format!(
            "checkpoint {} was repaired by flipping one bit; the damaged original is {}",
            checkpoint.display(),
            kept.display()
        );
        actions.push(Action::new(Deed::Mended, name.clone(), &checkpoint, message));
    }
    let journal = upper.join("journal");
    if let Some(end) = check::journal_damage(files, &upper)? {
        let kept = keep_copy(store, quarantine::Kind::Uppers, &journal, &format!("{instance}.journal"))?;
        let file = files.open_to_change(&journal);
        let cut = file.and_then(|file| file.set_len(end).and_then(|()| file.sync_all()));
        cut.at("cut", &journal)?;
        let message = format!(
            "journal {} was truncated before the damaged record, and all later changes to the environment are lost; the damaged \
             original is {}",
            journal.display(),
            kept.display()
        );
        actions.push(Action::new(Deed::Cut, name, &journal, message));
    }
    Ok(actions)
}

/// Imports again the base images of environments that need missing objects, if the image is still available
/// as a local path or a kept download.
fn fetch(
    engine: &Engine,
    findings: &[Finding],
    actions: &mut Vec<Action>,
    report: &dyn Report,
) -> Result<()> {
    let objects = engine.store().objects();
    let gone = |finding: &&Finding| {
        let id = finding.object.as_ref().and_then(|id| id.parse::<ObjectId>().ok());
        id.is_some_and(|id| !objects.contains(&id))
            && matches!(finding.kind, Kind::CorruptObject | Kind::CorruptTree | Kind::MissingObject)
    };
    let wanted: Vec<&Finding> = findings.iter().filter(gone).collect();
    let environments: HashSet<&String> = wanted.iter().flat_map(|finding| &finding.environments).collect();
    let mut images = BTreeSet::new();
    for metadata in Metadata::list(engine.store())?.into_iter().flatten() {
        if environments.contains(&metadata.name) {
            images.extend(image_of(engine, &metadata));
        }
    }
    for image in images {
        if wanted.iter().all(|finding| !gone(finding)) {
            break;
        }
        report.begin("importing", None);
        let imported = {
            let _shared = StoreLock::shared(engine.store())?;
            import_path(engine.store(), &image, report)
        };
        report.end();
        if let Err(error) = imported {
            report.note(&format!("cannot restore content from the image {}: {error}", image.display()));
        }
        for finding in &wanted {
            let Some(id) = finding.object.as_ref().filter(|_| !gone(finding)) else { continue };
            if actions.iter().any(|a| a.deed != Deed::SetAside && a.object.as_ref() == Some(id)) {
                continue;
            }
            let message = format!("object {id} was restored from {}", image.display());
            actions.push(Action::new(Deed::Fetched, Some(id.clone()), &image, message));
        }
    }
    Ok(())
}

/// The path of the image that an environment's manifest names, if it exists here. `None` for a relative path,
/// whose directory is not known.
fn image_of(engine: &Engine, metadata: &Metadata) -> Option<PathBuf> {
    let manifest = Manifest::parse(&metadata.manifest, Path::new("the manifest in the environment's record"));
    let image = Image::parse(&manifest.ok()?.base.image, Path::new("")).ok()?;
    let path = image.fetch(&engine.store().image_cache(), true, &Silent).ok()?.path;
    path.is_absolute().then_some(path)
}

impl From<Verified> for Repaired {
    fn from(after: Verified) -> Repaired {
        Repaired { actions: Vec::new(), after }
    }
}

/// Turns the damage found by a verification into an error.
pub(in crate::engine) fn refuse_damage(verified: &Verified) -> Result<()> {
    let mut damage = verified.findings.iter().filter(|finding| finding.is_damage());
    match damage.next() {
        None => Ok(()),
        Some(first) => {
            let reason = format!("{first}; {} more, see `karapace verify-store`", damage.count());
            Err(Error::Served { errno: libc::EIO, reason })
        }
    }
}
