//! Names of snapshots, and which snapshot is the newest.

use super::{Place, commit, write};
use crate::engine::Silent;
use crate::engine::instance::open::{Instance, Wait};
use crate::engine::instance::reference;
use crate::engine::instance::snapshots::snapshots;
use crate::engine::make::clone::CloneFrom;
use crate::engine::server::control::Plane;
use karapace_fs::control::ControlPlane;
use karapace_store::lock::EnvLock;
use karapace_store::metadata::Metadata;
use std::sync::Arc;

#[test]
fn a_name_for_an_old_snapshot_does_not_make_it_the_latest() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = Arc::new(place.open(&env));
    write(instance.view(), "a", "1");
    let old = commit(&instance, Some("old"));
    write(instance.view(), "a", "2");
    let new = commit(&instance, Some("new"));
    let plane = Plane::new(instance.clone(), Arc::default());
    for (reference, name) in [("old", "again"), ("base", "pristine")] {
        instance.restore(reference, &[], None, Wait::Long).unwrap();
        commit(&instance, Some(name));
        let env = place.reload(&env);
        assert_eq!(reference::resolve(&env, "latest").unwrap().hash, new);
        assert_eq!(plane.latest(), Some(new.to_hex()));
        assert_eq!(env.latest().unwrap().hash, new);
    }
    let snapshots = place.reload(&env).snapshots;
    let names: Vec<_> = snapshots.iter().map(|s| (s.hash, s.name.as_deref().unwrap())).collect();
    assert_eq!(names, [(env.base_layer, "pristine"), (old, "old"), (old, "again"), (new, "new")]);
    assert_eq!(snapshots[1].created_at, snapshots[2].created_at);
}

#[test]
fn a_frozen_environment_keeps_its_names() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    commit(&instance, Some("one"));
    drop(instance);
    let read_only = |env| {
        let lock = EnvLock::try_acquire(place.engine.store(), &env).unwrap();
        Instance::open(&place.engine, Metadata::load(place.engine.store(), &env).unwrap(), lock, true)
            .unwrap()
    };
    let error = read_only(env.instance).drop_name("one", Wait::Brief).unwrap_err();
    assert_eq!(error.errno(), libc::EROFS, "{error}");
    place.engine.freeze(&place.reload(&env)).unwrap();
    let instance = place.open(&env);
    assert_eq!(instance.drop_name("one", Wait::Brief).unwrap_err().errno(), libc::EROFS);
    assert_eq!(place.reload(&env).snapshots[0].name.as_deref(), Some("one"));
}

#[test]
fn a_snapshot_with_two_names_is_one() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    commit(&instance, Some("pristine"));
    write(instance.view(), "a", "1");
    let hash = commit(&instance, Some("one"));
    commit(&instance, Some("two"));
    write(instance.view(), "a", "2");
    commit(&instance, None);
    drop(instance);
    let env = place.reload(&env);
    let clone = place.engine.clone_env(&env, CloneFrom::Head, "other", &Silent).unwrap();
    for env in [env, clone] {
        assert_eq!(place.engine.inspect(&env).unwrap().summary.snapshots, 3);
        let lines = snapshots(&env);
        let names: Vec<_> = lines.iter().map(|line| line.names.join(" ")).collect();
        assert_eq!(names, ["pristine", "one two", ""]);
        assert_eq!((&lines[1].hash, lines[1].name.as_deref()), (&hash.to_hex(), Some("one")));
        assert_eq!(lines.iter().map(|line| line.head).collect::<Vec<_>>(), [false, false, true]);
        let usage = place.engine.usage_of(&env).unwrap().1;
        assert_eq!(usage.iter().map(|line| line.names.join(" ")).collect::<Vec<_>>(), names);
        assert_eq!(reference::resolve(&env, "two").unwrap().hash, hash);
    }
}
