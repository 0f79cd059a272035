//! Temporary copies of environments.

use karapace_store::metadata::{EnvState, Metadata};

use super::{Place, commit, read, write};
use crate::engine::Silent;
use crate::engine::make::throw_away::ThrowAway;
use crate::engine::upkeep::{gc, verify};

/// What the copy shows, as a session would see it without an overlay.
fn shown(place: &Place, copy: &ThrowAway, name: &str) -> Option<String> {
    read(place.open(&copy.scratch.env).view(), name)
}

fn uncommitted(place: &Place, env: &Metadata) -> Vec<Vec<u8>> {
    place.engine.diff(env).unwrap().into_iter().map(|change| change.path.0).collect()
}

/// An environment with a snapshot, a committed and two uncommitted files, one of which no snapshot takes.
fn origin(place: &Place) -> Metadata {
    let manifest = place.manifest("[snapshot]\nignore = [\"/ignored\"]\n");
    let options = crate::engine::make::build::BuildOptions { name: Some("dev".into()), ..Default::default() };
    let env = place.engine.build(&manifest, &options, &Silent).unwrap().metadata;
    let instance = place.open(&env);
    write(instance.view(), "a", "committed");
    commit(&instance, Some("one"));
    write(instance.view(), "a", "uncommitted");
    write(instance.view(), "ignored", "ignored");
    instance.close().unwrap();
    place.reload(&env)
}

#[test]
fn a_copy_shows_what_the_environment_shows_and_goes() {
    let place = Place::new();
    let env = origin(&place);
    let before = uncommitted(&place, &env);
    for (snapshot, a, ignored) in [
        (None, Some("uncommitted"), Some("ignored")),
        (Some("one"), Some("committed"), None),
        (Some("base"), None, None),
    ] {
        let copy = place.engine.throw_away(&env, snapshot).unwrap();
        assert_eq!(place.names().len(), 2);
        assert_eq!(shown(&place, &copy, "a").as_deref(), a, "{snapshot:?}");
        assert_eq!(shown(&place, &copy, "ignored").as_deref(), ignored, "{snapshot:?}");
        // Whatever becomes of the environment, a collection leaves the copy what it shows.
        gc::collect(&place.engine, false, &Silent).unwrap();
        write(place.open(&copy.scratch.env).view(), "a", "changed");
        drop(copy);
        assert_eq!((place.names(), uncommitted(&place, &env)), (vec!["dev".to_owned()], before.clone()));
        assert_eq!(read(place.open(&env).view(), "a").as_deref(), Some("uncommitted"));
    }
    assert_eq!(place.reload(&env).snapshots, env.snapshots);
    verify::refuse_damage(&verify::verify(&place.engine, &Silent).unwrap()).unwrap();
}

#[test]
fn what_is_kept_has_everything_uncommitted() {
    let place = Place::new();
    let env = origin(&place);
    let copy = place.engine.throw_away(&env, None).unwrap();
    let instance = place.open(&copy.scratch.env);
    write(instance.view(), "b", "new");
    write(instance.view(), "ignored", "ignored too");
    drop(instance);
    let kept = copy.keep("kept", &Silent).unwrap();
    assert_eq!(place.names(), ["dev", "kept"]);
    assert_eq!(kept.snapshots, env.snapshots);
    assert_eq!((kept.head, &kept.env_id, kept.base_layer), (env.head, &env.env_id, env.base_layer));
    // Nothing undoes it.
    crate::engine::Engine::open(place.engine.root()).unwrap();
    gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(uncommitted(&place, &kept), [b"/a".to_vec(), b"/b".to_vec()]);
    let instance = place.open(&kept);
    for (name, text) in [("a", "uncommitted"), ("b", "new"), ("ignored", "ignored too")] {
        assert_eq!(read(instance.view(), name).as_deref(), Some(text), "{name}");
    }
    commit(&instance, Some("two"));
    instance.restore("one", &[], None, super::Wait::Long).unwrap();
    assert_eq!(read(instance.view(), "a").as_deref(), Some("committed"));
    assert_eq!(read(instance.view(), "b"), None);
    // It belongs to no snapshot, so a restore leaves it.
    assert_eq!(read(instance.view(), "ignored").as_deref(), Some("ignored too"));
    drop(instance);
    verify::refuse_damage(&verify::verify(&place.engine, &Silent).unwrap()).unwrap();
}

/// Nobody wants to lose hours of work because of a name.
#[test]
fn a_copy_whose_name_was_taken_meanwhile_keeps_its_own() {
    let place = Place::new();
    let env = place.import("dev");
    let copy = place.engine.throw_away(&env, None).unwrap();
    let own = copy.scratch.env.name.clone();
    assert_eq!(copy.keep("dev", &Silent).unwrap().name, own);
    assert_eq!(place.names(), ["dev".to_owned(), own]);
    let kept = place.engine.throw_away(&env, None).unwrap().keep("kept", &Silent).unwrap();
    assert_eq!(
        (kept.head, kept.head_record, uncommitted(&place, &kept).len()),
        (env.head, env.head_record, 0)
    );
}

#[test]
fn other_commands_leave_a_copy_alone() {
    let place = Place::new();
    let env = place.import("dev");
    let copy = place.engine.throw_away(&env, None).unwrap();
    crate::engine::Engine::open(place.engine.root()).unwrap();
    assert_eq!(place.names().len(), 2);
    drop(copy);
    assert_eq!(place.names(), ["dev"]);
}

/// They cannot store anything, so a copy cannot have what is uncommitted.
#[test]
fn environments_that_cannot_be_written_to_are_copied() {
    let place = Place::new();
    let env = origin(&place);
    place.engine.freeze(&env).unwrap();
    let refused = place.engine.throw_away(&env, None).err().unwrap().to_string();
    assert!(refused.contains("dev@head"), "{refused}");
    for archive in [false, true] {
        if archive {
            place.engine.archive(&place.reload(&env)).unwrap();
        }
        let copy = place.engine.throw_away(&env, Some("head")).unwrap();
        assert_eq!(copy.scratch.env.state, EnvState::Built);
        assert_eq!(shown(&place, &copy, "a").as_deref(), Some("committed"));
        write(place.open(&copy.scratch.env).view(), "a", "changed");
    }
    let clean = place.import("clean");
    place.engine.freeze(&clean).unwrap();
    place.engine.throw_away(&clean, None).unwrap();
}
