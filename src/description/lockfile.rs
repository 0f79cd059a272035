//! The lock file `karapace.lock` (version 2): what a manifest resolved to. Only [`LockFile::read`] opens a
//! file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use karapace_store::input;

use super::identity;
use super::locked::{LOCK_VERSION, LockFile, LockedMount, LockedPackage};
use super::manifest::Manifest;

/// Largest lock file, in bytes; it has a table for each package.
const LOCK_MAX: u64 = 64 << 20;

/// A lock file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// The file could not be read.
    #[error("cannot read lock file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error from the system.
        source: std::io::Error,
    },
    /// `--locked` was given and there is no lock file.
    #[error("there is no lock file {}: run `karapace build` once without --locked to write it", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Not a lock file of a known version.
    #[error("lock file {}: {reason}", path.display())]
    Invalid {
        /// Where the text came from.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The ids do not match the content.
    #[error(
        "the lock file was edited: {field} is {stored}, but its content gives {computed}; run `karapace build` without --locked \
         to write it again"
    )]
    Integrity {
        /// Which id.
        field: &'static str,
        /// The id in the file.
        stored: String,
        /// The id computed from the content.
        computed: String,
    },
    /// The distribution no longer has the pinned versions.
    #[error(
        "the distribution no longer has the versions that the lock file pins: {}; run `karapace build` without --locked to take \
         current ones", packages.join("; ")
    )]
    Unavailable {
        /// Each package with its pinned version and the versions that are available.
        packages: Vec<String>,
    },
    /// The manifest asks for something other than what the lock file pins.
    #[error("the manifest and the lock file disagree: {}; run `karapace build` without --locked to resolve again", drift.join("; "))]
    Drift {
        /// Each difference in words.
        drift: Vec<String>,
    },
}

impl LockFile {
    /// Pins `manifest` to a base image content and package versions, and computes the ids.
    pub fn resolve(
        manifest: &Manifest,
        base_image_digest: &str,
        mut packages: Vec<LockedPackage>,
    ) -> LockFile {
        packages.sort();
        let mut lock = LockFile {
            lock_version: LOCK_VERSION,
            base_image: manifest.base.image.clone(),
            base_image_digest: base_image_digest.to_owned(),
            resolved_packages: packages,
            resolved_apps: manifest.gui.apps.clone(),
            runtime_backend: manifest.runtime.backend.to_string(),
            hardware_gpu: manifest.hardware.gpu,
            hardware_audio: manifest.hardware.audio,
            network_isolation: manifest.runtime.network_isolation,
            mounts: locked_mounts(manifest),
            cpu_shares: manifest.runtime.resource_limits.cpu_shares,
            memory_limit_mb: manifest.runtime.resource_limits.memory_limit_mb,
            ..LockFile::default()
        };
        lock.env_id = identity::env_id(&lock);
        lock.short_id = identity::short_id(&lock.env_id).to_owned();
        lock
    }

