//! Clones, shared and exclusive sizes of environments, and how long snapshots are kept.

use super::*;
use crate::engine::make::clone::CloneFrom;

impl Place {
    /// Changes the file `name` of an environment and commits it.
    fn change(&self, env: &Metadata, name: &str, text: &str, snapshot: Option<&str>) -> LayerHash {
        let instance = self.open(env);
        write(instance.view(), name, text);
        let hash = commit(&instance, snapshot);
        instance.close().unwrap();
        hash
    }

    fn clone_of(&self, env: &Metadata, from: CloneFrom<'_>, name: &str) -> Metadata {
        self.engine.clone_env(env, from, name, &Silent).unwrap()
    }

    fn content(&self, env: &Metadata, name: &str) -> Option<String> {
        let instance = self.open(env);
        let text = read(instance.view(), name);
        instance.close().unwrap();
        text
    }
}

#[test]
fn a_clone_starts_at_the_head_and_is_independent() {
    let place = Place::new();
    let env = place.import("dev");
    place.change(&env, "a", "1", Some("one"));
    let instance = place.open(&env);
    write(instance.view(), "a", "uncommitted");
    instance.close().unwrap();
    drop(instance);
    let made = place.clone_of(&env, CloneFrom::Head, "second");
    let env = place.reload(&env);
    assert_eq!((made.head, &made.env_id, &made.snapshots), (env.head, &env.env_id, &env.snapshots));
    assert_ne!(made.instance, env.instance);
    assert_eq!(place.content(&made, "a").as_deref(), Some("1"));
    place.change(&made, "a", "other", None);
    assert_eq!(place.content(&env, "a").as_deref(), Some("uncommitted"));
    let objects =
        |place: &Place| place.engine.usage().unwrap().0.iter().map(|u| u.entries).collect::<Vec<_>>();
    assert_eq!(objects(&place), [3, 3]);
    // With --commit both have what was uncommitted.
    let third = place.clone_of(&env, CloneFrom::Commit, "third");
    assert_eq!(place.content(&third, "a").as_deref(), Some("uncommitted"));
    assert_eq!(place.reload(&env).snapshots, third.snapshots);
    // The first is destroyed; the others keep everything they need.
    place.engine.destroy(&place.reload(&env), true).unwrap();
    gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(place.content(&made, "a").as_deref(), Some("other"));
    assert_eq!(place.content(&third, "a").as_deref(), Some("uncommitted"));
    assert!(verify::verify(&place.engine, &Silent).unwrap().findings.is_empty());
}

/// As a session of an earlier version left it: mount points that were made and removed again.
#[test]
fn touched_but_unchanged_files_are_not_a_change() {
    let place = Place::new();
    let env = place.import("dev");
    let count = |touch: &dyn Fn(&View)| {
        let instance = place.open(&env);
        touch(instance.view());
        let touched = instance.status().dirty_files;
        instance.close().unwrap();
        drop(instance);
        (touched > 0, place.engine.count_uncommitted(&env).unwrap())
    };
    assert_eq!(count(&|_| {}), (false, 0));
    let comes_and_goes = |view: &View| {
        let made = view.mkdir(&ROOT, ROOT_INO, b"proc", 0o755).unwrap();
        view.rmdir(ROOT_INO, b"proc").unwrap();
        view.forget(made.ino, 1);
    };
    assert_eq!(count(&comes_and_goes), (true, 0));
    assert_eq!(count(&|view| write(view, "a", "1")), (true, 1));
}

#[test]
fn a_clone_of_a_snapshot_lists_its_ancestors() {
    let place = Place::new();
    let env = place.import("dev");
    let one = place.change(&env, "a", "1", Some("one"));
    place.change(&env, "a", "2", Some("two"));
    let env = place.reload(&env);
    let made = place.clone_of(&env, CloneFrom::Snapshot("one"), "old");
    assert_eq!((made.head, made.snapshots.len()), (one, 1));
    let base = place.clone_of(&env, CloneFrom::Snapshot("base"), "new");
    assert_eq!((base.head, base.snapshots.len()), (env.base_layer, 0));
    assert_eq!(place.content(&base, "a"), None);
    // A refused clone makes nothing and commits nothing.
    let instance = place.open(&env);
    write(instance.view(), "b", "x");
    instance.close().unwrap();
    drop(instance);
    let refused = place.engine.clone_env(&env, CloneFrom::Commit, "old", &Silent);
    assert!(matches!(refused, Err(Error::NameTaken { .. })));
    let refused = place.engine.clone_env(&env, CloneFrom::Snapshot("none"), "x", &Silent);
    assert!(matches!(refused, Err(Error::NoSnapshot { .. })));
    assert_eq!(place.reload(&env).snapshots.len(), 2);
    assert_eq!(place.names(), ["dev", "new", "old"]);
    // A frozen environment can be cloned, and the clone can change.
    place.engine.freeze(&env).unwrap();
    let thawed = place.clone_of(&place.reload(&env), CloneFrom::Head, "thawed");
    place.change(&thawed, "c", "1", None);
}

