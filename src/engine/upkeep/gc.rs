//! Garbage collection.

use karapace_fs::check;
use karapace_store::error::StoreError;
use karapace_store::gc::{self, GcOptions, GcReport, UpperRoots};
use karapace_store::id::InstanceId;

use crate::engine::{Engine, Report, Result};

/// Removes from the store what nothing refers to; with `dry_run` only counts it. Takes the store's lock,
/// shared, and briefly exclusively. Mounted environments stay usable: their changes are read from their
/// uppers on disk, which are always current.
pub fn collect(engine: &Engine, dry_run: bool, report: &dyn Report) -> Result<GcReport> {
    report.begin("collecting", None);
    let uppers = |instance: &InstanceId| upper_roots(engine, instance);
    let cancelled = || report.is_cancelled();
    let options = GcOptions { dry_run, uppers: &uppers, cancelled: &cancelled };
    let result = gc::collect(engine.store(), &options);
    report.end();
    Ok(result?)
}

/// The objects that an environment's upper refers to, in the store's form.
pub(super) fn upper_roots(
    engine: &Engine,
    instance: &InstanceId,
) -> std::result::Result<UpperRoots, StoreError> {
    let upper = engine.store().upper_dir(instance);
    check::roots(engine.store().files(), &upper).map_err(|error| match error {
        karapace_fs::Error::Store(error) => error,
        other => StoreError::corrupt("upper", upper.display(), other.to_string()),
    })
}
