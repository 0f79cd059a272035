//! Tests of the engine without a mount: environments are opened in this process and changed through their
//! views.

use std::fs;
use std::path::PathBuf;

use karapace_fs::attr::Caller;
use karapace_fs::view::View;
use karapace_store::id::LayerHash;
use karapace_store::import::Mounts;
use karapace_store::inode::ROOT_INO;
use karapace_store::lock::EnvLock;
use karapace_store::metadata::{EnvState, Metadata};

use super::instance::open::{Instance, Wait};
use super::make::build::BuildOptions;
use super::upkeep::{gc, verify};
use super::{Engine, Error, Silent};

mod apps;
mod build;
mod commands;
mod damage;
mod paths;
mod random;
mod restore;
mod sharing;
mod snapshots;
mod supply;
mod throw_away;
mod times;

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };

struct Place {
    dir: tempfile::TempDir,
    engine: Engine,
}

impl Place {
    /// A store and a small root file system beside it.
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        fs::write(rootfs.join("etc/hostname"), "base\n").unwrap();
        let engine = Engine::open(&dir.path().join("store")).unwrap();
        Place { dir, engine }
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn import(&self, name: &str) -> Metadata {
        let path = self.rootfs();
        self.engine.import(path.to_str().unwrap(), name, false, Mounts::LeaveOut, &Silent).unwrap().metadata
    }

    fn reload(&self, env: &Metadata) -> Metadata {
        Metadata::load(self.engine.store(), &env.instance).unwrap()
    }

    fn open(&self, env: &Metadata) -> Instance {
        let lock = EnvLock::try_acquire(self.engine.store(), &env.instance).unwrap();
        Instance::open(&self.engine, self.reload(env), lock, false).unwrap()
    }

    fn manifest(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("karapace.toml");
        fs::write(&path, format!("manifest_version = 1\n[base]\nimage = \"./rootfs\"\n{text}")).unwrap();
        path
    }

    fn names(&self) -> Vec<String> {
        self.engine.list().unwrap().0.into_iter().map(|env| env.name).collect()
    }
}

fn write(view: &View, name: &str, text: &str) {
    let attr = match view.lookup(ROOT_INO, name.as_bytes()) {
        Ok(attr) => attr,
        Err(_) => view.mknod(&ROOT, ROOT_INO, name.as_bytes(), libc::S_IFREG | 0o644, 0).unwrap(),
    };
    view.write(attr.ino, 0, text.as_bytes(), false).unwrap();
    view.forget(attr.ino, 1);
}

fn read(view: &View, name: &str) -> Option<String> {
    let attr = view.lookup(ROOT_INO, name.as_bytes()).ok()?;
    let mut bytes = Vec::new();
    view.read(attr.ino, 0, 4096, &mut bytes).unwrap();
    view.forget(attr.ino, 1);
    Some(String::from_utf8(bytes).unwrap())
}

fn commit(instance: &Instance, name: Option<&str>) -> LayerHash {
    instance.commit(&[], name, None, Wait::Long).unwrap().hash
}

#[test]
fn a_taken_name_changes_nothing() {
    let place = Place::new();
    let env = place.import("dev");
    assert!(fs::create_dir(place.rootfs().join("more")).is_ok());
    let again =
        place.engine.import(place.rootfs().to_str().unwrap(), "dev", false, Mounts::LeaveOut, &Silent);
    assert!(matches!(again, Err(Error::NameTaken { .. })));
    assert_eq!(place.reload(&env), env);
    assert_eq!(place.names(), ["dev"]);
}

#[test]
fn environments_of_one_image_share_base_and_identity() {
    let place = Place::new();
    let (one, two) = (place.import("one"), place.import("two"));
    assert_eq!(
        (one.base_layer, one.base_record, &one.env_id),
        (two.base_layer, two.base_record, &two.env_id)
    );
    assert_ne!(one.instance, two.instance);
}

#[test]
fn commits_chain_and_unchanged_ones_add_nothing() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    assert_eq!(commit(&instance, None), env.base_layer);
    assert!(place.reload(&env).snapshots.is_empty());
    write(instance.view(), "a", "1");
    let first = commit(&instance, Some("first"));
    assert_eq!(commit(&instance, None), first);
    write(instance.view(), "a", "2");
    let second = commit(&instance, None);
    let record = place.reload(&env);
    let chain: Vec<_> = record.snapshots.iter().map(|s| (s.hash, s.parent, s.name.as_deref())).collect();
    assert_eq!(chain, [(first, env.base_layer, Some("first")), (second, first, None)]);
    assert_eq!(record.head, second);
    let taken = instance.commit(&[], Some("first"), None, Wait::Long).unwrap_err();
    assert_eq!(taken.errno(), libc::EEXIST);
}