#[test]
fn what_is_exclusive_is_what_destroying_frees() {
    let place = Place::new();
    fs::write(place.rootfs().join("large"), vec![7; 3 << 20]).unwrap();
    let env = place.import("dev");
    let second = place.clone_of(&env, CloneFrom::Head, "second");
    place.change(&env, "mine", &"m".repeat(200_000), None);
    place.change(&second, "theirs", &"t".repeat(300_000), None);
    place.change(&second, "theirs", "less", None);
    gc::collect(&place.engine, false, &Silent).unwrap();
    let (usages, unreadable) = place.engine.usage().unwrap();
    assert!(unreadable.is_empty());
    let [one, two] = &usages[..] else { panic!("{usages:?}") };
    assert_eq!((one.entries, two.entries), (4, 4));
    assert!(
        one.apparent_bytes > (3 << 20) + 200_000 && two.apparent_bytes > (3 << 20) + 300_000,
        "{usages:?}"
    );
    assert!(one.shared_bytes >= 3 << 20 && one.shared_bytes == two.shared_bytes, "{usages:?}");
    assert!(two.exclusive_bytes > 600_000 && two.exclusive_bytes < 1 << 20, "{usages:?}");
    // Each snapshot by itself. The newest is also the head, so nothing is exclusive to it.
    let (line, snapshots) = place.engine.usage_of(&place.reload(&second)).unwrap();
    assert_eq!((line.exclusive_bytes, line.shared_bytes), (two.exclusive_bytes, two.shared_bytes));
    let [older, newer] = &snapshots[..] else { panic!("{snapshots:?}") };
    assert!(newer.head && newer.exclusive_bytes == 0 && older.exclusive_bytes > 300_000, "{snapshots:?}");
    place.engine.remove_snapshots(&place.reload(&second), std::slice::from_ref(&older.hash)).unwrap();
    let freed = gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(freed.bytes, older.exclusive_bytes);
    for name in ["second", "dev"] {
        let (usages, _) = place.engine.usage().unwrap();
        let expected = usages.iter().find(|usage| usage.name == name).unwrap().exclusive_bytes;
        place.engine.destroy(&place.engine.find(name).unwrap(), true).unwrap();
        assert_eq!(gc::collect(&place.engine, false, &Silent).unwrap().bytes, expected, "{name}");
    }
}

#[test]
fn what_is_uncommitted_counts_as_the_environments_own() {
    let place = Place::new();
    let env = place.import("dev");
    let before = place.engine.usage().unwrap().0[0].upper_bytes;
    let instance = place.open(&env);
    write(instance.view(), "new", &"x".repeat(500_000));
    instance.close().unwrap();
    drop(instance);
    assert!(place.engine.usage().unwrap().0[0].upper_bytes > before + 400_000);
}

#[test]
fn old_snapshots_go_as_a_dry_run_says() {
    use crate::engine::record::retention::Keep;
    let place = Place::new();
    let (env, other) = (place.import("dev"), place.import("frozen"));
    for (n, name) in [(1, None), (2, Some("kept")), (3, None), (4, None)] {
        place.change(&env, "a", &n.to_string().repeat(100_000), name);
        place.change(&other, "a", &n.to_string(), None);
    }
    place.engine.freeze(&other).unwrap();
    gc::collect(&place.engine, false, &Silent).unwrap();
    let (keep, now) = (Keep { last: Some(1), within: None }, karapace_store::inode::Timestamp::now());
    let planned = place.engine.expire(&keep, now, true, &Silent).unwrap();
    assert_eq!(place.reload(&env).snapshots.len(), 4);
    let done = place.engine.expire(&keep, now, false, &Silent).unwrap();
    assert_eq!((planned.snapshots.len(), &planned.snapshots), (2, &done.snapshots));
    assert_eq!(gc::collect(&place.engine, false, &Silent).unwrap().bytes, planned.bytes);
    assert!(planned.bytes > 200_000);
    let names: Vec<_> = place.reload(&env).snapshots.into_iter().map(|s| s.name).collect();
    assert_eq!(names, [Some("kept".to_owned()), None]);
    assert_eq!(place.reload(&other).snapshots.len(), 4);
    assert!(place.engine.expire(&keep, now, false, &Silent).unwrap().snapshots.is_empty());
}
