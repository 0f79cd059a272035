//! The identity of an environment (docs/MANIFEST.md, "Identity"): a hash of what its manifest resolved to.
//! Does no I/O.

use super::locked::LockFile;

/// Length of a short id, in hex digits.
pub const SHORT_ID_LEN: usize = 12;

/// The `env_id` of a lock file: blake3 over its parts, concatenated in the order that docs/MANIFEST.md gives,
/// as hex digits.
///
/// The `env_id` and `short_id` fields of `lock` are not part of the hash.
pub fn env_id(lock: &LockFile) -> String {
    let mut hasher = Parts(blake3::Hasher::new());
    hasher.feed(&["base_digest:", &lock.base_image_digest]);
    let mut packages: Vec<_> = lock.resolved_packages.iter().map(|p| (&p.name, &p.version)).collect();
    packages.sort();
    for (name, version) in packages {
        hasher.feed(&["pkg:", name, "@", version]);
    }
    let mut apps: Vec<_> = lock.resolved_apps.iter().collect();
    apps.sort();
    for app in apps {
        hasher.feed(&["app:", app]);
    }
    if lock.hardware_gpu {
        hasher.feed(&["hw:gpu"]);
    }
    if lock.hardware_audio {
        hasher.feed(&["hw:audio"]);
    }
    let mut mounts: Vec<_> = lock.mounts.iter().collect();
    mounts.sort_by_key(|mount| &mount.label);
    for mount in mounts {
        hasher.feed(&["mount:", &mount.label, ":", &mount.host_path, ":", &mount.container_path]);
    }
    hasher.feed(&["backend:", &lock.runtime_backend]);
    if lock.network_isolation {
        hasher.feed(&["net:isolated"]);
    }
    if let Some(shares) = lock.cpu_shares {
        hasher.feed(&["cpu:", &shares.to_string()]);
    }
    if let Some(mebibytes) = lock.memory_limit_mb {
        hasher.feed(&["mem:", &mebibytes.to_string()]);
    }
    hasher.0.finalize().to_hex().to_string()
}

/// The first [`SHORT_ID_LEN`] digits of an id.
pub fn short_id(env_id: &str) -> &str {
    env_id.get(..SHORT_ID_LEN).unwrap_or(env_id)
}

struct Parts(blake3::Hasher);

impl Parts {
    fn feed(&mut self, parts: &[&str]) {
        for part in parts {
            self.0.update(part.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::locked::{LockedMount, LockedPackage};

    fn lock() -> LockFile {
        LockFile {
            base_image_digest: "a".repeat(64),
            runtime_backend: "namespace".into(),
            ..LockFile::default()
        }
    }

    fn hash(text: &str) -> String {
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    #[test]
    fn check_value_of_the_specification() {
        let expected = hash(&("base_digest:".to_owned() + &"a".repeat(64) + "backend:namespace"));
        assert_eq!(env_id(&lock()), expected);
        assert_eq!(short_id(&expected), &expected[..12]);
    }

    #[test]
    fn every_part_in_order() {
        let mut full = lock();
        let package = |n: &str, v: &str| LockedPackage { name: n.into(), version: v.into() };
        full.resolved_packages = vec![package("git", "2"), package("curl", "8"), package("curl", "7")];
        full.resolved_apps = vec!["z".into(), "a".into()];
        full.hardware_gpu = true;
        full.hardware_audio = true;
        let mount = |l: &str, h: &str, c: &str| LockedMount {
            label: l.into(),
            host_path: h.into(),
            container_path: c.into(),
        };
        full.mounts = vec![mount("w", "./", "/w"), mount("c", "/tmp", "/c")];
        full.network_isolation = true;
        full.cpu_shares = Some(10);
        full.memory_limit_mb = Some(20);
        let expected = format!(
            "base_digest:{}pkg:curl@7pkg:curl@8pkg:git@2app:aapp:zhw:gpuhw:audiomount:c:/tmp:/cmount:w:./:/w\
             backend:namespacenet:isolatedcpu:10mem:20",
            "a".repeat(64)
        );
        assert_eq!(env_id(&full), hash(&expected));
    }

    #[test]
    fn the_stored_ids_take_no_part() {
        let mut other = lock();
        other.env_id = "x".into();
        other.base_image = "elsewhere".into();
        assert_eq!(env_id(&other), env_id(&lock()));
    }
}
