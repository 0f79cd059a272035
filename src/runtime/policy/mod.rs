//! What of the host a session gets to see beside its environment, worked out from the manifest and the
//! command line before anything is made.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RuntimeError;
use super::error::refused;
use super::limits::Limits;
use crate::description::manifest;
use crate::description::manifest::Manifest;
use home::HomeMode;

/// Where `XDG_RUNTIME_DIR` is inside: on the session's own `/dev`, so that nothing of it is written into the
/// environment.
pub(super) const RUNTIME_DIR: &str = "/dev/run";

/// What of the host is let in, and what is kept away. The default lets nothing in.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Things of the host that are shown inside.
    pub shares: Vec<Share>,
    /// Places inside, in what is shared, that are covered: karapace's own directories.
    pub covered: Vec<PathBuf>,
    /// Variables that lead to them.
    pub variables: Vec<(OsString, OsString)>,
    /// The home directory of the command's user, where it is not the one that the environment names.
    pub home: Option<PathBuf>,
    /// A network of its own, with nothing but loopback.
    pub isolate_network: bool,
    /// No system call is denied, and programs may gain privileges.
    pub privileged: bool,
    /// What the environment's sessions may use.
    pub limits: Limits,
    /// What kinds of devices are asked for, whether the host has them or not.
    pub hardware: manifest::Hardware,
    /// What runs them.
    pub backend: manifest::Backend,
}

/// One thing of the host that is shown inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// What asks for it, for messages: `mounts.workspace`.
    pub what: String,
    /// Where it is on the host: absolute, with no symlink in it.
    pub host: PathBuf,
    /// Where it is shown: absolute.
    pub inside: PathBuf,
    /// What it is.
    pub kind: ShareKind,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareKind {
    /// A directory with all that is mounted below it. No set-user-id program and no device in it has effect.
    Directory,
    /// A file or a socket.
    File,
    /// A device, or a directory of devices.
    Device {
        /// Whether it is a directory.
        directory: bool,
    },
}

/// What a session is asked for beside what the manifest says.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Whose home directory the command sees.
    pub home: HomeMode,
    /// Deny no system call, and let programs gain privileges.
    pub privileged: bool,
}

/// What the policy asks about the caller.
pub struct Caller<'a> {
    /// The directory that relative host paths start from: the manifest's own.
    pub manifest_dir: Option<&'a Path>,
    /// The environment's instance id.
    pub instance: &'a str,
    /// A variable of the caller.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Policy {
    /// The policy of an environment with this manifest.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], when the manifest or the choice asks for what is not let in or is not there.
    pub fn new(manifest: &Manifest, choices: &Choices, caller: &Caller<'_>) -> Result<Policy, RuntimeError> {
        let mut policy = Policy {
            isolate_network: manifest.runtime.network_isolation,
            privileged: choices.privileged,
            hardware: manifest.hardware,
            backend: manifest.runtime.backend,
            limits: Limits {
                cpu_shares: manifest.runtime.resource_limits.cpu_shares,
                memory_mb: manifest.runtime.resource_limits.memory_limit_mb,
                name: caller.instance.to_owned(),
            },
            ..Policy::default()
        };
        policy.shares = host_mounts::shares(&manifest.mounts, caller)?;
        home::apply(&mut policy, choices.home, caller.variable)?;
        devices::apply(&mut policy, manifest.hardware, Path::new("/dev"));
        let wanted =
            desktop::Wanted { display: !manifest.gui.apps.is_empty(), sound: manifest.hardware.audio };
        desktop::apply(&mut policy, wanted, caller.variable);
        // Parents before what lies in them.
        policy.shares.sort_by(|a, b| a.inside.cmp(&b.inside));
        check_points(&mut policy.shares)?;
        Ok(policy)
    }
}