#[test]
fn a_name_for_an_unchanged_view_names_its_head() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    commit(&instance, Some("pristine"));
    write(instance.view(), "a", "1");
    let hash = commit(&instance, None);
    commit(&instance, Some("one"));
    commit(&instance, Some("alias"));
    let names = |env: &Metadata| -> Vec<_> {
        place.reload(env).snapshots.iter().map(|s| (s.hash, s.name.clone().unwrap_or_default())).collect()
    };
    let expected = [(env.base_layer, "pristine"), (hash, "one"), (hash, "alias")];
    assert_eq!(names(&env), expected.map(|(hash, name)| (hash, name.to_owned())));
    instance.restore("pristine", &[], None, Wait::Long).unwrap();
    assert_eq!(read(instance.view(), "a"), None);
    for name in ["pristine", "alias", "one"] {
        instance.drop_name(name, Wait::Long).unwrap();
    }
    assert_eq!(names(&env), [(hash, String::new())]);
    assert!(instance.drop_name("one", Wait::Long).is_err());
}

#[test]
fn restore_saves_what_is_uncommitted() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    let first = commit(&instance, None);
    write(instance.view(), "a", "2");
    let outcome = instance.restore("head", &[], None, Wait::Long).unwrap();
    assert_eq!(outcome.hash, first);
    let saved = outcome.saved.expect("the second version");
    assert_eq!(read(instance.view(), "a").as_deref(), Some("1"));
    assert!(instance.diff(None).unwrap().is_empty());
    let again = instance.restore(&saved.to_hex()[..12], &[], None, Wait::Long).unwrap();
    assert_eq!((again.hash, again.saved), (saved, None));
    assert_eq!(read(instance.view(), "a").as_deref(), Some("2"));
    instance.restore("~2", &[], None, Wait::Long).unwrap();
    assert_eq!(read(instance.view(), "a"), None);
    assert_eq!(place.reload(&env).head, env.base_layer);
    assert_eq!(instance.restore("0000", &[], None, Wait::Long).unwrap_err().errno(), libc::ENOENT);
    drop(instance);
    let instance = place.open(&env);
    assert_eq!(read(instance.view(), "a"), None);
}

#[test]
fn the_view_is_right_where_a_crash_left_another_head() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    let hash = commit(&instance, None);
    instance.close().unwrap();
    drop(instance);
    // As if a crash had left the record written and the view's checkpoint not, or the reverse.
    let mut record = place.reload(&env);
    let right = (record.head, record.head_record);
    (record.head, record.head_record) = (env.base_layer, env.base_record);
    record.save(place.engine.store()).unwrap();
    let instance = place.open(&env);
    assert_eq!(instance.metadata().head, hash);
    let record = place.reload(&env);
    assert_eq!((record.head, record.head_record), right);
    assert_eq!(read(instance.view(), "a").as_deref(), Some("1"));
}

#[test]
fn frozen_environments_refuse_and_stay() {
    let place = Place::new();
    let env = place.import("dev");
    place.engine.freeze(&env).unwrap();
    let frozen = place.reload(&env);
    assert_eq!(frozen.state, EnvState::Frozen);
    assert_eq!(place.engine.commit(&frozen, &[], None, None).unwrap_err().errno(), libc::EROFS);
    assert_eq!(place.engine.restore(&frozen, "base", &[], None).unwrap_err().errno(), libc::EROFS);
    assert!(matches!(place.engine.freeze(&frozen), Err(Error::Lifecycle(_))));
    assert_eq!(place.reload(&env), frozen);
    place.engine.archive(&frozen).unwrap();
    assert_eq!(place.reload(&env).state, EnvState::Archived);
}

