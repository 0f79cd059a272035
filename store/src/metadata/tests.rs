//! Records of environments: reading back, refusing, finding by name.

use super::*;
use std::fs;

/// Saves the record of an environment on one base layer.
pub(crate) fn saved(store: &Store, name: &str, env_id: &str, base: RecordId) -> Metadata {
    let layer = LayerHash::from_bytes([1; 32]);
    let time = Timestamp { secs: 1_700_000_000, nanos: 0 };
    let mut metadata = Metadata {
        version: VERSION,
        instance: InstanceId::random().unwrap(),
        name: name.to_owned(),
        env_id: env_id.to_owned(),
        state: EnvState::Built,
        base_layer: layer,
        base_record: base,
        dependency: None,
        head: layer,
        head_record: base,
        created_at: time,
        updated_at: time,
        manifest: "manifest_version = 1\n".to_owned(),
        lock: String::new(),
        manifest_dir: None,
        snapshots: Vec::new(),
        checksum: String::new(),
    };
    metadata.save(store).unwrap();
    metadata
}

fn store() -> (tempfile::TempDir, std::sync::Arc<Store>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_record_comes_back_and_any_change_to_it_is_noticed() {
    let (_dir, store) = store();
    let metadata = saved(&store, "a", &"ab".repeat(32), RecordId::of(b"r"));
    assert_eq!(Metadata::load(&store, &metadata.instance).unwrap(), metadata);
    let path = Metadata::path(&store, &metadata.instance);
    let text = fs::read_to_string(&path).unwrap();
    for (from, to) in
        [("\"Built\"", "\"Frozen\""), ("\"name\": \"a\"", "\"name\": \"b\""), ("{", "{\"x\": 1,")]
    {
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        assert!(
            matches!(Metadata::load(&store, &metadata.instance), Err(StoreError::Corrupt { .. })),
            "{from}"
        );
    }
    fs::write(&path, text.replacen("\"version\": 1", "\"version\": 2", 1)).unwrap();
    assert!(matches!(Metadata::load(&store, &metadata.instance), Err(StoreError::Version { .. })));
    Metadata::delete(&store, &metadata.instance).unwrap();
    assert!(Metadata::load(&store, &metadata.instance).unwrap_err().is_missing());
    assert!(Metadata::delete(&store, &metadata.instance).unwrap_err().is_missing());
}

#[test]
fn found_by_name_id_and_prefix() {
    let (_dir, store) = store();
    let base = RecordId::of(b"r");
    let a = saved(&store, "alpha", &format!("abcd{}", "0".repeat(60)), base);
    let b = saved(&store, "beta", &format!("abce{}", "0".repeat(60)), base);
    let find = |reference: &str| Metadata::find(&store, reference).map(|m| m.name);
    assert_eq!(find("alpha").unwrap(), "alpha");
    assert_eq!(find("abcd").unwrap(), "alpha");
    assert_eq!(find(&b.env_id).unwrap(), "beta");
    assert_eq!(find(&b.instance.to_hex()).unwrap(), "beta");
    assert_eq!(find(&a.instance.to_hex()[..12]).unwrap(), "alpha");
    for none in ["abc", "", "gamma", "ABCD", "abcf"] {
        assert!(find(none).unwrap_err().is_missing(), "{none}");
    }
    assert_eq!(Metadata::list(&store).unwrap().len(), 2);
}

#[test]
fn an_ambiguous_reference_lists_the_candidates_and_a_name_goes_first() {
    let (_dir, store) = store();
    let base = RecordId::of(b"r");
    saved(&store, "one", &"ab".repeat(32), base);
    saved(&store, "two", &"ab".repeat(32), base);
    let error = Metadata::find(&store, "abab").unwrap_err().to_string();
    assert!(error.contains("one") && error.contains("two"), "{error}");
    saved(&store, "abab", &"cd".repeat(32), base);
    assert_eq!(Metadata::find(&store, "abab").unwrap().name, "abab");
}

#[test]
fn names_are_checked_and_unique() {
    let (_dir, store) = store();
    let metadata = saved(&store, "one", &"ab".repeat(32), RecordId::of(b"r"));
    assert!(!Metadata::name_is_free(&store, "one", None).unwrap());
    assert!(Metadata::name_is_free(&store, "one", Some(&metadata.instance)).unwrap());
    assert!(Metadata::name_is_free(&store, "two", None).unwrap());
    assert!(check_name(&"x".repeat(64)).is_ok());
    for bad in ["", "a b", "ä", "a/b", "..", &"x".repeat(65)] {
        assert!(check_name(bad).is_err(), "{bad}");
        assert!(Metadata { name: bad.to_owned(), ..metadata.clone() }.save(&store).is_err());
    }
}

#[test]
fn an_unreadable_record_hides_no_other() {
    let (_dir, store) = store();
    let good = saved(&store, "good", &"ab".repeat(32), RecordId::of(b"r"));
    let bad = saved(&store, "bad", &"cd".repeat(32), RecordId::of(b"r"));
    fs::write(Metadata::path(&store, &bad.instance), "{").unwrap();
    assert_eq!(Metadata::find(&store, "good").unwrap(), good);
    assert!(matches!(Metadata::find(&store, "bad"), Err(StoreError::Corrupt { .. })));
    let list = Metadata::list(&store).unwrap();
    assert!(list[0].is_ok() && list[1].is_err());
}

/// A process that can write to a store can give a record a correct checksum.
#[test]
fn a_record_with_an_invalid_name_is_refused() {
    let (_dir, store) = store();
    let good = saved(&store, "good", &"0".repeat(64), RecordId::of(b"r"));
    let snapshot = |name: &str| SnapshotEntry {
        hash: good.head,
        record: good.head_record,
        parent: good.head,
        name: Some(name.to_owned()),
        message: None,
        created_at: good.created_at,
    };
    let odd = [
        Metadata { name: "../../x".into(), ..good.clone() },
        Metadata { name: String::new(), ..good.clone() },
        Metadata { name: ".".into(), ..good.clone() },
        Metadata { env_id: "../x".into(), ..good.clone() },
        Metadata { manifest_dir: Some("relative".into()), ..good.clone() },
        Metadata { snapshots: vec![snapshot("a/b")], ..good.clone() },
    ];
    for mut odd in odd {
        odd.checksum = odd.sum().unwrap();
        fs::write(Metadata::path(&store, &odd.instance), serde_json::to_vec(&odd).unwrap()).unwrap();
        let error = Metadata::load(&store, &odd.instance).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("never writes"), "{error}");
        assert!(Metadata::list(&store).unwrap()[0].is_err());
    }
}
