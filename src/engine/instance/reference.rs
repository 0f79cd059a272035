//! References to a snapshot: hash, unique prefix, name, `head`, `latest`, `base`, `~k`. No I/O.

use karapace_fs::control::command::check_reference;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::metadata::{Metadata, SnapshotEntry};

use crate::engine::{Error, Result};

/// The shortest prefix of a hash that is accepted, in hex digits.
const MIN_PREFIX: usize = 4;

/// A layer of an environment, by its hash and its record. (Two records may have one hash.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRef {
    /// Its hash, which is what people type.
    pub hash: LayerHash,
    /// Its record.
    pub record: RecordId,
}

/// Splits `env@snapshot` into the environment and the snapshot. Neither names nor references contain an `@`.
pub fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once('@') {
        Some((env, snapshot)) => (env, Some(snapshot)),
        None => (text, None),
    }
}

/// The layer that `reference` names in `metadata`. A name takes precedence over a prefix; of two records with
/// one hash, the newest is returned.
///
/// # Errors
/// [`Error::Invalid`] if the text has not the form of a reference, [`Error::NoSnapshot`],
/// [`Error::AmbiguousSnapshot`].
pub fn resolve(metadata: &Metadata, reference: &str) -> Result<LayerRef> {
    check_reference(reference).map_err(Error::Invalid)?;
    let head = LayerRef { hash: metadata.head, record: metadata.head_record };
    let base = LayerRef { hash: metadata.base_layer, record: metadata.base_record };
    let missing = || Error::NoSnapshot { env: metadata.name.clone(), reference: reference.to_owned() };
    match reference {
        "head" => return Ok(head),
        "base" => return Ok(base),
        "latest" => return metadata.latest().map(layer_of).ok_or_else(missing),
        _ => {}
    }
    if let Some(steps) = reference.strip_prefix('~') {
        let steps: u32 = steps.parse().map_err(|_| missing())?;
        return ancestor(metadata, head, steps).ok_or_else(missing);
    }
    if let Some(named) = metadata.snapshots.iter().find(|s| s.name.as_deref() == Some(reference)) {
        return Ok(layer_of(named));
    }
    let is_prefix = reference.len() >= MIN_PREFIX && reference.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_prefix {
        return Err(missing());
    }
    let prefix = reference.to_ascii_lowercase();
    let mut found: Vec<LayerRef> = Vec::new();
    let packages = metadata.dependency.map(|d| LayerRef { hash: d.layer, record: d.record });
    let newest_first = metadata.snapshots.iter().rev().map(layer_of).chain(packages).chain([base]);
    for layer in newest_first.filter(|layer| layer.hash.to_hex().starts_with(&prefix)) {
        if found.iter().all(|other| other.hash != layer.hash) {
            found.push(layer);
        }
    }
    match found.as_slice() {
        [] => Err(missing()),
        [one] => Ok(*one),
        several => Err(Error::AmbiguousSnapshot {
            env: metadata.name.clone(),
            reference: reference.to_owned(),
            candidates: several.iter().map(|layer| candidate(metadata, layer)).collect(),
        }),
    }
}

/// A hash with its names.
fn candidate(metadata: &Metadata, layer: &LayerRef) -> String {
    let twins = metadata.snapshots.iter().filter(|s| s.hash == layer.hash);
    let mut names: Vec<&str> = twins.filter_map(|s| s.name.as_deref()).collect();
    if layer.hash == metadata.base_layer {
        names.push("base");
    }
    match names.as_slice() {
        [] => layer.hash.to_hex(),
        names => format!("{} ({})", layer.hash, names.join(", ")),
    }
}

fn layer_of(entry: &SnapshotEntry) -> LayerRef {
    LayerRef { hash: entry.hash, record: entry.record }
}

fn ancestor(metadata: &Metadata, head: LayerRef, steps: u32) -> Option<LayerRef> {
    let mut at = head;
    for _ in 0..steps {
        at = parent(metadata, at)?;
    }
    Some(at)
}

