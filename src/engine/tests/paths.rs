//! Chosen and ignored paths: commit, diff and restore, and the effects of removing snapshots.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use karapace_fs::attr::RenameMode;
use karapace_store::inode::{Body, FileKind, Ino};
use karapace_store::layer::LayerRecord;
use karapace_store::tree::{Trees, walk};

use super::*;
use crate::engine::make::build::BuildOptions;

/// Paths of a view with the content of files; `None` is a directory.
pub(super) type Files = BTreeMap<String, Option<String>>;

/// Resolves a path to its parent directory and its last name; makes missing directories.
fn parent(view: &View, path: &str) -> (Ino, Vec<u8>) {
    let (above, name) = path.rsplit_once('/').unwrap();
    let mut at = ROOT_INO;
    for part in above.split('/').filter(|part| !part.is_empty()) {
        at = match view.lookup(at, part.as_bytes()) {
            Ok(attr) => attr.ino,
            Err(_) => view.mkdir(&ROOT, at, part.as_bytes(), 0o755).unwrap().ino,
        };
    }
    (at, name.as_bytes().to_vec())
}

pub(super) fn put(view: &View, path: &str, text: &str) {
    let (dir, name) = parent(view, path);
    let ino = match view.lookup(dir, &name) {
        Ok(attr) => attr.ino,
        Err(_) => view.mknod(&ROOT, dir, &name, libc::S_IFREG | 0o644, 0).unwrap().ino,
    };
    let cut = karapace_fs::attr::SetAttr { size: Some(0), ..Default::default() };
    view.setattr(ino, &cut).unwrap();
    view.write(ino, 0, text.as_bytes(), false).unwrap();
}

fn link(view: &View, path: &str, new: &str) {
    let (dir, name) = parent(view, path);
    let ino = view.lookup(dir, &name).unwrap().ino;
    let (dir, name) = parent(view, new);
    view.link(ino, dir, &name).unwrap();
}

pub(super) fn unlink(view: &View, path: &str) {
    let (dir, name) = parent(view, path);
    view.unlink(dir, &name).unwrap();
}

pub(super) fn rename(view: &View, from: &str, to: &str) -> bool {
    let ((from_dir, from), (to_dir, to)) = (parent(view, from), parent(view, to));
    view.rename(&ROOT, from_dir, &from, to_dir, &to, RenameMode::Replace).is_ok()
}

/// Everything in the view. Keeps the directories' lookups, as a kernel does.
pub(super) fn files(view: &View) -> Files {
    let mut found = Files::new();
    let mut todo = vec![(String::new(), ROOT_INO)];
    while let Some((path, dir)) = todo.pop() {
        let mut names = Vec::new();
        view.readdir(dir, 0, false, &mut |item| {
            names.push((item.name.to_vec(), item.kind));
            true
        })
        .unwrap();
        for (name, kind) in names.into_iter().filter(|(name, _)| name != b"." && name != b"..") {
            let path = format!("{path}/{}", String::from_utf8(name.clone()).unwrap());
            let ino = view.lookup(dir, &name).unwrap().ino;
            if kind == FileKind::Directory {
                found.insert(path.clone(), None);
                todo.push((path, ino));
            } else {
                let mut bytes = Vec::new();
                view.read(ino, 0, 4096, &mut bytes).unwrap();
                found.insert(path, Some(String::from_utf8(bytes).unwrap()));
                view.forget(ino, 1);
            }
        }
    }
    found
}

pub(super) fn diff(instance: &Instance) -> Vec<String> {
    let line =
        |d: karapace_fs::attr::DiffEntry| format!("{} {}", d.kind.letter(), String::from_utf8_lossy(&d.path));
    instance.diff(None).unwrap().into_iter().map(line).collect()
}

fn paths(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}

pub(super) fn commit_paths(
    instance: &Instance,
    chosen: &[&str],
) -> crate::engine::instance::open::CommitOutcome {
    instance.commit(&paths(chosen), None, None, Wait::Long).unwrap()
}

pub(super) fn restore_paths(
    instance: &Instance,
    reference: &str,
    chosen: &[&str],
) -> crate::engine::instance::open::RestoreOutcome {
    instance.restore(reference, &paths(chosen), None, Wait::Long).unwrap()
}

