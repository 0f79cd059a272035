//! What a session sees of the host besides its environment, worked out from the manifest and the command line
//! before anything is made.

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

/// The value of `XDG_RUNTIME_DIR` inside: on the session's own `/dev`, so that nothing in it is written into
/// the environment.
pub(super) const RUNTIME_DIR: &str = "/dev/run";

/// What of the host is let in, and what is kept out. The default lets nothing in.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What of the host is shown inside.
    pub shares: Vec<Share>,
    /// Paths inside the shares that are covered: karapace's own directories.
    pub covered: Vec<PathBuf>,
    /// Variables by which programs find the shares.
    pub variables: Vec<(OsString, OsString)>,
    /// The home directory of the command's user, if it is not the one in the environment's passwd file.
    pub home: Option<PathBuf>,
    /// The inside has a network namespace of its own, with nothing but loopback.
    pub isolate_network: bool,
    /// No system call is denied, and programs may gain privileges.
    pub privileged: bool,
    /// Resource limits that the environment's sessions share.
    pub limits: Limits,
    /// Kinds of devices that are asked for, whether the host has them or not.
    pub hardware: manifest::Hardware,
    /// The backend that runs the sessions.
    pub backend: manifest::Backend,
}

/// A file or directory of the host that is shown inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The key or option that asks for it, for messages: `mounts.workspace`.
    pub what: String,
    /// Path on the host: absolute, without symlinks.
    pub host: PathBuf,
    /// Path inside: absolute.
    pub inside: PathBuf,
    /// Its kind.
    pub kind: ShareKind,
    /// Whether it is read-only inside.
    pub read_only: bool,
}

/// The kind of file that is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShareKind {
    /// A directory with everything mounted below it. Set-user-id programs and devices in it have no effect.
    Directory,
    /// A file or a socket.
    File,
    /// A device, or a directory of devices.
    Device {
        /// Whether it is a directory.
        directory: bool,
    },
}

/// What the caller chooses for a session, beyond the manifest.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Whose home directory the command sees.
    pub home: HomeMode,
    /// Deny no system call, and let programs gain privileges.
    pub privileged: bool,
}

/// What the policy must know about the caller.
pub struct Caller<'a> {
    /// The directory that relative host paths start from: that of the manifest.
    pub manifest_dir: Option<&'a Path>,
    /// The environment's instance id.
    pub instance: &'a str,
    /// Looks up an environment variable of the caller.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Policy {
    /// The policy of an environment with this manifest.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], if the manifest or a choice asks for something that is not permitted or does
    /// not exist.
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
        // Parents must come before what lies in them.
        policy.shares.sort_by(|a, b| a.inside.cmp(&b.inside));
        check_points(&mut policy.shares)?;
        Ok(policy)
    }
}

impl Policy {
    /// Hides karapace's own directories from sessions: those that exist and lie in a share are covered.
    ///
    /// # Errors
    /// [`RuntimeError::Policy`], if a share lies in one of them.
    pub fn keep_out(&mut self, directories: &[PathBuf]) -> Result<(), RuntimeError> {
        let directories = directories.iter().filter_map(|path| fs::canonicalize(path).ok());
        for (own, share) in
            directories.flat_map(|own| self.shares.iter().map(move |share| (own.clone(), share)))
        {
            if share.host.starts_with(&own) {
                let reason = format!(
                    "{} is in {}, which belongs to karapace and is never shared with sessions",
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

    /// Whether a share is read-only.
    pub fn has_read_only(&self) -> bool {
        self.shares.iter().any(|share| share.read_only)
    }
}

/// The host path of a path inside, if it lies in a shared directory.
fn on_host(shares: &[Share], inside: &Path) -> Option<PathBuf> {
    let holds = |share: &&Share| {
        share.kind == ShareKind::Directory && share.inside != inside && inside.starts_with(&share.inside)
    };
    let nearest = shares.iter().filter(holds).max_by_key(|share| share.inside.as_os_str().len())?;
    Some(nearest.host.join(inside.strip_prefix(&nearest.inside).ok()?))
}

/// The host path, if it does not exist, of the mount point that a mount at `inside` needs in a shared
/// directory.
pub(super) fn missing_on_host(shares: &[Share], inside: &Path) -> Option<PathBuf> {
    // A symlink counts as existing: it is covered itself, or leads to a path inside that must be looked up
    // there.
    on_host(shares, inside)
        .filter(|path| fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound))
}

/// Makes sure that no share needs a mount point created in a directory of the host: refuses shares that were
/// asked for by name, and drops the others.
fn check_points(shares: &mut Vec<Share>) -> Result<(), RuntimeError> {
    let all = shares.clone();
    for share in &all {
        let Some(missing) = missing_on_host(&all, &share.inside) else { continue };
        let (inside, missing) = (share.inside.display(), missing.display());
        if !share.what.starts_with("mounts.") && share.what != "--home" {
            tracing::info!(
                "{}: not shared, because the host has no {missing} as its mount point at {inside}",
                share.what
            );
            shares.retain(|other| other != share);
            continue;
        }
        let reason = format!(
            "{inside} is in a shared directory of the host that has no such mount point, and karapace creates none on the host: \
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
            said.starts_with("mounts.a: /home/me/a/b is in a shared directory")
                && said.contains(missing.to_str().unwrap()),
            "{said}"
        );
        // A socket of the desktop is dropped instead.
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