    /// Reads and parses the lock file at `path`; `Ok(None)` if it does not exist.
    ///
    /// # Errors
    /// [`LockError::Read`], [`LockError::Invalid`].
    pub fn read(path: &Path) -> Result<Option<LockFile>, LockError> {
        match input::read_text(path, LOCK_MAX) {
            Ok(text) => LockFile::parse(&text, path).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LockError::Read { path: path.to_owned(), source }),
        }
    }

    /// Parses the text of a lock file; errors name `origin`. Does not check the ids: see
    /// [`LockFile::verify_integrity`].
    ///
    /// # Errors
    /// [`LockError::Invalid`].
    pub fn parse(text: &str, origin: &Path) -> Result<LockFile, LockError> {
        let invalid = |reason: String| LockError::Invalid { path: origin.to_owned(), reason };
        let lock: LockFile = toml::from_str(text).map_err(|e| {
            let before = &text.as_bytes()[..e.span().map_or(0, |span| span.start).min(text.len())];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            invalid(format!("line {line}: {}", e.message()))
        })?;
        if lock.lock_version != LOCK_VERSION {
            let found = lock.lock_version;
            return Err(invalid(format!(
                "version {found} is not supported; this karapace reads version {LOCK_VERSION} only"
            )));
        }
        Ok(lock)
    }

    /// The file's text.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a lock file holds only tables, strings, integers and booleans")
    }

    /// Recomputes the ids and compares them with those in the file.
    ///
    /// # Errors
    /// [`LockError::Integrity`], if one differs.
    pub fn verify_integrity(&self) -> Result<(), LockError> {
        let computed = identity::env_id(self);
        let short = identity::short_id(&computed).to_owned();
        let ids = [("env_id", &self.env_id, computed), ("short_id", &self.short_id, short)];
        match ids.into_iter().find(|(_, stored, computed)| *stored != computed) {
            Some((field, stored, computed)) => {
                Err(LockError::Integrity { field, stored: stored.clone(), computed })
            }
            None => Ok(()),
        }
    }

    /// Checks that `manifest` still asks for what this lock file pins.
    ///
    /// # Errors
    /// [`LockError::Drift`], which names every difference.
    pub fn verify_manifest_intent(&self, manifest: &Manifest) -> Result<(), LockError> {
        let wanted = LockFile::resolve(manifest, &self.base_image_digest, Vec::new());
        let mut drift = Vec::new();
        let mut compare = |what: &str, asked: String, locked: String| {
            if asked != locked {
                drift.push(format!("{what}: the manifest has {asked}, the lock file has {locked}"));
            }
        };
        compare("base.image", quoted(&wanted.base_image), quoted(&self.base_image));
        compare("runtime.backend", wanted.runtime_backend, self.runtime_backend.clone());
        compare("hardware.gpu", wanted.hardware_gpu.to_string(), self.hardware_gpu.to_string());
        compare("hardware.audio", wanted.hardware_audio.to_string(), self.hardware_audio.to_string());
        compare(
            "runtime.network_isolation",
            wanted.network_isolation.to_string(),
            self.network_isolation.to_string(),
        );
        compare("cpu_shares", limit(wanted.cpu_shares), limit(self.cpu_shares));
        compare("memory_limit_mb", limit(wanted.memory_limit_mb), limit(self.memory_limit_mb));
        let labels: BTreeSet<&str> =
            wanted.mounts.iter().chain(&self.mounts).map(|mount| mount.label.as_str()).collect();
        for label in labels {
            compare(&format!("mounts.{label}"), place(&wanted.mounts, label), place(&self.mounts, label));
        }
        let apps = manifest.gui.apps.iter().cloned();
        compare_sets("gui.apps", apps, self.resolved_apps.iter().cloned(), &mut drift);
        let packages = manifest.system.packages.iter().cloned();
        let locked = self.resolved_packages.iter().map(|p| p.name.clone());
        compare_sets("system.packages", packages, locked, &mut drift);
        if drift.is_empty() { Ok(()) } else { Err(LockError::Drift { drift }) }
    }
}

fn locked_mounts(manifest: &Manifest) -> Vec<LockedMount> {
    let mount = |(label, mount): (&String, &super::manifest::Mount)| LockedMount {
        label: label.clone(),
        host_path: mount.host.clone(),
        container_path: mount.container.clone(),
    };
    manifest.mounts.iter().map(mount).collect()
}

