//! Checking the whole store.

use karapace_store::id::InstanceId;
use karapace_store::integrity::{self, Finding};

use super::gc::upper_roots;
use super::{Engine, Report, Result};

/// Reads everything in the store and checks every reference, those of the environments' uncommitted changes too.
/// What it finds may be damage ([`Finding::is_damage`]) or merely worth knowing.
pub fn verify(engine: &Engine, report: &dyn Report) -> Result<Vec<Finding>> {
    report.begin("verifying", None);
    let uppers = |instance: &InstanceId| upper_roots(engine, instance);
    let findings = integrity::verify(engine.store(), &uppers, report);
    report.end();
    Ok(findings?)
}
