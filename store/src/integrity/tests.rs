//! The findings of a verification for each kind of damage.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::batch::Batch;
use crate::import::import_path;
use crate::layer::tests::base;
use crate::metadata;
use crate::pins::Pin;
use crate::progress::NoProgress;
use crate::tree::Trees;

struct Place {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    root: ObjectId,
    record: RecordId,
    env: Metadata,
}

const BIG: &[u8] = &[5; 3 << 20];

impl Place {
    /// A store with one environment of one layer: two small files, one with two names and one with one, and a
    /// large one.
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let src = dir.path().join("src");
        fs::create_dir_all(src.join("d")).unwrap();
        fs::write(src.join("d/small"), b"small").unwrap();
        fs::write(src.join("d/linked"), b"linked").unwrap();
        fs::hard_link(src.join("d/linked"), src.join("d/again")).unwrap();
        fs::write(src.join("d/big"), BIG).unwrap();
        let root = import_path(&store, &src, &NoProgress).unwrap().root;
        let record = LayerRecord::write(&store, &base(root)).unwrap();
        let env = metadata::tests::saved(&store, "env", &"ab".repeat(32), record);
        Place { _dir: dir, store, root, record, env }
    }

    fn verify(&self) -> Vec<Finding> {
        verify(&self.store, &|_| Ok(UpperState::default()), &NoProgress).unwrap().findings
    }

    fn tree(&self) -> ObjectId {
        *Trees::new(self.store.clone()).root(&self.root).unwrap().tree().unwrap()
    }
}

/// Changes a file of the store in place; its mode stays.
fn overwrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    let mode = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, mode).unwrap();
}

fn flip(path: &Path) {
    overwrite(path, |bytes| *bytes.last_mut().unwrap() ^= 1);
}

/// Damages more than can be mended.
fn spoil(path: &Path) {
    overwrite(path, |bytes| bytes.iter_mut().take(2).for_each(|byte| *byte ^= 0xff));
}

fn of_kind(findings: &[Finding], kind: Kind) -> &Finding {
    let found = findings.iter().find(|finding| finding.kind == kind);
    found.unwrap_or_else(|| panic!("no {kind:?}: {findings:#?}"))
}

#[test]
fn an_intact_store_has_no_findings() {
    let place = Place::new();
    let _pin = Pin::hold(&place.store, &[place.root]).unwrap();
    assert_eq!(place.verify(), []);
    // Files that commands keep beside the store.
    let layout = place.store.layout();
    fs::create_dir(layout.logs()).unwrap();
    fs::create_dir(layout.quarantine()).unwrap();
    for file in [layout.mount_all(), layout.mount_all_log(), layout.host_file()] {
        fs::write(file, "").unwrap();
    }
    assert_eq!(place.verify(), []);
}

#[test]
fn a_changed_object_is_found_and_who_needs_it() {
    let place = Place::new();
    for (bytes, path) in [(&b"small"[..], Some("/d/small")), (b"linked", None)] {
        let id = ObjectId::of(bytes);
        flip(&place.store.objects().path(&id));
        let findings = place.verify();
        let finding = findings.iter().find(|f| f.object == Some(id.to_hex())).unwrap();
        assert_eq!((finding.kind, finding.damage), (Kind::CorruptObject, true));
        assert_eq!(finding.path.as_deref(), path);
        assert_eq!(finding.environments, ["env"]);
        assert_eq!(finding.affected, ["env@base", "env@head"]);
    }
    flip(&place.store.objects().path(&ObjectId::of(BIG)));
    let findings = place.verify();
    let big = findings.iter().find(|f| f.object == Some(ObjectId::of(BIG).to_hex())).unwrap();
    assert_eq!((big.kind, big.path.as_deref()), (Kind::CorruptObject, Some("/d/big")));
    let content = of_kind(&findings, Kind::BadReference).to_string();
    assert!(content.contains("/d/big") && content.contains("block 47"), "{content}");
    assert!(findings.iter().all(Finding::is_damage));
}

