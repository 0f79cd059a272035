//! Whose home directory the command sees.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Policy, Share, ShareKind};
use crate::runtime::RuntimeError;
use crate::runtime::error::refused;

/// Whose home directory the command sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HomeMode {
    /// The environment's own
    #[default]
    Private,
    /// The caller's, at its own path
    Share,
    /// The caller's, at its own path, read-only
    Ro,
}

/// Lets in the caller's home directory, if it is asked for.
pub(super) fn apply(
    policy: &mut Policy,
    mode: HomeMode,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(), RuntimeError> {
    if mode == HomeMode::Private {
        return Ok(());
    }
    let (home, host) = of_caller("--home", variable)?;
    policy.shares.push(Share {
        what: "--home".to_owned(),
        host,
        inside: home.clone(),
        kind: ShareKind::Directory,
        read_only: mode == HomeMode::Ro,
    });
    policy.home = Some(home);
    Ok(())
}

/// Returns the caller's home directory twice: as HOME names it, and with symlinks resolved. Refuses `what` if
/// HOME names no home directory.
pub(super) fn of_caller(
    what: &str,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(PathBuf, PathBuf), RuntimeError> {
    let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let Some(home) = home else {
        return Err(refused(what, "the caller's HOME is not set to an absolute path"));
    };
    let host =
        fs::canonicalize(&home).map_err(|source| refused(what, format!("{}: {source}", home.display())))?;
    let system = ["/", "/dev", "/etc", "/proc", "/sys", "/usr", "/bin", "/lib"];
    if !host.is_dir() || system.iter().any(|path| host == Path::new(path) || home == Path::new(path)) {
        let reason = format!("the caller's HOME is {}, which is not a home directory", home.display());
        return Err(refused(what, reason));
    }
    Ok((home, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_home(mode: HomeMode, home: Option<&str>) -> Result<Policy, String> {
        let mut policy = Policy::default();
        apply(&mut policy, mode, &|key| home.filter(|_| key == "HOME").map(OsString::from))
            .map_err(|e| e.to_string())?;
        Ok(policy)
    }

    #[test]
    fn private_asks_for_nothing() {
        let policy = with_home(HomeMode::Private, None).unwrap();
        assert!(policy.shares.is_empty() && policy.home.is_none());
    }

    #[test]
    fn share_shows_it_at_its_own_path() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        for (mode, read_only) in [(HomeMode::Share, false), (HomeMode::Ro, true)] {
            let policy = with_home(mode, Some(home)).unwrap();
            assert_eq!(policy.home.as_deref(), Some(dir.path()));
            assert_eq!(policy.shares[0].inside, dir.path());
            assert_eq!(policy.shares[0].read_only, read_only);
        }
    }

    #[test]
    fn what_is_not_a_home_is_refused() {
        for (home, reason) in [
            (None, "not set"),
            (Some("relative"), "not set"),
            (Some("/"), "not a home directory"),
            (Some("/etc"), "not a home directory"),
            (Some("/etc/passwd"), "not a home directory"),
            (Some("/no/such/home"), "No such file"),
        ] {
            let error = with_home(HomeMode::Share, home).unwrap_err();
            assert!(error.starts_with("--home: ") && error.contains(reason), "{home:?}: {error}");
        }
    }
}