impl Policy {
    /// Keeps directories of karapace's own out of what is shared: those that are there and lie in it are
    /// covered.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], when what is shared lies in one of them.
    pub fn keep_out(&mut self, directories: &[PathBuf]) -> Result<(), RuntimeError> {
        let directories = directories.iter().filter_map(|path| fs::canonicalize(path).ok());
        for (own, share) in
            directories.flat_map(|own| self.shares.iter().map(move |share| (own.clone(), share)))
        {
            if share.host.starts_with(&own) {
                let reason = format!(
                    "{} lies in {}, which is karapace's own and is not shown to sessions",
                    share.host.display(),
                    own.display()
                );
                return Err(refused(&share.what, reason));
            }
            if let Ok(below) = own.strip_prefix(&share.host) {
                self.covered.push(share.inside.join(below));
            }
        }
        self.covered.sort();
        self.covered.dedup();
        Ok(())
    }

    /// Whether something of the host is shown that must not be written to.
    pub fn has_read_only(&self) -> bool {
        self.shares.iter().any(|share| share.read_only)
    }
}

/// Where a place inside lies on the host, if it lies in a directory that is shared.
fn on_host(shares: &[Share], inside: &Path) -> Option<PathBuf> {
    let holds = |share: &&Share| {
        share.kind == ShareKind::Directory && share.inside != inside && inside.starts_with(&share.inside)
    };
    let nearest = shares.iter().filter(holds).max_by_key(|share| share.inside.as_os_str().len())?;
    Some(nearest.host.join(inside.strip_prefix(&nearest.inside).ok()?))
}

/// The path on the host, if it is not there, that a mount at `inside` would need in a shared directory.
pub(super) fn missing_on_host(shares: &[Share], inside: &Path) -> Option<PathBuf> {
    // A symlink is covered itself, or leads to a place inside that has to be looked for there.
    on_host(shares, inside)
        .filter(|path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
}

/// Sees to it that no share needs a mount point made in what another one shows of the host: refuses what was
/// asked for by name, and leaves out the rest.
fn check_points(shares: &mut Vec<Share>) -> Result<(), RuntimeError> {
    let all = shares.clone();
    for share in &all {
        let Some(missing) = missing_on_host(&all, &share.inside) else { continue };
        let (inside, missing) = (share.inside.display(), missing.display());
        if !share.what.starts_with("mounts.") && share.what != "--home" {
            tracing::info!("{}: the host has no {missing} to show it at {inside}", share.what);
            shares.retain(|other| other != share);
            continue;
        }
        let reason = format!(
            "{inside} lies in a directory of the host that is shown there, which has no such place, and none is made on the host: \
             create {missing}, or choose another path inside"
        );
        return Err(refused(share.what.clone(), reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_mounted_where_the_host_would_need_a_place_for_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("home/there")).unwrap();
        let share = |what: &str, host: &str, inside: &str| Share {
            what: what.to_owned(),
            host: dir.path().join(host),
            inside: inside.into(),
            kind: ShareKind::Directory,
            read_only: false,
        };
        let home = share("--home", "home", "/home/me");
        let mut fine =
            vec![home.clone(), share("mounts.a", "x", "/home/me/there"), share("mounts.b", "x", "/home/me2")];
        let all = fine.clone();
        check_points(&mut fine).unwrap();
        assert_eq!(fine, all);
        let mut refused = vec![home.clone(), share("mounts.a", "x", "/home/me/a/b")];
        let said = check_points(&mut refused).unwrap_err().to_string();
        let missing = dir.path().join("home/a/b");
        assert!(
            said.starts_with("mounts.a: /home/me/a/b lies in") && said.contains(missing.to_str().unwrap()),
            "{said}"
        );
        // A socket of the desktop is left out instead.
        let mut desktop = vec![home.clone(), share("gui.apps", "x", "/home/me/.X11")];
        check_points(&mut desktop).unwrap();
        assert_eq!(desktop, [home]);
        assert_eq!(missing_on_host(&all, Path::new("/etc/hosts")), None);
    }
}
pub(super) mod desktop;
pub(super) mod devices;
pub(super) mod home;
pub(super) mod host_mounts;
