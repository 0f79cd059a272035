//! Damaged stores: what a collection refuses, what a repair leaves, and which paths the errors name.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use karapace_store::content::FileContent;
use karapace_store::id::ObjectId;
use karapace_store::inode::Body;
use karapace_store::integrity::repair::Deed;
use karapace_store::layer::LayerRecord;
use karapace_store::layout::Layout;
use karapace_store::pins::Pin;
use karapace_store::tree::{Target, Trees};

use super::*;
use crate::engine::export::image;
use crate::engine::export::image::{Format, Wanted};
use crate::engine::make::clone::CloneFrom;

/// Number of entries in a directory whose listing is split.
const MANY: usize = 1100;

impl Place {
    /// An environment with a split listing, a file stored in blocks, two snapshots, and uncommitted changes
    /// that are synced but not in a checkpoint.
    fn with_everything() -> (Place, Metadata) {
        let place = Place::new();
        let rootfs = place.rootfs();
        fs::create_dir(rootfs.join("many")).unwrap();
        for n in 0..MANY {
            fs::write(rootfs.join(format!("many/file-{n:05}")), b"").unwrap();
        }
        fs::write(rootfs.join("large"), vec![7; 3 << 20]).unwrap();
        let env = place.import("dev");
        let instance = place.open(&env);
        for name in ["one", "two"] {
            write(instance.view(), "a", name);
            commit(&instance, Some(name));
        }
        for n in 0..4 {
            write(instance.view(), &format!("new-{n}"), "new");
            instance.view().fsync(ROOT_INO).unwrap();
        }
        // Like a killed process: nothing is closed.
        drop(instance);
        let env = place.reload(&env);
        (place, env)
    }

    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for dir in fs::read_dir(Layout::new(self.engine.root()).objects()).unwrap() {
            found.extend(fs::read_dir(dir.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.sort();
        found
    }

    fn journal(&self, env: &Metadata) -> PathBuf {
        self.engine.store().upper_dir(&env.instance).join("journal")
    }
}

/// Flips one bit of the byte at `at` in place, so that locks on the file stay.
fn flip(path: &Path, at: u64) {
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 4;
    file.write_all_at(&byte, at).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

fn middle(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len() / 2
}

fn body(trees: &Trees, dir: &ObjectId, name: &str) -> Body {
    match trees.lookup(dir, name.as_bytes()).unwrap() {
        Some(Target::Inode(record)) => record.body,
        other => panic!("{name}: {other:?}"),
    }
}

fn listing(trees: &Trees, dir: &ObjectId, name: &str) -> ObjectId {
    match body(trees, dir, name) {
        Body::Directory { tree: Some(tree), .. } => tree,
        other => panic!("{name}: {other:?}"),
    }
}

fn content(trees: &Trees, dir: &ObjectId, name: &str) -> FileContent {
    match body(trees, dir, name) {
        Body::Regular(content) => content,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn a_collection_refuses_whatever_it_must_follow_and_cannot_read() {
    let (place, env) = Place::with_everything();
    let store = place.engine.store();
    let (layout, trees) = (Layout::new(store.root()), Trees::new(store.clone()));
    let root = LayerRecord::read(store, &env.head_record).unwrap().tree;
    let top = *trees.root(&root).unwrap().tree().unwrap();
    let index = listing(&trees, &top, "many");
    let bytes = store.objects().read(&index, 1 << 20).unwrap();
    assert_eq!(bytes[4], 1, "the listing is not split");
    // An index: 12 bytes, then the key and the object of the first part.
    let at = 13 + usize::from(bytes[12]);
    let part = ObjectId::from_bytes(bytes[at..at + 32].try_into().unwrap());
    let large = content(&trees, &top, "large");
    let _pin = Pin::hold(store, &[root]).unwrap();
    let pin = fs::read_dir(layout.pins()).unwrap().next().unwrap().unwrap().path();
    let intent = layout.wal().join("0".repeat(32));
    fs::write(&intent, "{}").unwrap();
    let refused = |what: &str| {
        let before = place.objects();
        for dry_run in [true, false] {
            let error = gc::collect(&place.engine, dry_run, &Silent).unwrap_err().to_string();
            assert!(error.contains("nothing was collected"), "{what}: {error}");
        }
        assert_eq!(place.objects(), before, "{what}");
    };
    refused("intent");
    fs::remove_file(intent).unwrap();
    let upper = layout.upper(&env.instance);
    for (what, path, at) in [
        ("environment record", Metadata::path(store, &env.instance), None),
        ("layer record of the base", layout.layer(&env.base_record), None),
        ("layer record of a snapshot", layout.layer(&env.snapshots[0].record), None),
        ("layer record of the head", layout.layer(&env.head_record), None),
        ("root", layout.object(&root), None),
        ("listing", layout.object(&listing(&trees, &top, "etc")), None),
        ("split listing", layout.object(&index), None),
        ("part of a split listing", layout.object(&part), None),
        ("checkpoint", upper.join("checkpoint"), None),
        ("journal", upper.join("journal"), Some(40)),
        // A wrong digit of an id would be another id.
        ("pin", pin, Some(40)),
    ] {
        let at = at.unwrap_or_else(|| middle(&path));
        flip(&path, at);
        refused(what);
        flip(&path, at);
    }
    // Objects that lead to no other objects need not be read.
    for (what, id) in [("block list", &large.hash), ("content", &large.extents[0].object)] {
        let path = layout.object(id);
        flip(&path, middle(&path));
        gc::collect(&place.engine, true, &Silent).unwrap_or_else(|error| panic!("{what}: {error}"));
        flip(&path, middle(&path));
    }
    gc::collect(&place.engine, false, &Silent).unwrap();
    assert!(!verify::verify(&place.engine, &Silent).unwrap().findings.iter().any(|f| f.is_damage()));
}

#[test]
fn a_damaged_journal_is_refused_until_a_repair_cuts_it() {
    let (place, env) = Place::with_everything();
    let journal = place.journal(&env);
    let whole = fs::read(&journal).unwrap();
    // The second record, so that the first stays.
    let second = 12 + 24 + u32::from_le_bytes(whole[12..16].try_into().unwrap()) as usize;
    flip(&journal, second as u64 + 30);
    let opened = || {
        let lock = EnvLock::try_acquire(place.engine.store(), &env.instance).unwrap();
        Instance::open(&place.engine, place.reload(&env), lock, false)
    };
    let refused = opened().err().unwrap().to_string();
    assert!(refused.contains("journal") && refused.contains("verify-store --repair"), "{refused}");
    assert_eq!(fs::read(&journal).unwrap().len(), whole.len(), "nothing is cut by a refusal");
    // Not while a process holds the environment.
    let held = EnvLock::try_acquire(place.engine.store(), &env.instance).unwrap();
    assert_eq!(verify::verify_and_repair(&place.engine, &Silent).unwrap().actions, []);
    drop(held);
    let repaired = verify::verify_and_repair(&place.engine, &Silent).unwrap();
    assert_eq!(repaired.actions.iter().map(|a| a.deed).collect::<Vec<_>>(), [Deed::Cut]);
    assert!(!repaired.after.findings.iter().any(|f| f.is_damage()), "{:?}", repaired.after.findings);
    assert_eq!(fs::read(&journal).unwrap(), whole[..second]);
    let instance = opened().unwrap();
    assert_eq!(read(instance.view(), "a").as_deref(), Some("two"));
    assert_eq!(read(instance.view(), "new-3"), None);
}

#[test]
fn what_needs_something_damaged_names_path_and_environment() {
    let (place, env) = Place::with_everything();
    let store = place.engine.store();
    let (layout, trees) = (Layout::new(store.root()), Trees::new(store.clone()));
    let top = *trees.root(&LayerRecord::read(store, &env.head_record).unwrap().tree).unwrap().tree().unwrap();
    let export = |format| {
        let (mut out, name) = (Vec::new(), Path::new("the archive"));
        let wanted = Wanted { snapshot: None, format, paths: &[], compression: None };
        let target = image::Target::Stream(&mut out, name);
        place.engine.export(&place.reload(&env), &wanted, target, &Silent)
    };
    let named = |result: std::result::Result<(), Error>, object: &ObjectId, path: &str| {
        let text = result.unwrap_err().to_string();
        let words = [object.to_hex(), format!("{path} in dev")];
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let large = content(&trees, &top, "large");
    let small = ObjectId::of(b"base\n");
    for (object, path) in
        [(small, "/etc/hostname"), (large.extents[0].object, "/large"), (large.hash, "/large")]
    {
        let file = layout.object(&object);
        flip(&file, middle(&file));
        // Its data has no hash of its own, so the error names the content's.
        let object = if path == "/large" { large.hash } else { object };
        for format in [Format::Tar, Format::Oci] {
            named(export(format).map(|_| ()), &object, path);
        }
        // Restore and clone do not read content: both work whatever the state of a file's object.
        place.engine.restore(&place.reload(&env), "one", &[], None).unwrap();
        place.engine.restore(&place.reload(&env), "two", &[], None).unwrap();
        flip(&file, middle(&file));
    }
    export(Format::Tar).unwrap();

    let etc = layout.object(&listing(&trees, &top, "etc"));
    flip(&etc, middle(&etc));
    named(export(Format::Tar).map(|_| ()), &listing_id(&etc), "/etc");
    flip(&etc, middle(&etc));
    let root = LayerRecord::read(store, &env.snapshots[0].record).unwrap().tree;
    let file = layout.object(&root);
    flip(&file, middle(&file));
    let clone = place.engine.clone_env(&env, CloneFrom::Snapshot("one"), "other", &Silent);
    named(clone.map(|_| ()), &root, "/");
    assert_eq!(place.names(), ["dev"]);
    let restored = place.engine.restore(&place.reload(&env), "one", &[], None);
    named(restored.map(|_| ()), &root, "/");
}

/// The id of the object in this file.
fn listing_id(path: &Path) -> ObjectId {
    let part = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    format!("{}{}", part(path.parent().unwrap()), part(path)).parse().unwrap()
}