/// The mount with this label, as a manifest writes it.
fn place(mounts: &[LockedMount], label: &str) -> String {
    let mount = mounts.iter().find(|mount| mount.label == label);
    mount.map_or_else(|| "none".to_owned(), |m| quoted(&format!("{}:{}", m.host_path, m.container_path)))
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn limit(value: Option<u64>) -> String {
    value.map_or_else(|| "none".to_owned(), |n| n.to_string())
}

fn compare_sets(
    what: &str,
    asked: impl Iterator<Item = String>,
    locked: impl Iterator<Item = String>,
    drift: &mut Vec<String>,
) {
    let (asked, locked): (BTreeSet<_>, BTreeSet<_>) = (asked.collect(), locked.collect());
    for added in asked.difference(&locked) {
        drift.push(format!("{what}: {added:?} is not in the lock file"));
    }
    for gone in locked.difference(&asked) {
        drift.push(format!("{what}: {gone:?} is only in the lock file"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(extra: &str) -> Manifest {
        let text = format!("manifest_version = 1\n[base]\nimage = \"./a.tar\"\n{extra}");
        Manifest::parse(&text, Path::new("karapace.toml")).unwrap()
    }

    fn lock(extra: &str, packages: &[&str]) -> LockFile {
        let packages =
            packages.iter().map(|n| LockedPackage { name: (*n).into(), version: "1".into() }).collect();
        LockFile::resolve(&manifest(extra), &"b".repeat(64), packages)
    }

    #[test]
    fn round_trip_and_integrity() {
        let lock =
            lock("[mounts]\nw = \"./:/w\"\n[runtime.resource_limits]\ncpu_shares = 5\n", &["git", "curl"]);
        let again = LockFile::parse(&lock.to_toml(), Path::new("karapace.lock")).unwrap();
        assert_eq!(again, lock);
        again.verify_integrity().unwrap();
        let edited = LockFile { hardware_gpu: true, ..again };
        assert!(matches!(edited.verify_integrity(), Err(LockError::Integrity { .. })));
    }

    #[test]
    fn refuses_other_versions_and_unknown_keys() {
        let text = lock("", &[]).to_toml();
        let origin = Path::new("karapace.lock");
        let other = text.replace("lock_version = 2", "lock_version = 3");
        assert!(LockFile::parse(&other, origin).unwrap_err().to_string().contains("version 3"));
        assert!(LockFile::parse(&format!("surprise = 1\n{text}"), origin).is_err());
    }

    /// Every field of the lock file that the manifest affects, with the values on both sides.
    #[test]
    fn drift_is_named() {
        let table: &[(&str, &str, &[&str], &[&str])] = &[
            ("", "", &[], &[]),
            ("[system]\npackages=[\"git\"]", "[system]\npackages=[\"git\"]", &["git"], &[]),
            (
                "[system]\npackages=[\"git\",\"vim\"]",
                "",
                &["git"],
                &["system.packages: \"vim\" is not in the lock file"],
            ),
            ("", "", &["git"], &["system.packages: \"git\" is only in the lock file"]),
            ("[gui]\napps=[\"a\"]", "", &[], &["gui.apps: \"a\" is not in the lock file"]),
            (
                "[gui]\napps=[\"b\"]",
                "[gui]\napps=[\"a\"]",
                &[],
                &["gui.apps: \"b\" is not in the lock file", "gui.apps: \"a\" is only in the lock file"],
            ),
            (
                "[hardware]\ngpu=true",
                "",
                &[],
                &["hardware.gpu: the manifest has true, the lock file has false"],
            ),
            (
                "",
                "[hardware]\naudio=true",
                &[],
                &["hardware.audio: the manifest has false, the lock file has true"],
            ),
            (
                "[mounts]\nw=\".:/w\"",
                "[mounts]\nw=\"/tmp:/w\"",
                &[],
                &["mounts.w: the manifest has \".:/w\", the lock file has \"/tmp:/w\""],
            ),
            (
                "[mounts]\nw=\".:/w\"",
                "[mounts]\nw=\".:/x\"",
                &[],
                &["mounts.w: the manifest has \".:/w\", the lock file has \".:/x\""],
            ),
            (
                "[mounts]\nw=\".:/w\"",
                "[mounts]\nx=\".:/w\"",
                &[],
                &[
                    "mounts.w: the manifest has \".:/w\", the lock file has none",
                    "mounts.x: the manifest has none, the lock file has \".:/w\"",
                ],
            ),
            (
                "[runtime]\nbackend=\"oci\"",
                "",
                &[],
                &["runtime.backend: the manifest has oci, the lock file has namespace"],
            ),
            (
                "[runtime]\nnetwork_isolation=true",
                "",
                &[],
                &["runtime.network_isolation: the manifest has true, the lock file has false"],
            ),
            (
                "[runtime.resource_limits]\ncpu_shares=1",
                "",
                &[],
                &["cpu_shares: the manifest has 1, the lock file has none"],
            ),
            (
                "[runtime.resource_limits]\nmemory_limit_mb=1",
                "[runtime.resource_limits]\nmemory_limit_mb=2",
                &[],
                &["memory_limit_mb: the manifest has 1, the lock file has 2"],
            ),
        ];
        let message = |lock: &LockFile, manifest: &Manifest| match lock.verify_manifest_intent(manifest) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        let whole = |drift: &str| {
            format!(
                "the manifest and the lock file disagree: {drift}; run `karapace build` without --locked to resolve again"
            )
        };
        for (asked, locked, packages, drift) in table {
            let found = message(&lock(locked, packages), &manifest(asked));
            let expected = if drift.is_empty() { String::new() } else { whole(&drift.join("; ")) };
            assert_eq!(found, expected);
        }
        let moved = LockFile { base_image: "./b.tar".into(), ..lock("", &[]) };
        let expected = whole("base.image: the manifest has \"./a.tar\", the lock file has \"./b.tar\"");
        assert_eq!(message(&moved, &manifest("")), expected);
    }

    /// Every field that the ids are computed from, and the ids.
    #[test]
    fn edited_lock_files_are_reported() {
        let good = lock("[mounts]\nw = \"./:/w\"\n", &["git"]);
        type Edit = fn(&mut LockFile);
        let table: [(&str, Edit); 13] = [
            ("base_image_digest", |lock| lock.base_image_digest = "c".repeat(64)),
            ("a package's name", |lock| lock.resolved_packages[0].name = "hg".into()),
            ("a package's version", |lock| lock.resolved_packages[0].version = "2".into()),
            ("resolved_apps", |lock| lock.resolved_apps.push("x".into())),
            ("runtime_backend", |lock| lock.runtime_backend = "oci".into()),
            ("hardware_gpu", |lock| lock.hardware_gpu = true),
            ("hardware_audio", |lock| lock.hardware_audio = true),
            ("network_isolation", |lock| lock.network_isolation = true),
            ("a mount's label", |lock| lock.mounts[0].label = "x".into()),
            ("a mount's host path", |lock| lock.mounts[0].host_path = "/".into()),
            ("a mount's place", |lock| lock.mounts[0].container_path = "/x".into()),
            ("cpu_shares", |lock| lock.cpu_shares = Some(1)),
            ("memory_limit_mb", |lock| lock.memory_limit_mb = Some(1)),
        ];
        for (what, edit) in table {
            let mut edited = good.clone();
            edit(&mut edited);
            let told = edited.verify_integrity().unwrap_err().to_string();
            let expected = format!(
                "the lock file was edited: env_id is {}, but its content gives {}; run `karapace build` without --locked to write it again",
                good.env_id,
                identity::env_id(&edited)
            );
            assert_eq!(told, expected, "{what}");
        }
        let other = LockFile { env_id: "d".repeat(64), ..good.clone() };
        let told = other.verify_integrity().unwrap_err().to_string();
        assert!(told.contains(&format!("env_id is {}, but its content gives {}", other.env_id, good.env_id)));
        let other = LockFile { short_id: "d".repeat(12), ..good.clone() };
        let told = other.verify_integrity().unwrap_err().to_string();
        assert!(told.contains(&format!("short_id is dddddddddddd, but its content gives {}", good.short_id)));
    }
}