/// Checks every tree in use: each number stands for one inode, and link counts are right.
pub(super) fn sound(place: &Place, instance: &Instance) {
    let trees = Trees::new(place.engine.store().clone());
    let metadata = instance.metadata();
    let layers = metadata.layers().into_iter();
    let mut roots: Vec<_> =
        layers.map(|(_, _, id)| LayerRecord::read(place.engine.store(), &id).unwrap().tree).collect();
    roots.push(instance.view().head().root);
    for id in roots {
        let root = trees.root(&id).unwrap();
        let mut inodes: HashMap<Ino, (u32, Vec<String>)> = HashMap::new();
        walk(&trees, &root, &mut |path, record| {
            assert!(record.ino < root.next_ino);
            let seen = inodes.entry(record.ino).or_insert((record.nlink, Vec::new()));
            seen.1.push(String::from_utf8_lossy(path).into_owned());
            let is_directory = matches!(record.body, Body::Directory { .. });
            assert!(!is_directory || seen.1.len() == 1, "one directory at {:?}", seen.1);
            if is_directory {
                inodes.remove(&record.ino);
                inodes.insert(record.ino, (1, vec!["directory".to_owned()]));
            }
            Ok(())
        })
        .unwrap();
        for (ino, (nlink, names)) in inodes {
            assert_eq!(nlink as usize, names.len(), "inode {ino} at {names:?}");
        }
    }
    let damage = verify::verify(&place.engine, &Silent).unwrap().findings;
    assert!(damage.iter().all(|finding| !finding.is_damage()), "{damage:?}");
}

#[test]
fn a_commit_of_chosen_paths_leaves_the_rest_uncommitted() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let view = instance.view();
    for path in ["/a", "/d/b", "/d/c"] {
        put(view, path, "1");
    }
    unlink(view, "/etc/hostname");
    let before = files(view);
    let outcome = commit_paths(&instance, &["/d/b"]);
    assert_eq!((outcome.added, outcome.modified, outcome.deleted), (2, 0, 0), "the directory and the file");
    assert_eq!(files(view), before);
    assert_eq!(diff(&instance), ["A /a", "A /d/c", "D /etc/hostname"]);
    assert_eq!(instance.status().dirty_files, 3);
    sound(&place, &instance);
    // A deletion, and reopening.
    let outcome = commit_paths(&instance, &["etc/hostname"]);
    assert_eq!((outcome.added, outcome.modified, outcome.deleted), (0, 0, 1));
    instance.close().unwrap();
    drop(instance);
    let instance = place.open(&env);
    assert_eq!(files(instance.view()), before);
    assert_eq!(diff(&instance), ["A /a", "A /d/c"]);
    // The snapshots contain only the chosen paths; a restore commits the rest first.
    let outcome = instance.restore("~1", &[], None, Wait::Long).unwrap();
    assert!(outcome.saved.is_some());
    let here: Vec<_> = files(instance.view()).into_keys().collect();
    assert_eq!(here, ["/d", "/d/b", "/etc", "/etc/hostname"]);
    assert!(diff(&instance).is_empty());
    instance.restore("latest", &[], None, Wait::Long).unwrap();
    assert_eq!(files(instance.view()), before);
    sound(&place, &instance);
}

#[test]
fn a_path_that_is_not_there_changes_nothing() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    put(instance.view(), "/a", "1");
    for wrong in [&["/none"][..], &["/a", "/none"], &["/a/x"]] {
        let error = instance.commit(&paths(wrong), None, None, Wait::Long).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
        let error = instance.restore("base", &paths(wrong), None, Wait::Long).unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT, "{error}");
    }
    for wrong in ["", "/a/../b"] {
        assert!(instance.commit(&paths(&[wrong]), None, None, Wait::Long).is_err(), "{wrong}");
    }
    assert_eq!(diff(&instance), ["A /a"]);
    assert!(instance.metadata().snapshots.is_empty());
}

#[test]
fn a_commit_of_one_name_takes_all_names_of_the_inode() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let view = instance.view();
    put(view, "/d/a", "1");
    link(view, "/d/a", "/b");
    put(view, "/c", "1");
    commit(&instance, None);
    put(view, "/b", "2");
    put(view, "/c", "2");
    assert_eq!(commit_paths(&instance, &["/b"]).modified, 2);
    assert_eq!(diff(&instance), ["M /c"]);
    // An existing file gets a second name: if that name is chosen, both are one inode in the snapshot.
    commit(&instance, None);
    link(view, "/c", "/e");
    commit_paths(&instance, &["/e"]);
    assert!(diff(&instance).is_empty(), "{:?}", diff(&instance));
    sound(&place, &instance);
}