#[test]
fn environments_that_do_not_need_it_are_not_named() {
    let place = Place::new();
    let src = place._dir.path().join("src");
    fs::remove_dir_all(&src).unwrap();
    fs::create_dir_all(src.join("e/f")).unwrap();
    fs::write(src.join("e/f/linked"), b"linked").unwrap();
    fs::write(src.join("own"), b"own").unwrap();
    let root = import_path(&place.store, &src, &NoProgress).unwrap().root;
    let record = LayerRecord::write(&place.store, &base(root)).unwrap();
    metadata::tests::saved(&place.store, "other", &"cd".repeat(32), record);
    let both = &["env@base", "env@head", "other@base", "other@head"][..];
    for (bytes, affected) in [(&b"small"[..], &both[..2]), (b"own", &both[2..]), (b"linked", both)] {
        flip(&place.store.objects().path(&ObjectId::of(bytes)));
        let findings = place.verify();
        let id = Some(ObjectId::of(bytes).to_hex());
        let mut named = findings.iter().find(|f| f.object == id).unwrap().affected.clone();
        named.sort();
        assert_eq!(named, affected);
    }
}

#[test]
fn a_missing_object_is_named_with_its_file() {
    let place = Place::new();
    let id = ObjectId::of(b"small");
    fs::remove_file(place.store.objects().path(&id)).unwrap();
    let findings = place.verify();
    assert_eq!(findings.len(), 1);
    let text = findings[0].to_string();
    assert!(text.contains("/d/small in the head of environment env"), "{text}");
    assert!(text.contains("affected: env@base, env@head"), "{text}");
}

#[test]
fn what_several_files_need_is_found_once() {
    let place = Place::new();
    let src = place._dir.path().join("src");
    for name in ["d/small", "e/small", "e/other", "small"] {
        fs::create_dir_all(src.join(name).parent().unwrap()).unwrap();
        fs::write(src.join(name), b"small").unwrap();
    }
    let root = import_path(&place.store, &src, &NoProgress).unwrap().root;
    let record = LayerRecord::write(&place.store, &base(root)).unwrap();
    metadata::tests::saved(&place.store, "other", &"cd".repeat(32), record);
    let kinds = || place.verify().iter().map(|finding| finding.kind).collect::<Vec<_>>();
    let small = place.store.objects().path(&ObjectId::of(b"small"));
    overwrite(&small, |bytes| bytes.truncate(2));
    assert_eq!(kinds(), [Kind::CorruptObject, Kind::BadReference]);
    fs::remove_file(&small).unwrap();
    assert_eq!(kinds(), [Kind::MissingObject]);
}

#[test]
fn objects_stored_during_the_check_are_not_orphans() {
    let place = Place::new();
    let put = |texts: &[&str]| {
        let mut batch = Batch::new(&place.store).unwrap();
        for text in texts {
            batch.put(text.as_bytes()).unwrap();
        }
        batch.commit().unwrap();
    };
    // Uppers are inspected after the objects were listed.
    let beside = |_: &InstanceId| {
        put(&["made meanwhile"]);
        Ok(UpperState::default())
    };
    let look = || verify(&place.store, &beside, &NoProgress).unwrap();
    let first = look();
    assert_eq!(first.findings, []);
    put(&["one", "three"]);
    let second = look();
    let orphans = of_kind(&second.findings, Kind::Orphans);
    let bytes = "one".len() + "three".len() + "made meanwhile".len();
    assert_eq!(
        orphans.message,
        format!("3 objects ({bytes} bytes) that nothing refers to: `karapace gc` frees them")
    );
    assert_eq!((second.objects, second.bytes), (first.objects + 3, first.bytes + bytes as u64));
    assert_eq!(second.findings.len(), 1);
}

#[test]
fn a_shortened_object_is_not_what_its_file_needs() {
    let place = Place::new();
    overwrite(&place.store.objects().path(&ObjectId::of(BIG)), |bytes| bytes.truncate(1000));
    of_kind(&place.verify(), Kind::BadReference);
}

