//! The only place where an error becomes an exit status.

use karapace_store::error::StoreError;

use crate::engine::Error;

/// Any failure that has no status below, including a wrong command line.
pub const FAILURE: i32 = 1;
/// The manifest or its lock file is at fault.
pub const MANIFEST: i32 = 2;
/// The store is damaged, locked, or of another version.
pub const STORE: i32 = 3;
/// The user interrupted a command, and it ended cleanly.
pub const INTERRUPTED: i32 = 130;
/// `enter` and `exec`: karapace failed, not the command.
pub const RUNTIME: i32 = 125;

/// The exit status for a failed command.
pub fn status(error: &Error) -> i32 {
    match error {
        Error::Manifest(_) | Error::Lock(_) | Error::Unpinned { .. } | Error::OtherContent { .. } => MANIFEST,
        Error::Store(e) | Error::Fs(karapace_fs::Error::Store(e)) => store_status(e),
        Error::Fs(karapace_fs::Error::Corrupt(_) | karapace_fs::Error::Damaged(_)) => STORE,
        Error::Served { errno: libc::EIO | libc::EAGAIN, .. } => STORE,
        _ => FAILURE,
    }
}

/// The exit status for a failed `enter` or `exec`, whose low numbers belong to the command inside.
pub fn session_status(error: &Error) -> i32 {
    match error {
        Error::Runtime(e) => e.exit_status(),
        _ => RUNTIME,
    }
}

/// The kind of an error, in one word that never changes: the `kind` of docs/JSON.md.
pub fn kind(error: &Error) -> &'static str {
    match error {
        Error::Manifest(_) | Error::Unpinned { .. } | Error::OtherContent { .. } => "manifest",
        Error::Lock(_) => "lock",
        Error::Image(_) => "image",
        Error::Runtime(_) => "runtime",
        Error::Lifecycle(_) => "state",
        Error::Store(e) | Error::Fs(karapace_fs::Error::Store(e)) => store_kind(e),
        Error::Fs(karapace_fs::Error::Corrupt(_) | karapace_fs::Error::Damaged(_))
        | Error::Served { errno: libc::EIO, .. } => "corrupt",
        Error::Served { errno: libc::EAGAIN, .. } => "locked",
        Error::NoEnvironment { .. }
        | Error::NoSnapshot { .. }
        | Error::NoPath { .. }
        | Error::NotMounted { .. } => "not-found",
        Error::Served { errno: libc::ENOENT, .. } => "not-found",
        Error::NameTaken { .. }
        | Error::OtherBuild { .. }
        | Error::FileExists { .. }
        | Error::SnapshotNameTaken { .. } => "exists",
        Error::Served { errno: libc::EEXIST, .. } => "exists",
        Error::AmbiguousSnapshot { .. } => "ambiguous",
        Error::ReadOnly { .. } | Error::Served { errno: libc::EROFS, .. } => "state",
        Error::Mounted { .. }
        | Error::MountedElsewhere { .. }
        | Error::Running { .. }
        | Error::Held { .. }
        | Error::DirBusy { .. } => "busy",
        Error::Served { errno: libc::EBUSY, .. } => "busy",
        Error::Serving { .. } => "server",
        Error::Io { .. } => "io",
        _ => "invalid",
    }
}

fn store_kind(error: &StoreError) -> &'static str {
    match error {
        StoreError::Missing { kind: "environment", .. } | StoreError::NoStore { .. } => "not-found",
        StoreError::Missing { .. } | StoreError::Corrupt { .. } | StoreError::NotWhole { .. } => "corrupt",
        StoreError::Version { .. } => "version",
        StoreError::Locked { .. } | StoreError::OtherHost { .. } => "locked",
        StoreError::Cancelled => "interrupted",
        StoreError::Io { .. } => "io",
        _ => "invalid",
    }
}

fn store_status(error: &StoreError) -> i32 {
    match error {
        // The user gave a name that does not exist; the store itself is whole.
        StoreError::Missing { kind: "environment", .. } => FAILURE,
        StoreError::Missing { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Version { .. }
        | StoreError::NotWhole { .. }
        | StoreError::OtherHost { .. }
        | StoreError::Locked { .. } => STORE,
        StoreError::Cancelled => INTERRUPTED,
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::manifest::Manifest;
    use std::path::Path;

    #[test]
    fn statuses() {
        let manifest = Manifest::parse("", Path::new("karapace.toml")).unwrap_err();
        let table: Vec<(Error, i32, &str)> = vec![
            (manifest.into(), 2, "manifest"),
            (
                crate::description::lockfile::LockError::Absent { path: "karapace.lock".into() }.into(),
                2,
                "lock",
            ),
            (StoreError::missing("environment", "x").into(), 1, "not-found"),
            (StoreError::missing("object", "x").into(), 3, "corrupt"),
            (StoreError::corrupt("tree", "x", "y").into(), 3, "corrupt"),
            (StoreError::Locked { path: "x".into(), holder: "y".into() }.into(), 3, "locked"),
            (StoreError::OtherHost { path: "x".into(), host: "y".into() }.into(), 3, "locked"),
            (StoreError::NotWhole { path: "x".into(), reason: "y".into() }.into(), 3, "corrupt"),
            (StoreError::NoStore { path: "x".into(), is_there: true }.into(), 1, "not-found"),
            (StoreError::Owner { path: "x".into(), owner: "y".into() }.into(), 1, "invalid"),
            (StoreError::Invalid("x".into()).into(), 1, "invalid"),
            (StoreError::Cancelled.into(), 130, "interrupted"),
            (Error::Served { errno: libc::EIO, reason: "x".into() }, 3, "corrupt"),
            (Error::Served { errno: libc::ENOENT, reason: "x".into() }, 1, "not-found"),
            (Error::NameTaken { name: "x".into() }, 1, "exists"),
        ];
        for (error, expected, sort) in table {
            assert_eq!((status(&error), kind(&error)), (expected, sort), "{error}");
            assert_eq!(session_status(&error), RUNTIME, "{error}");
        }
    }
}
