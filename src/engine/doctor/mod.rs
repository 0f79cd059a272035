//! Checks what this machine lacks for Karapace, and names the command that fixes it. Changes nothing and
//! needs no store.

mod machine;
mod store;
mod user;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Result;

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be, or not needed here.
    Ok,
    /// Without it something is missing or slower.
    Warning,
    /// Without it mounting or entering does not work.
    Failed,
}

/// The result of one check.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// A stable name of one or two words.
    pub name: &'static str,
    /// Its outcome.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// The command that fixes it, or what else to do.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, outcome: Outcome::Ok, found: found.into(), mend: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, outcome: Outcome::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn failed(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check { name, outcome: Outcome::Failed, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Runs all checks. `root` is where the store is or would be made; `try_namespace` makes a user namespace in
/// a separate process and returns why it could not.
pub fn examine(root: &Path, try_namespace: &dyn Fn() -> std::result::Result<(), String>) -> Vec<Check> {
    let mut checks = vec![
        machine::kernel(),
        machine::fuse_device(),
        user::fusermount(),
        machine::user_namespaces(try_namespace),
        user::id_range(),
        user::allow_other(),
        user::runtime_dir(),
        machine::control_groups(),
        machine::oci_runtimes(),
    ];
    checks.extend(store::checks(root));
    checks.push(machine::stale_mounts());
    checks
}

/// Makes a user namespace and a mount namespace, as a session does. Only for a process that exits afterwards,
/// because it stays in them.
pub fn try_user_namespace() -> Result<()> {
    machine::enter_namespaces().map_err(super::Error::Invalid)
}

/// Finds a program on PATH.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
