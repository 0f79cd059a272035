//! The modification times after a restore.

use karapace_fs::control::Times;
use karapace_store::inode::{InodeRecord, Timestamp};
use karapace_store::tree::{Target, Trees};

use super::*;

/// The record of a file in the root directory.
fn record(instance: &Instance, name: &str) -> InodeRecord {
    let trees = Trees::new(instance.engine().store().clone());
    let root = trees.root(&instance.view().head().root).unwrap();
    match trees.lookup(root.tree().unwrap(), name.as_bytes()).unwrap() {
        Some(Target::Inode(record)) => record,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn restored_paths_get_the_current_time() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    for name in ["a", "same"] {
        write(instance.view(), name, "1");
    }
    commit(&instance, Some("first"));
    let (first, same) = (record(&instance, "a"), record(&instance, "same"));
    write(instance.view(), "a", "2");
    let paths = [b"/a".to_vec(), b"/same".to_vec()];
    let before = Timestamp::now();
    let outcome = instance.restore("first", &paths, None, Wait::Long).unwrap();
    assert_eq!((outcome.changed, outcome.touched), (Some(1), 1));
    let restored = record(&instance, "a");
    assert_eq!(restored.body, first.body);
    assert!(restored.mtime >= before && restored.ctime == restored.mtime);
    assert_eq!(record(&instance, "same"), same);
    // The restored file counts as uncommitted until a commit; restoring it again changes nothing.
    let outcome = instance.restore("first", &paths, None, Wait::Long).unwrap();
    assert_eq!((outcome.changed, outcome.touched), (Some(0), 0));
    assert_eq!(record(&instance, "a").mtime, restored.mtime);
    // The snapshot's times on request, and in a whole restore.
    instance.restore("first", &paths, Some(Times::Kept), Wait::Long).unwrap();
    assert_eq!(record(&instance, "a").mtime, first.mtime);
    write(instance.view(), "a", "2");
    let outcome = instance.restore("first", &[], None, Wait::Long).unwrap();
    assert_eq!((record(&instance, "a").mtime, outcome.touched), (first.mtime, 0));
    assert!(instance.diff(None).unwrap().is_empty());
    write(instance.view(), "a", "2");
    let outcome = instance.restore("first", &[], Some(Times::Present), Wait::Long).unwrap();
    assert!(record(&instance, "a").mtime > before);
    assert_eq!((outcome.touched, instance.diff(None).unwrap().len()), (1, 1));
    assert_eq!(instance.view().head().layer, outcome.hash);
}