#[test]
fn half_a_move_can_be_committed() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let view = instance.view();
    put(view, "/d/e/f", "1");
    commit(&instance, None);
    assert!(rename(view, "/d", "/moved"));
    put(view, "/moved/e/f", "2");
    commit_paths(&instance, &["/moved"]);
    assert_eq!(diff(&instance), ["D /d", "D /d/e", "D /d/e/f"]);
    sound(&place, &instance);
    commit(&instance, None);
    instance.restore("~1", &[], None, Wait::Long).unwrap();
    let here = files(view);
    assert_eq!((here["/d/e/f"].as_deref(), here["/moved/e/f"].as_deref()), (Some("1"), Some("2")));
    sound(&place, &instance);
}

#[test]
fn single_paths_come_back() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let view = instance.view();
    put(view, "/d/a", "1");
    put(view, "/d/b", "1");
    link(view, "/d/b", "/d/b2");
    put(view, "/other", "1");
    let first = commit(&instance, Some("first"));
    put(view, "/d/a", "2");
    put(view, "/d/new", "2");
    put(view, "/d/b", "2");
    put(view, "/other", "2");
    // Only what would be overwritten is committed first.
    let outcome = restore_paths(&instance, "first", &["/d/a"]);
    assert_eq!((outcome.hash, outcome.changed), (first, Some(1)));
    let saved = outcome.saved.expect("a snapshot with the second version");
    assert_eq!(instance.metadata().head, saved);
    let here = files(view);
    assert_eq!((here["/d/a"].as_deref(), here["/other"].as_deref()), (Some("1"), Some("2")));
    assert_eq!(diff(&instance), ["M /d/a", "M /d/b", "M /d/b2", "A /d/new", "M /other"]);
    // One of two names of an inode: the other keeps its content.
    restore_paths(&instance, "first", &["/d/b2"]);
    let here = files(view);
    assert_eq!((here["/d/b"].as_deref(), here["/d/b2"].as_deref()), (Some("2"), Some("1")));
    sound(&place, &instance);
    // A whole directory: what the snapshot does not have is removed, and the names are one inode again.
    restore_paths(&instance, "first", &["/d"]);
    let here: Vec<_> = files(view).into_keys().collect();
    assert_eq!(here, ["/d", "/d/a", "/d/b", "/d/b2", "/etc", "/etc/hostname", "/other"]);
    put(view, "/d/b", "3");
    assert_eq!(files(view)["/d/b2"].as_deref(), Some("3"));
    sound(&place, &instance);
    // A file that was removed with its parent directory; then one that the snapshot does not have.
    let (root, name) = parent(view, "/d/a");
    for name in [&name[..], b"b", b"b2"] {
        view.unlink(root, name).unwrap();
    }
    view.rmdir(ROOT_INO, b"d").unwrap();
    commit(&instance, None);
    restore_paths(&instance, "first", &["/d/a"]);
    assert_eq!(files(view)["/d/a"].as_deref(), Some("1"));
    restore_paths(&instance, "base", &["/d/a"]);
    assert!(!files(view).contains_key("/d/a") && files(view).contains_key("/d"));
    sound(&place, &instance);
}

fn ignoring(place: &Place) -> Metadata {
    fs::create_dir_all(place.rootfs().join("tmp/sub")).unwrap();
    fs::write(place.rootfs().join("tmp/keep"), "base").unwrap();
    fs::write(place.rootfs().join("tmp/gone"), "base").unwrap();
    let path = place.manifest("[snapshot]\nignore = [\"/tmp\", \"/cache/deep\"]\n");
    let options = BuildOptions { name: Some("dev".to_owned()), ..BuildOptions::default() };
    place.engine.build(&path, &options, &Silent).unwrap().metadata
}