#[test]
fn an_open_environment_is_not_destroyed_or_renamed_under_its_user() {
    let place = Place::new();
    let env = place.import("dev");
    let session = super::instance::sessions::Session::join(&place.engine, &env.instance).unwrap();
    assert!(matches!(place.engine.destroy(&env, false), Err(Error::Running { .. })));
    assert!(matches!(place.engine.rename(&env, "other"), Err(Error::Running { .. })));
    session.leave(|| Ok(())).unwrap();
    place.import("other");
    assert!(matches!(place.engine.rename(&env, "other"), Err(Error::NameTaken { .. })));
    place.engine.rename(&env, "dev").unwrap();
    place.engine.rename(&env, "third").unwrap();
    place.engine.destroy(&env, false).unwrap();
    assert_eq!(place.names(), ["other"]);
    assert!(!place.engine.env_dir(&env.instance).exists());
}

#[test]
fn named_snapshots_are_removed_only_on_request() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    commit(&instance, Some("first"));
    write(instance.view(), "a", "2");
    commit(&instance, None);
    instance.close().unwrap();
    drop(instance);
    // The snapshot was named after the caller read the record: `env` has no snapshots yet.
    for env in [&env, &place.reload(&env)] {
        let refused = place.engine.destroy(env, false).unwrap_err();
        assert!(matches!(&refused, Error::NamedSnapshots { names, .. } if names == &["first"]), "{refused}");
        assert!(refused.to_string().contains("--snapshots dev"), "{refused}");
    }
    assert_eq!(place.reload(&env).snapshots.len(), 2);
    place.engine.destroy(&env, true).unwrap();
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn collection_keeps_what_is_uncommitted_and_frees_what_is_gone() {
    let place = Place::new();
    let (kept, gone) = (place.import("kept"), place.import("gone"));
    let instance = place.open(&gone);
    write(instance.view(), "only-here", "content of its own");
    commit(&instance, None);
    instance.close().unwrap();
    drop(instance);
    let instance = place.open(&kept);
    let etc = instance.view().lookup(ROOT_INO, b"etc").unwrap();
    // An uncommitted move of a directory: apart from the base's root, only the upper refers to its listing.
    let rename = karapace_fs::attr::RenameMode::Replace;
    instance.view().rename(&ROOT, ROOT_INO, b"etc", ROOT_INO, b"moved", rename).unwrap();
    instance.view().forget(etc.ino, 1);
    place.engine.destroy(&gone, false).unwrap();
    let planned = gc::collect(&place.engine, true, &Silent).unwrap();
    let report = gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(planned, report);
    assert!(report.objects > 0 && report.layers == 1, "{report:?}");
    let damage = verify::verify(&place.engine, &Silent).unwrap().findings;
    assert!(damage.iter().all(|finding| !finding.is_damage()), "{damage:?}");
    let moved = instance.view().lookup(ROOT_INO, b"moved").unwrap();
    instance.view().lookup(moved.ino, b"hostname").unwrap();
}

#[test]
fn build_gives_back_what_exists_and_respects_the_lock() {
    let place = Place::new();
    let path = place.manifest("");
    let build = |name: Option<&str>, locked: bool| {
        let options = BuildOptions { name: name.map(str::to_owned), locked, ..BuildOptions::default() };
        place.engine.build(&path, &options, &Silent)
    };
    assert!(matches!(build(Some("dev"), true), Err(Error::Lock(_))));
    let first = build(Some("dev"), false).unwrap();
    assert!(first.created && first.lock_path.exists());
    let again = build(Some("dev"), true).unwrap();
    assert!(!again.created && again.metadata == first.metadata);
    assert_eq!(build(None, false).unwrap().metadata, first.metadata);
    let second = build(Some("two"), false).unwrap();
    assert!(second.created && second.metadata.env_id == first.metadata.env_id);
    // The image has other content: the lock file shows it, and another environment's name is not taken over.
    fs::write(place.rootfs().join("etc/hostname"), "other\n").unwrap();
    assert!(matches!(build(Some("three"), true), Err(Error::Lock(_))));
    let lock = fs::read(&first.lock_path).unwrap();
    let error = build(Some("dev"), false).err().unwrap();
    assert!(matches!(error, Error::OtherBuild { .. }), "{error}");
    assert!(error.to_string().contains("karapace.toml --name dev`, which replaces it"), "{error}");
    assert_eq!(fs::read(&first.lock_path).unwrap(), lock);
    assert_eq!(place.names(), ["dev", "two"]);
}