/// The layer that `layer` was made on, or the nearest one below it that is left. `None` for the base, for a
/// layer that the environment does not have, and for a layer made on one that the environment had before it
/// was rebuilt.
pub fn parent(metadata: &Metadata, layer: LayerRef) -> Option<LayerRef> {
    let base = LayerRef { hash: metadata.base_layer, record: metadata.base_record };
    let packages = metadata.dependency.map(|d| LayerRef { hash: d.layer, record: d.record });
    if layer.hash == base.hash {
        return None;
    }
    if packages.is_some_and(|packages| packages.hash == layer.hash) {
        return Some(base);
    }
    let newest = |hash| metadata.snapshots.iter().rev().find(|s| s.hash == hash);
    let below = newest(layer.hash)?.parent;
    let built = || packages.into_iter().chain([base]).find(|layer| layer.hash == below);
    newest(below).map(layer_of).or_else(built)
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::id::InstanceId;
    use karapace_store::inode::Timestamp;
    use karapace_store::metadata::EnvState;

    fn hash(text: &str) -> LayerHash {
        format!("{text:0<64}").parse().unwrap()
    }

    fn record(n: u8) -> RecordId {
        RecordId::from_bytes([n; 32])
    }

    fn entry(text: &str, n: u8, parent: &str, name: Option<&str>) -> SnapshotEntry {
        SnapshotEntry {
            hash: hash(text),
            record: record(n),
            parent: hash(parent),
            name: name.map(str::to_owned),
            message: None,
            created_at: Timestamp { secs: i64::from(n), nanos: 0 },
        }
    }

    /// base ← aaaa1 ← aaaa2 (head, "two") and a side branch base ← bbbb, made again later with another
    /// record.
    fn metadata() -> Metadata {
        let time = Timestamp { secs: 0, nanos: 0 };
        Metadata {
            version: 1,
            instance: InstanceId::from_bytes([1; 16]),
            name: "dev".into(),
            env_id: "e".repeat(64),
            state: EnvState::Built,
            base_layer: hash("ba5e"),
            base_record: record(0),
            dependency: None,
            head: hash("aaaa2"),
            head_record: record(2),
            created_at: time,
            updated_at: time,
            manifest: String::new(),
            lock: String::new(),
            manifest_dir: None,
            snapshots: vec![
                entry("aaaa1", 1, "ba5e", Some("cafe")),
                entry("aaaa2", 2, "aaaa1", Some("two")),
                entry("bbbb", 3, "ba5e", None),
                entry("bbbb", 4, "ba5e", Some("again")),
                entry("cafe5", 5, "bbbb", None),
            ],
            checksum: String::new(),
        }
    }

    #[test]
    fn references() {
        let m = metadata();
        let table = [
            ("head", Some(2)),
            ("base", Some(0)),
            ("latest", Some(5)),
            ("~0", Some(2)),
            ("~1", Some(1)),
            ("~2", Some(0)),
            ("~3", None),
            ("~x", None),
            ("two", Some(2)),
            ("again", Some(4)),
            ("aaaa1", Some(1)),
            ("AAAA2", Some(2)),
            ("bbbb", Some(4)),
            ("ba5e", Some(0)),
            ("bbb", None),
            ("cafe", Some(1)),
            ("cafe5", Some(5)),
            ("nosuch", None),
            ("0000", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(resolve(&m, text).ok().map(|l| l.record), expected.map(record), "{text}");
        }
        assert_eq!(resolve(&m, &hash("aaaa1").to_hex()).unwrap().record, record(1));
    }

    #[test]
    fn the_package_layer_is_between_base_and_snapshots() {
        let mut m = metadata();
        m.dependency = Some(karapace_store::metadata::Dependency { layer: hash("dede"), record: record(9) });
        m.snapshots[0].parent = hash("dede");
        let records: Vec<_> = ["~1", "~2", "~3", "~4", "dede", "base"]
            .iter()
            .map(|text| resolve(&m, text).ok().map(|l| l.record))
            .collect();
        let expected = [Some(1), Some(9), Some(0), None, Some(9), Some(0)];
        assert_eq!(records, expected.map(|n| n.map(record)));
    }

    #[test]
    fn an_environment_with_or_without_a_snapshot() {
        assert_eq!(split("dev"), ("dev", None));
        assert_eq!(split("dev@~1"), ("dev", Some("~1")));
        assert_eq!(split("dev@"), ("dev", Some("")));
    }

    #[test]
    fn ambiguity_lists_candidates() {
        match resolve(&metadata(), "aaaa").unwrap_err() {
            Error::AmbiguousSnapshot { candidates, .. } => {
                let [two, one] = &candidates[..] else { panic!("{candidates:?}") };
                assert!(one.ends_with("0 (cafe)") && two.ends_with("0 (two)"), "{candidates:?}");
            }
            other => panic!("{other}"),
        }
    }
}