#[test]
fn trees_layers_and_records_are_checked() {
    let place = Place::new();
    let layout = place.store.layout();
    let tree_path = layout.object(&place.tree());
    let bytes = fs::read(&tree_path).unwrap();
    flip(&tree_path);
    let findings = place.verify();
    assert_eq!(of_kind(&findings, Kind::CorruptTree).object, Some(place.tree().to_hex()));
    assert_eq!(of_kind(&findings, Kind::CorruptTree).environments, ["env"]);
    overwrite(&tree_path, |there| *there = bytes);
    assert_eq!(place.verify(), []);

    flip(&layout.layer(&place.record));
    assert_eq!(of_kind(&place.verify(), Kind::CorruptLayer).environments, ["env"]);
    fs::remove_file(layout.layer(&place.record)).unwrap();
    let text = of_kind(&place.verify(), Kind::BadReference).to_string();
    assert!(text.contains("the base of environment env"), "{text}");
    LayerRecord::write(&place.store, &base(place.root)).unwrap();
    assert_eq!(place.verify(), []);

    overwrite(&Metadata::path(&place.store, &place.env.instance), |bytes| bytes[20] = b'!');
    of_kind(&place.verify(), Kind::CorruptEnvironment);
}

#[test]
fn orphans_and_stray_files_are_not_damage() {
    let place = Place::new();
    let layout = place.store.layout();
    Metadata::delete(&place.store, &place.env.instance).unwrap();
    fs::write(layout.objects().join("stray"), b"").unwrap();
    fs::write(layout.root().join("stray"), b"").unwrap();
    fs::write(layout.layers().join(".tmp-x"), b"").unwrap();
    let loose = layout.object(&ObjectId::of(b"small"));
    fs::set_permissions(loose, fs::Permissions::from_mode(0o664)).unwrap();
    fs::set_permissions(layout.metadata(), fs::Permissions::from_mode(0o755)).unwrap();
    let findings = place.verify();
    let mut kinds: Vec<Kind> = findings.iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    use Kind::{Orphans, Stray, WrongPermissions};
    assert_eq!(kinds, [WrongPermissions, WrongPermissions, Stray, Stray, Orphans]);
    assert!(!findings.iter().any(Finding::is_damage));
    repair::repair(&place.store, &findings).unwrap();
    assert_eq!(place.verify().len(), 3);
}

#[test]
fn uppers_are_followed_and_their_faults_named() {
    let place = Place::new();
    let gone = ObjectId::of(b"gone");
    let roots = UpperRoots { roots: vec![gone], trees: vec![], objects: vec![gone] };
    let faults = vec![(Kind::MissingData, PathBuf::from("/upper/data/0b/0b"), "it is gone".to_owned())];
    let state = UpperState { roots, faults };
    let findings = verify(&place.store, &|_| Ok(state.clone()), &NoProgress).unwrap().findings;
    let missing = of_kind(&findings, Kind::MissingObject);
    assert_eq!(
        (missing.object.as_deref(), &missing.affected[..]),
        (Some(&*gone.to_hex()), &["env".to_owned()][..])
    );
    assert!(of_kind(&findings, Kind::MissingData).message.contains("environment env"));
    let torn = |_: &InstanceId| Err(StoreError::Invalid("torn".to_owned()));
    let findings = verify(&place.store, &torn, &NoProgress).unwrap().findings;
    assert_eq!(findings.len(), 1);
    let torn = of_kind(&findings, Kind::CorruptUpper);
    assert!(torn.message.contains("environment env: torn"), "{torn}");
}

#[test]
fn an_environment_without_its_record_is_found_and_stops_a_collection() {
    let place = Place::new();
    let layout = place.store.layout();
    let upper = layout.upper(&place.env.instance);
    fs::create_dir_all(&upper).unwrap();
    fs::write(upper.join("checkpoint"), b"some").unwrap();
    assert_eq!(place.verify(), []);
    fs::remove_file(Metadata::path(&place.store, &place.env.instance)).unwrap();
    of_kind(&place.verify(), Kind::OrphanEnvironment);
    let options =
        crate::gc::GcOptions { dry_run: false, uppers: &|_| Ok(UpperRoots::default()), cancelled: &|| false };
    let before = place.store.files().list(layout.objects()).unwrap();
    let refused = crate::gc::collect(&place.store, &options).unwrap_err().to_string();
    assert!(refused.contains("nothing was collected") && refused.contains("record"), "{refused}");
    assert_eq!(place.store.files().list(layout.objects()).unwrap(), before);
}