#[test]
fn packages_need_a_package_manager() {
    let place = Place::new();
    let path = place.manifest("[system]\npackages = [\"git\"]\n");
    let build = |options: BuildOptions| match place.engine.build(&path, &options, &Silent) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("there is nothing that installs packages"),
    };
    let error = build(BuildOptions::default());
    assert!(error.contains("has no supported package manager (apt, dnf"), "{error}");
    let error = build(BuildOptions { offline: true, ..BuildOptions::default() });
    assert!(error.contains("without --offline"), "{error}");
    assert!(place.names().is_empty());
    assert!(!path.with_extension("lock").exists());
}

#[test]
fn a_rebuild_keeps_name_snapshots_and_uncommitted_changes() {
    let place = Place::new();
    let path = place.manifest("");
    let options = BuildOptions { name: Some("dev".to_owned()), ..BuildOptions::default() };
    let unknown = place.engine.rebuild(&path, &BuildOptions::default(), &Silent).err().unwrap().to_string();
    assert!(unknown.contains("there is no lock file") && unknown.contains("--name"), "{unknown}");
    let first = place.engine.build(&path, &options, &Silent).unwrap().metadata;
    let instance = place.open(&first);
    write(instance.view(), "a", "1");
    let named = commit(&instance, Some("one"));
    write(instance.view(), "b", "2");
    instance.close().unwrap();
    drop(instance);
    fs::write(place.rootfs().join("etc/hostname"), "other\n").unwrap();
    // Without a name, the environment that the lock file pins.
    let rebuilt = place.engine.rebuild(&path, &BuildOptions::default(), &Silent).unwrap();
    let saved = rebuilt.saved.unwrap().hash;
    let new = rebuilt.metadata;
    assert_eq!((new.name.as_str(), &rebuilt.before), ("dev", &first.env_id));
    assert!(new.env_id != first.env_id && new.instance != first.instance && new.head == new.base_layer);
    assert_eq!(new.snapshots.iter().map(|s| s.hash).collect::<Vec<_>>(), [named, saved]);
    assert_eq!(place.names(), ["dev"]);
    assert!(!place.engine.store().env_dir(&first.instance).exists());
    place.engine.restore(&new, "latest", &[], None).unwrap();
    let head = place.reload(&new).head;
    assert_eq!(head, saved);
    // The layers that the snapshots were made on are unknown now: the chain begins with the snapshots.
    let layer = super::instance::reference::resolve(&place.reload(&new), "one").unwrap();
    assert_eq!(super::instance::reference::parent(&place.reload(&new), layer), None);
    place.engine.freeze(&new).unwrap();
    let refused = place.engine.rebuild(&path, &options, &Silent).err().unwrap().to_string();
    assert!(refused.contains("Frozen cannot be rebuilt"), "{refused}");
}

#[test]
fn a_pin_changes_one_line_and_holds_the_content() {
    let place = Place::new();
    let path = place.manifest("# kept\n");
    let text = fs::read_to_string(&path).unwrap();
    let strict = BuildOptions {
        name: Some("dev".to_owned()),
        locked: true,
        require_pinned_image: true,
        ..BuildOptions::default()
    };
    let error = place.engine.build(&path, &strict, &Silent).err().unwrap().to_string();
    assert!(error.contains("is not pinned: run `karapace pin"), "{error}");
    assert!(!super::make::pin::is_pinned(&path).unwrap().0);
    let pinned = place.engine.pin(&path, true, false, &Silent).unwrap();
    assert!(pinned.changed && pinned.lock.is_some() && super::make::pin::is_pinned(&path).unwrap().0);
    let new = fs::read_to_string(&path).unwrap();
    let changed = text.lines().zip(new.lines()).filter(|(old, new)| old != new).count();
    assert_eq!((changed, text.lines().count()), (1, new.lines().count()), "{new}");
    place.engine.build(&path, &strict, &Silent).unwrap();
    assert!(!place.engine.pin(&path, false, false, &Silent).unwrap().changed);
    fs::write(place.rootfs().join("etc/hostname"), "other\n").unwrap();
    let other = BuildOptions { locked: false, ..strict };
    let error = place.engine.build(&path, &other, &Silent).err().unwrap().to_string();
    assert!(error.contains("the manifest pins") && error.contains("pins the current content"), "{error}");
    assert!(place.engine.pin(&path, false, false, &Silent).unwrap().changed);
    let error = place.engine.build(&path, &BuildOptions { locked: true, ..other }, &Silent).err().unwrap();
    assert!(error.to_string().contains("base.image: the manifest has"), "{error}");
}