#[test]
fn ignored_paths_enter_no_snapshot_and_stay_over_commit_and_restore() {
    let place = Place::new();
    let env = ignoring(&place);
    let instance = place.open(&env);
    let view = instance.view();
    put(view, "/a", "1");
    put(view, "/tmp/keep", "changed");
    put(view, "/tmp/new", "new");
    put(view, "/tmp/sub/new", "new");
    put(view, "/cache/deep/x", "new");
    unlink(view, "/tmp/gone");
    assert_eq!(diff(&instance), ["A /a", "A /cache"]);
    let before = files(view);
    let outcome = instance.commit(&[], None, None, Wait::Long).unwrap();
    assert_eq!((outcome.added, outcome.modified, outcome.deleted), (2, 0, 0));
    assert!(diff(&instance).is_empty());
    assert_eq!(files(view), before);
    // Ignored files were not stored as objects.
    assert!(view.stats().dirty_bytes >= 13, "{:?}", view.stats());
    assert!(!instance.commit(&[], None, None, Wait::Long).unwrap().created);
    sound(&place, &instance);
    // The snapshot has the base's files at these paths.
    let trees = Trees::new(place.engine.store().clone());
    let tree = LayerRecord::read(place.engine.store(), &instance.metadata().head_record).unwrap().tree;
    let snapshot = View::snapshot(&Arc::new(trees), tree).unwrap();
    let there = files(&snapshot);
    assert_eq!(there["/tmp/keep"].as_deref(), Some("base"));
    assert!(
        there.contains_key("/tmp/gone")
            && !there.contains_key("/tmp/new")
            && !there.contains_key("/cache/deep")
    );
    // A restore removes what is not ignored, and keeps the directory above what is ignored.
    instance.restore("base", &[], None, Wait::Long).unwrap();
    let mut after = before.clone();
    after.remove("/a");
    assert_eq!(files(view), after);
    assert_eq!(diff(&instance), ["A /cache"]);
    instance.close().unwrap();
    drop(instance);
    let instance = place.open(&env);
    assert_eq!(files(instance.view()), after);
    gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!(files(instance.view()), after);
    put(instance.view(), "/tmp/new", "newer");
    instance.restore("latest", &[], None, Wait::Long).unwrap();
    assert_eq!(files(instance.view())["/tmp/new"].as_deref(), Some("newer"));
    sound(&place, &instance);
    // Ignored paths are refused if chosen by name, and skipped below a chosen path.
    assert!(instance.commit(&paths(&["/tmp/new"]), None, None, Wait::Long).is_err());
    assert!(instance.restore("base", &paths(&["/tmp"]), None, Wait::Long).is_err());
    restore_paths(&instance, "base", &["/"]);
    assert_eq!(files(instance.view())["/tmp/new"].as_deref(), Some("newer"));
    sound(&place, &instance);
}

#[test]
fn moves_and_links_across_the_border_of_what_is_ignored() {
    let place = Place::new();
    let env = ignoring(&place);
    let instance = place.open(&env);
    let view = instance.view();
    assert!(rename(view, "/tmp/keep", "/kept"));
    assert!(rename(view, "/tmp/sub", "/sub"));
    assert!(rename(view, "/etc/hostname", "/tmp/hostname"));
    put(view, "/x", "1");
    link(view, "/x", "/tmp/x");
    assert_eq!(diff(&instance), ["D /etc/hostname", "A /kept", "A /sub", "A /x"]);
    let before = files(view);
    commit(&instance, None);
    sound(&place, &instance);
    assert!(diff(&instance).is_empty(), "{:?}", diff(&instance));
    assert!(!instance.commit(&[], None, None, Wait::Long).unwrap().created);
    assert_eq!(files(view), before);
    put(view, "/x", "2");
    assert_eq!(files(view)["/tmp/x"].as_deref(), Some("2"));
    commit(&instance, None);
    assert!(diff(&instance).is_empty());
    sound(&place, &instance);
    instance.restore("~1", &[], None, Wait::Long).unwrap();
    assert_eq!(files(view)["/x"].as_deref(), Some("1"));
    sound(&place, &instance);
}

