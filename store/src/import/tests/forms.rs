//! Other forms of images than layouts and `docker save` archives; sources that are neither an image nor a
//! root filesystem; archives from a pipe.

use std::io::Read;

use super::image::{CONFIG, LAYER, descriptor, gzip, two_layers};
use super::*;
use crate::import::sha::Sha;

/// Writes the image of these layers as `skopeo copy … dir:` does; `ending` is the suffix of its layers'
/// names.
fn copied(dir: &Path, layers: &[Vec<u8>], ending: &str) -> String {
    fs::create_dir_all(dir).unwrap();
    let put = |kind: &str, blob: &[u8], ending: &str| {
        fs::write(dir.join(format!("{}{ending}", Sha::of(blob).hex())), blob).unwrap();
        descriptor(kind, blob, "")
    };
    let diff_ids: Vec<String> = layers.iter().map(|tar| format!("\"{}\"", Sha::of(tar))).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = put(CONFIG, config.as_bytes(), "");
    let layers: Vec<String> = layers.iter().map(|tar| put(LAYER, &gzip(tar), ending)).collect();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","));
    fs::write(dir.join("manifest.json"), &manifest).unwrap();
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    manifest
}

/// Imports the content of a directory in every way: as it is, packed, compressed, from a pipe.
fn imports(place: &Place, dir: &Path) -> Vec<Result<Imported>> {
    let tar = gnu_tar(dir, &["--sort=name"]);
    let (plain, packed) = (place.dir.path().join("given.tar"), place.dir.path().join("given.tar.gz"));
    fs::write(&plain, &tar).unwrap();
    fs::write(&packed, gzip(&tar)).unwrap();
    vec![
        place.import_dir(dir),
        place.import_dir(&plain),
        place.import_dir(&packed),
        place.import(&tar),
        place.import(&gzip(&tar)),
    ]
}

fn all_give(place: &Place, dir: &Path, expected: ObjectId) {
    for (i, imported) in imports(place, dir).into_iter().enumerate() {
        let imported = imported.unwrap();
        assert_eq!(imported.root, expected, "{i}: {:?}", imported.warnings);
        assert!(!imported.warnings.iter().any(|w| w.contains("root filesystem")), "{:?}", imported.warnings);
    }
    assert_eq!(place.staged(), 0);
}

fn all_refuse(place: &Place, dir: &Path, words: &str) {
    for (i, imported) in imports(place, dir).into_iter().enumerate() {
        let error = imported.unwrap_err().to_string();
        assert!(error.contains(words), "{i}: {error}");
    }
    assert_eq!(place.staged(), 0);
}