#[test]
fn differences_between_layers_and_the_view() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    commit(&instance, Some("one"));
    write(instance.view(), "b", "1");
    commit(&instance, Some("two"));
    write(instance.view(), "c", "1");
    instance.close().unwrap();
    drop(instance);
    let env = place.reload(&env);
    let show = |changes: Vec<super::instance::diff::Changed>| -> Vec<String> {
        changes
            .iter()
            .map(|c| format!("{} {}", c.kind.letter(), String::from_utf8_lossy(&c.path.0)))
            .collect()
    };
    assert_eq!(show(place.engine.diff(&env).unwrap()), ["A /c"]);
    assert_eq!(show(place.engine.diff_since(&env, "base").unwrap()), ["A /a", "A /b", "A /c"]);
    assert_eq!(show(place.engine.diff_between(&env, "one", "two").unwrap()), ["A /b"]);
    assert_eq!(show(place.engine.diff_between(&env, "two", "base").unwrap()), ["D /a", "D /b"]);
    assert!(place.engine.diff_between(&env, "one", "three").is_err());
}

#[test]
fn an_upper_directory_becomes_a_snapshot_on_top_of_its_lower() {
    let place = Place::new();
    let env = place.import("lower");
    let upper = place.dir.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/.wh.hostname"), "").unwrap();
    fs::write(upper.join("etc/new"), "new\n").unwrap();
    let import = |onto: Option<&str>, name: &str| {
        place
            .engine
            .import_upper(&upper, &env, onto, name, Mounts::LeaveOut, &Silent)
            .map(|outcome| outcome.metadata)
    };
    let made = import(None, "merged").unwrap();
    assert_eq!((&made.env_id, made.base_layer, made.snapshots.len()), (&env.env_id, env.base_layer, 1));
    assert_eq!((made.head, made.snapshots[0].parent), (made.snapshots[0].hash, env.base_layer));
    let changes = place.engine.diff_since(&made, "base").unwrap();
    let text = |c: &super::instance::diff::Changed| {
        format!("{} {}", c.kind.letter(), String::from_utf8_lossy(&c.path.0))
    };
    let changes: Vec<String> = changes.iter().map(text).collect();
    assert_eq!(changes, ["D /etc/hostname", "A /etc/new"]);
    // The same upper onto the snapshot that the first import made: nothing changes.
    let again = place
        .engine
        .import_upper(&upper, &made, Some("latest"), "again", Mounts::LeaveOut, &Silent)
        .unwrap()
        .metadata;
    assert_eq!((again.snapshots, again.head), (made.snapshots.clone(), made.head));
    assert!(matches!(import(None, "merged"), Err(Error::NameTaken { .. })));
    assert!(matches!(import(Some("nowhere"), "x"), Err(Error::NoSnapshot { .. })));
    gc::collect(&place.engine, false, &Silent).unwrap();
    assert!(verify::verify(&place.engine, &Silent).unwrap().findings.is_empty());
    place.open(&made).close().unwrap();
}

/// A commit whose last step fails has no effect; if the record cannot be restored either, the error says so.
/// In both cases the next commit succeeds.
#[cfg(feature = "failpoints")]
#[test]
fn a_commit_that_cannot_be_finished_is_complete_or_undone_and_says_which() {
    use karapace_store::fail::{Action, arm};
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        for undo_fails in [false, true] {
            let place = Place::new();
            let env = place.import("dev");
            let instance = place.open(&env);
            let before = instance.metadata();
            write(instance.view(), "a", "1");
            let step = arm("commit.finish", Action::Fail(errno), 1);
            let undo = undo_fails.then(|| arm("metadata.save", Action::Fail(errno), 2));
            let error = instance.commit(&[], Some("first"), None, Wait::Long).unwrap_err();
            drop((step, undo));
            assert_eq!(error.errno(), errno, "{error}");
            let listed = place.reload(&env).snapshots.len();
            assert_eq!(error.to_string().contains("was made nevertheless"), undo_fails, "{error}");
            assert_eq!(listed, usize::from(undo_fails), "{error}");
            assert_eq!(instance.view().head().record, before.head_record);
            assert!(!instance.diff(None).unwrap().is_empty());
            let again = instance.commit(&[], None, None, Wait::Long).unwrap();
            assert!(again.created);
            instance.close().unwrap();
            let metadata = place.reload(&env);
            assert_eq!((metadata.head, metadata.snapshots.len()), (again.hash, 1));
            assert_eq!(metadata.snapshots[0].name.is_some(), undo_fails);
        }
    }
}