#[test]
fn snapshots_removed_from_the_middle_leave_the_others_whole() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let mut made = Vec::new();
    for i in 0..6 {
        put(instance.view(), "/own", &format!("only in {i}"));
        put(instance.view(), &format!("/d{i}/f"), "x");
        made.push((commit(&instance, (i == 3).then_some("three")), files(instance.view())));
    }
    let remove = |references: &[&str]| {
        let references: Vec<String> = references.iter().map(|r| (*r).to_owned()).collect();
        instance.remove_snapshots(&references, Wait::Long)
    };
    for refused in ["head", "base", "latest", "none", "~9"] {
        assert!(remove(&["~2", refused]).is_err(), "{refused}");
    }
    assert_eq!(place.reload(&env).snapshots.len(), 6);
    let freed = gc::collect(&place.engine, false, &Silent).unwrap();
    assert_eq!((freed.objects, freed.layers), (0, 0));
    let removed = remove(&["~4", "three", "~4"]).unwrap().removed;
    assert_eq!(removed, [made[1].0, made[3].0]);
    let freed = gc::collect(&place.engine, false, &Silent).unwrap();
    // A root, two listings and a file for each, but not the records, which later layers name as parents.
    assert!(freed.objects >= 4, "{freed:?}");
    assert_eq!(freed.layers, 0);
    assert!(remove(&["three"]).is_err());
    sound(&place, &instance);
    // ~k counts the remaining snapshots.
    for (reference, index) in [("~0", 5), ("~1", 4), ("~2", 2), ("~3", 0)] {
        let resolved = crate::engine::instance::reference::resolve(&instance.metadata(), reference).unwrap();
        assert_eq!(resolved.hash, made[index].0, "{reference}");
    }
    for index in [0, 2, 4, 5] {
        instance.restore(&made[index].0.to_hex(), &[], None, Wait::Long).unwrap();
        assert_eq!(files(instance.view()), made[index].1);
    }
    // The chain continues from a snapshot whose parent was removed.
    instance.restore(&made[4].0.to_hex(), &[], None, Wait::Long).unwrap();
    put(instance.view(), "/more", "x");
    commit(&instance, Some("three"));
    assert_eq!(
        crate::engine::instance::reference::resolve(&instance.metadata(), "~2").unwrap().hash,
        made[2].0
    );
}

/// The object file of the listing of a directory in the root.
fn listing_of(trees: &Trees, record: &karapace_store::id::RecordId, name: &str) -> std::path::PathBuf {
    let layer = LayerRecord::read(trees.store(), record).unwrap();
    let root = trees.root(&layer.tree).unwrap();
    match trees.lookup(root.tree().unwrap(), name.as_bytes()).unwrap() {
        Some(karapace_store::tree::Target::Inode(inode)) => match inode.body {
            Body::Directory { tree: Some(tree), .. } => {
                karapace_store::layout::Layout::new(trees.store().root()).object(&tree)
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn comparing_snapshots_does_not_open_what_is_equal() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    for (path, text) in [("/same/deep/er/f", "1"), ("/differs/f", "1")] {
        put(instance.view(), path, text);
    }
    commit(&instance, Some("one"));
    put(instance.view(), "/differs/f", "2");
    commit(&instance, Some("two"));
    instance.close().unwrap();
    let record = instance.metadata().head_record;
    drop(instance);
    let env = place.reload(&env);
    let between = || place.engine.diff_between(&env, "one", "two");
    let listed = |changes: Vec<crate::engine::instance::diff::Changed>| -> Vec<_> {
        changes.into_iter().map(|c| (c.kind.letter(), String::from_utf8(c.path.0).unwrap())).collect()
    };
    assert_eq!(listed(between().unwrap()), [('M', "/differs/f".to_owned())]);
    let trees = Trees::new(place.engine.store().clone());
    let (same, differs) = (listing_of(&trees, &record, "same"), listing_of(&trees, &record, "differs"));
    fs::remove_file(same).unwrap();
    assert_eq!(listed(between().unwrap()).len(), 1);
    fs::remove_file(differs).unwrap();
    assert!(between().is_err());
}

#[test]
fn a_restore_that_numbers_linked_inodes_anew_leaves_nothing_to_commit() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    let view = instance.view();
    put(view, "/d/a", "1");
    link(view, "/d/a", "/b");
    let one = commit(&instance, None);
    put(view, "/b", "2");
    commit(&instance, None);
    // Held by the kernel, so the restored inode cannot have its number.
    let held = view.lookup(ROOT_INO, b"b").unwrap().ino;
    instance.restore("~1", &[], None, Wait::Long).unwrap();
    assert_ne!(view.lookup(ROOT_INO, b"b").unwrap().ino, held);
    assert!(diff(&instance).is_empty(), "{:?}", diff(&instance));
    assert_eq!(instance.status().dirty_files, 0);
    let outcome = instance.commit(&[], None, None, Wait::Long).unwrap();
    assert_eq!((outcome.hash, outcome.created), (one, false));
    sound(&place, &instance);
    // A later change shows under both names.
    put(view, "/d/a", "3");
    assert_eq!(diff(&instance), ["M /b", "M /d/a"]);
    assert_eq!(instance.commit(&[], None, None, Wait::Long).unwrap().modified, 2);
    sound(&place, &instance);
}