#[test]
fn a_directory_written_by_skopeo_or_podman_is_its_image() {
    let place = Place::new();
    let layers = two_layers();
    let expected = place.layered(&layers).unwrap().root;
    let dir = place.dir.path().join("copied");
    let manifest = copied(&dir, &layers, "");
    all_give(&place, &dir, expected);
    // The `version` file is not needed.
    fs::remove_file(dir.join("version")).unwrap();
    all_give(&place, &dir, expected);
    // Version 1.0 of the format.
    let old = place.dir.path().join("old");
    copied(&old, &layers, ".tar");
    all_give(&place, &old, expected);
    // An image for several platforms.
    let many = place.dir.path().join("many");
    copied(&many, &layers, "");
    fs::rename(
        many.join("manifest.json"),
        many.join(format!("{}.manifest.json", Sha::of(manifest.as_bytes()).hex())),
    )
    .unwrap();
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let of = |digest: &[u8], machine: &str| {
        let platform = format!(r#","platform":{{"os":"linux","architecture":"{machine}"}}"#);
        descriptor(super::image::MANIFEST, digest, &platform)
    };
    let list =
        format!(r#"{{"manifests":[{},{}]}}"#, of(b"left out", "s390x"), of(manifest.as_bytes(), machine));
    fs::write(many.join("manifest.json"), list).unwrap();
    all_give(&place, &many, expected);
}

#[test]
fn a_copied_directory_is_checked_like_any_image() {
    let place = Place::new();
    let layers = two_layers();
    let dir = place.dir.path().join("copied");
    copied(&dir, &layers, "");
    let blob = dir.join(Sha::of(&gzip(&layers[1])).hex());
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    all_refuse(&place, &dir, &format!("blob {} is damaged", blob.file_name().unwrap().to_string_lossy()));
    fs::remove_file(&blob).unwrap();
    all_refuse(&place, &dir, "is missing");
    let first = r#"{"schemaVersion":1,"name":"x","fsLayers":[{"blobSum":"sha256:0"}],"history":[]}"#;
    fs::write(dir.join("manifest.json"), first).unwrap();
    all_refuse(&place, &dir, "Docker's schema 1");
}

/// Writes an image of these layers as `docker save` did before 1.10. Returns the ids, lowest first.
fn saved_early(dir: &Path, layers: &[Vec<u8>], repositories: Option<&str>) -> Vec<String> {
    let ids: Vec<String> = (0..layers.len()).map(|i| Sha::of(format!("id {i}").as_bytes()).hex()).collect();
    for (i, layer) in layers.iter().enumerate() {
        let own = dir.join(&ids[i]);
        fs::create_dir_all(&own).unwrap();
        let parent =
            i.checked_sub(1).map(|below| format!(r#""parent":"{}","#, ids[below])).unwrap_or_default();
        let text = format!(
            r#"{{"id":"{}",{parent}"created":"2015-01-01T00:00:00Z","config":{{"Env":["A=b"],"User":"joe"}},"architecture":"amd64","os":"linux","Size":1}}"#,
            ids[i]
        );
        fs::write(own.join("json"), text).unwrap();
        fs::write(own.join("VERSION"), "1.0").unwrap();
        fs::write(own.join("layer.tar"), layer).unwrap();
    }
    if let Some(text) = repositories {
        fs::write(dir.join("repositories"), text.replace("TOP", &ids[ids.len() - 1]).replace("LOW", &ids[0]))
            .unwrap();
    }
    ids
}

#[test]
fn what_docker_saved_before_1_10_is_its_image() {
    let place = Place::new();
    let layers = two_layers();
    let expected = place.layered(&layers).unwrap().root;
    let make = |name: &str, repositories| {
        let dir = place.dir.path().join(name);
        (saved_early(&dir, &layers, repositories), dir)
    };
    let (ids, named) = make("named", Some(r#"{"busybox":{"latest":"TOP","1":"TOP"}}"#));
    all_give(&place, &named, expected);
    let warnings = place.import_dir(&named).unwrap().warnings;
    for words in ["before 1.10", "Env, User"] {
        assert!(warnings.iter().any(|w| w.contains(words)), "{warnings:?}");
    }
    // An image saved by its id.
    let (_, nameless) = make("nameless", None);
    all_give(&place, &nameless, expected);
    // The name of the lower layer selects only that layer.
    let (_, low) = make("low", Some(r#"{"busybox":{"latest":"LOW"}}"#));
    all_give(&place, &low, place.layered(&layers[..1]).unwrap().root);
    let (_, two) = make("two", Some(r#"{"one":{"a":"TOP"},"two":{"b":"LOW"}}"#));
    all_refuse(&place, &two, "several images (");
    // An incomplete image, and a cycle.
    fs::remove_dir_all(named.join(&ids[0])).unwrap();
    all_refuse(&place, &named, "is incomplete");
    let (ids, ring) = make("ring", Some(r#"{"busybox":{"latest":"TOP"}}"#));
    let text = fs::read_to_string(ring.join(&ids[0]).join("json")).unwrap();
    let parent = format!(r#"{{"parent":"{}","#, ids[1]);
    fs::write(ring.join(&ids[0]).join("json"), text.replacen('{', &parent, 1)).unwrap();
    all_refuse(&place, &ring, "more than 512 layers");
}

#[test]
fn what_only_resembles_an_image_is_a_root_filesystem() {
    let place = Place::new();
    for (name, text) in [
        ("manifest.json", r#"{"config":1}"#),
        ("manifest.json", r#"{"name":"app","manifests":[]}"#),
        ("repositories", "{}"),
        ("version", "12"),
    ] {
        let dir = place.dir.path().join("plain");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
        for imported in imports(&place, &dir) {
            assert!(place.list(&imported.unwrap().root).contains_key(format!("/{name}").as_bytes()));
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    // A root filesystem that contains an image's files.
    copied(&place.src(), &two_layers(), "");
    fs::create_dir(place.src().join("etc")).unwrap();
    fs::write(place.src().join("etc/hostname"), "root").unwrap();
    for imported in imports(&place, &place.src()) {
        assert!(place.list(&imported.unwrap().root).contains_key(&b"/manifest.json"[..]));
    }
}

#[test]
fn a_note_tells_that_an_import_hardly_looks_like_a_root_filesystem() {
    let place = Place::new();
    let make = |names: &[&str]| {
        fs::remove_dir_all(place.src()).unwrap();
        fs::create_dir(place.src()).unwrap();
        for name in names {
            fs::create_dir_all(place.src().join(name)).unwrap();
        }
    };
    let told = |words: &[&str]| {
        for imported in imports(&place, &place.src()) {
            let warnings = imported.unwrap().warnings;
            let all = warnings.join("\n");
            assert_eq!(warnings.len(), usize::from(!words.is_empty()), "{all}");
            assert!(words.iter().all(|word| all.contains(word)), "{words:?}: {all}");
        }
    };
    make(&["blobs", "index", "x"]);
    told(&["no bin, etc or usr", r#""blobs", "index", "x""#, "give the complete image"]);
    make(&["1", "2", "3", "4", "5", "6", "7"]);
    told(&[r#""5" and 2 more"#]);
    make(&["config", "rootfs/etc", "rootfs/usr"]);
    told(&["rootfs/ in it looks like one"]);
    make(&[]);
    told(&["only nothing"]);
    for root in ["bin", "etc", "usr"] {
        make(&[root]);
        told(&[]);
    }
}

/// A stream that returns a few bytes at a time and, if an error is given, fails at its end.
struct Slowly<'a>(&'a [u8], Option<&'static str>);

impl Read for Slowly<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.0.len().min(buf.len()).min(997);
        if let (0, Some(reason)) = (got, self.1) {
            return Err(std::io::Error::other(reason));
        }
        buf[..got].copy_from_slice(&self.0[..got]);
        self.0 = &self.0[got..];
        Ok(got)
    }
}

#[test]
fn a_stream_is_what_the_file_would_be() {
    let place = Place::new();
    furnish(&place.src());
    let tar = gnu_tar(&place.src(), &ALL);
    let expected = place.import_dir(&place.src()).unwrap().root;
    for bytes in [tar.clone(), gzip(&tar)] {
        let imported = import_reader(&place.store, Slowly(&bytes, None), &NoProgress).unwrap();
        assert_eq!(imported.root, expected);
    }
    // Larger than what is read before the kind is decided.
    let large = archive(&[(b"etc/", b'5', b"", b""), (b"etc/large", b'0', b"", &vec![7; 5 << 20])]);
    let file = place.dir.path().join("large.tar");
    fs::write(&file, &large).unwrap();
    assert_eq!(
        import_reader(&place.store, Slowly(&large, None), &NoProgress).unwrap().root,
        place.import_dir(&file).unwrap().root
    );
    for (bytes, failure, words) in [
        (&tar[..], Some("the pipe broke"), "the pipe broke"),
        (&tar[..100_000], None, "truncated"),
        (b"", None, "the archive is empty"),
        (b"", Some("the pipe broke"), "the pipe broke"),
        (b"no archive at all, but text that somebody piped", None, "truncated"),
    ] {
        let error = import_reader(&place.store, Slowly(bytes, failure), &NoProgress).unwrap_err();
        assert!(matches!(error, crate::StoreError::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        assert_eq!(place.staged(), 0);
    }
}