#[test]
fn one_flipped_bit_is_repaired_and_more_are_quarantined() {
    let place = Place::new();
    let layout = place.store.layout();
    let small = ObjectId::of(b"small");
    let record = Metadata::path(&place.store, &place.env.instance);
    let paths = [
        layout.object(&small),
        layout.object(&place.tree()),
        layout.object(&place.root),
        layout.layer(&place.record),
        record.clone(),
    ];
    for path in &paths {
        let whole = fs::read(path).unwrap();
        overwrite(path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 2;
        });
        let findings = place.verify();
        assert!(findings.iter().any(Finding::is_damage), "{}", path.display());
        let actions = repair::repair(&place.store, &findings).unwrap();
        assert!(actions.iter().all(|action| action.deed == repair::Deed::Mended), "{actions:?}");
        assert_eq!(fs::read(path).unwrap(), whole);
        assert!(!place.verify().iter().any(Finding::is_damage));

        spoil(path);
        let spoilt = fs::read(path).unwrap();
        let actions = repair::repair(&place.store, &place.verify()).unwrap();
        if *path == record {
            assert_eq!(actions, []);
            continue;
        }
        assert_eq!(actions[0].deed, repair::Deed::SetAside);
        assert!(!path.exists());
        assert!(place.verify().iter().any(Finding::is_damage));
        fs::write(path, &whole).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
        let kept = of_kind(&place.verify(), Kind::Quarantined).file.clone().unwrap();
        assert!(walk(Path::new(&kept)).contains(&spoilt));
    }
}

#[test]
fn a_block_list_is_rebuilt_from_its_data() {
    let place = Place::new();
    let tree = Trees::new(place.store.clone());
    let d = tree.lookup(&place.tree(), b"d").unwrap().unwrap();
    let crate::tree::Target::Inode(d) = d else { panic!("a link") };
    let crate::inode::Body::Directory { tree: Some(d), .. } = d.body else { panic!("no directory") };
    let Some(crate::tree::Target::Inode(big)) = tree.lookup(&d, b"big").unwrap() else { panic!("a link") };
    let crate::inode::Body::Regular(big) = big.body else { panic!("no file") };
    spoil(&place.store.objects().path(&big.hash));
    let actions = repair::repair(&place.store, &place.verify()).unwrap();
    let deeds: Vec<_> = actions.iter().map(|action| action.deed).collect();
    assert_eq!(deeds, [repair::Deed::SetAside, repair::Deed::Rebuilt]);
    assert!(!place.verify().iter().any(Finding::is_damage));
}

#[test]
fn pins_intents_and_directories() {
    let place = Place::new();
    let layout = place.store.layout();
    let _pin = Pin::hold(&place.store, &[place.root]).unwrap();
    let pin = place.store.files().list(&layout.pins()).unwrap().remove(0);
    let whole = fs::read(&pin).unwrap();
    // Written in place, because the lock is on this file.
    let write = |bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let file = fs::OpenOptions::new().write(true).open(&pin).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    };
    write(b"!");
    of_kind(&place.verify(), Kind::CorruptPin);
    assert!(pins::live(&place.store).is_err());
    write(&whole[..1]);
    assert_eq!(place.verify(), []);

    fs::write(layout.wal().join("00"), b"{").unwrap();
    of_kind(&place.verify(), Kind::CorruptIntent);
    assert_eq!(wal::replay(&place.store, &[]).unwrap(), []);
    assert!(wal::instances(&place.store).is_err());
    fs::remove_dir(layout.images()).unwrap();
    of_kind(&place.verify(), Kind::MissingDirectory);
    repair::repair(&place.store, &place.verify()).unwrap();
    assert!(layout.images().is_dir() && wal::instances(&place.store).unwrap().is_empty());
    assert!(!place.verify().iter().any(Finding::is_damage));
}

/// The contents of all files below a directory.
fn walk(dir: &Path) -> Vec<Vec<u8>> {
    let mut contents = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => contents.extend(walk(&path)),
            false => contents.push(fs::read(path).unwrap()),
        }
    }
    contents
}
