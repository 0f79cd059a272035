//! What this machine lacks for Karapace, and the command that mends it. Changes nothing and needs no store.

mod machine;
mod store;
mod user;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Result;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be, or not needed here.
    Ok,
    /// Something is left out or slower without it.
    Warning,
    /// Mounting or entering does not work without it.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What it is, in a word or two that stay the same.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// The command that mends it, or what else to do.
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

/// Looks at everything. `root` is where the store is or would be; `try_namespace` makes a user namespace in a
/// process of its own and says why it could not.
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

/// Makes a user namespace and a mount namespace in it, as a session does. For a process that ends afterwards.
pub fn try_user_namespace() -> Result<()> {
    machine::enter_namespaces().map_err(super::Error::Invalid)
}

/// A program on PATH.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
