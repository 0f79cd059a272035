//! Images of layers, generated here: layouts, archives of layouts, `docker save` archives.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::import::sha::Sha;

/// An image layout under construction.
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

/// A descriptor of a blob.
pub(super) fn descriptor(kind: &str, blob: &[u8], more: &str) -> String {
    format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}{more}}}"#, Sha::of(blob), blob.len())
}

pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Layout {
    fn new(dir: PathBuf) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir }
    }

    pub(super) fn path(&self, blob: &[u8]) -> PathBuf {
        self.dir.join("blobs").join(Sha::of(blob).to_string().replace(':', "/"))
    }

    fn blob(&self, kind: &str, bytes: &[u8], more: &str) -> String {
        fs::write(self.path(bytes), bytes).unwrap();
        descriptor(kind, bytes, more)
    }

    /// The bytes of a manifest for these layers (media type, blob, uncompressed archive).
    fn manifest(&self, architecture: &str, layers: &[(&str, Vec<u8>, &[u8])]) -> String {
        let diff_ids: Vec<String> =
            layers.iter().map(|(_, _, tar)| format!("\"{}\"", Sha::of(tar))).collect();
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"Env":["PATH=/bin","A=b"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            diff_ids.join(",")
        );
        let config = self.blob(CONFIG, config.as_bytes(), "");
        let layers: Vec<String> = layers.iter().map(|(kind, blob, _)| self.blob(kind, blob, "")).collect();
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(","))
    }

    fn index(&self, manifests: &[String]) {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, manifests.join(","));
        fs::write(self.dir.join("index.json"), index).unwrap();
    }

    /// A layout with one image whose layers are not compressed.
    pub(super) fn of(dir: PathBuf, layers: &[Vec<u8>]) -> Layout {
        let layout = Layout::new(dir);
        let layers: Vec<_> = layers.iter().map(|tar| (LAYER, tar.clone(), &tar[..])).collect();
        let manifest = layout.manifest("amd64", &layers);
        layout.index(&[layout.blob(MANIFEST, manifest.as_bytes(), "")]);
        layout
    }
}

fn names(place: &Place, root: &ObjectId) -> Vec<String> {
    place.list(root).into_keys().map(|path| String::from_utf8(path).unwrap()).collect()
}

impl Place {
    pub(super) fn import_dir(&self, dir: &Path) -> Result<Imported> {
        import_path(&self.store, dir, &NoProgress)
    }

    /// Imports an image of these layers.
    pub(super) fn layered(&self, layers: &[Vec<u8>]) -> Result<Imported> {
        let dir = tempfile::tempdir().unwrap();
        self.import_dir(&Layout::of(dir.path().join("image"), layers).dir)
    }

    fn refused(&self, dir: &Path, words: &str) {
        let error = self.import_dir(dir).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(self.staged(), 0);
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Two layers with many kinds of changes.
pub(super) fn two_layers() -> Vec<Vec<u8>> {
    let lower = archive(&[
        (b"etc/", b'5', b"", b""),
        (b"etc/gone", b'0', b"", b"gone"),
        (b"etc/kept", b'0', b"", b"kept"),
        (b"etc/changed", b'0', b"", b"old"),
        (b"opaque/", b'5', b"", b""),
        (b"opaque/old/", b'5', b"", b""),
        (b"opaque/old/deep", b'0', b"", b"1"),
        (b"again/", b'5', b"", b""),
        (b"again/old", b'0', b"", b"1"),
        (b"dir/", b'5', b"", b""),
        (b"dir/x", b'0', b"", b"1"),
        (b"usr/lib/", b'5', b"", b""),
        (b"lib", b'2', b"usr/lib", b""),
    ]);
    let upper = archive(&[
        (b"etc/.wh.gone", b'0', b"", b""),
        (b"etc/changed", b'0', b"", b"new"),
        (b"etc/link", b'1', b"etc/kept", b""),
        (b"opaque/new", b'0', b"", b"2"),
        (b"opaque/.wh..wh..opq", b'0', b"", b""),
        (b"again/new", b'0', b"", b"2"),
        (b".wh.again", b'0', b"", b""),
        (b"dir", b'0', b"", b"a file now"),
        (b"lib/libc", b'0', b"", b"l"),
        (b".wh.never", b'0', b"", b""),
    ]);
    vec![lower, upper]
}

const MERGED: [&str; 14] = [
    "/",
    "/again",
    "/again/new",
    "/dir",
    "/etc",
    "/etc/changed",
    "/etc/kept",
    "/etc/link",
    "/lib",
    "/opaque",
    "/opaque/new",
    "/usr",
    "/usr/lib",
    "/usr/lib/libc",
];

#[test]
fn layers_lie_over_one_another_wherever_their_whiteouts_stand() {
    let place = Place::new();
    let layers = two_layers();
    let imported = place.layered(&layers).unwrap();
    assert_eq!(names(&place, &imported.root), MERGED);
    let list = place.list(&imported.root);
    assert_eq!(place.content(&list[&b"/etc/changed"[..]]), b"new");
    assert_eq!(list[&b"/etc/link"[..]].ino, list[&b"/etc/kept"[..]].ino);
    assert_eq!(list[&b"/dir"[..]].kind(), FileKind::Regular);
    // A directory without an entry in the upper layer keeps its attributes.
    assert_eq!((list[&b"/usr/lib"[..]].uid, list[&b"/usr/lib"[..]].mtime.secs), (1, 100));
    assert!(imported.warnings.iter().any(|w| w.contains("Env")), "{:?}", imported.warnings);
    // The same members in another order.
    let members: [Raw<'_>; 10] = [
        (b".wh.never", b'0', b"", b""),
        (b"lib/libc", b'0', b"", b"l"),
        (b".wh.again", b'0', b"", b""),
        (b"again/new", b'0', b"", b"2"),
        (b"dir", b'0', b"", b"a file now"),
        (b"opaque/.wh..wh..opq", b'0', b"", b""),
        (b"opaque/new", b'0', b"", b"2"),
        (b"etc/link", b'1', b"etc/kept", b""),
        (b"etc/changed", b'0', b"", b"new"),
        (b"etc/.wh.gone", b'0', b"", b""),
    ];
    let shuffled = place.layered(&[layers[0].clone(), archive(&members)]).unwrap();
    assert_eq!((shuffled.root, shuffled.stats.objects_new), (imported.root, 0));
    // A third layer hides what the second one added.
    let third = archive(&[(b"etc/.wh.changed", b'0', b"", b""), (b".wh.opaque", b'0', b"", b"")]);
    let list = place.list(&place.layered(&[layers, vec![third]].concat()).unwrap().root);
    assert!(!list.contains_key(&b"/etc/changed"[..]) && !list.contains_key(&b"/opaque"[..]));
}

#[test]
fn every_form_of_an_image_gives_the_same_tree() {
    let place = Place::new();
    let layers = two_layers();
    let expected = place.layered(&layers).unwrap().root;
    let dir = tempfile::tempdir().unwrap();
    // Compressed layers, a nested index, and other platforms.
    let layout = Layout::new(dir.path().join("oci"));
    let kinds: Vec<_> = vec![
        ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layers[0]), &layers[0][..]),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            zstd::encode_all(&layers[1][..], 1).unwrap(),
            &layers[1][..],
        ),
    ];
    let ours = layout.manifest("amd64", &kinds);
    let other = layout.manifest("s390x", &kinds[..1]);
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let platform = |name: &str| format!(r#","platform":{{"os":"linux","architecture":"{name}"}}"#);
    let inner = format!(
        r#"{{"manifests":[{},{},{}]}}"#,
        layout.blob(MANIFEST, other.as_bytes(), &platform("s390x")),
        layout.blob(MANIFEST, ours.as_bytes(), &platform(machine)),
        descriptor(MANIFEST, b"left out of the copy", &platform("riscv64")),
    );
    layout.index(&[layout.blob(INDEX, inner.as_bytes(), "")]);
    assert_eq!(place.import_dir(&layout.dir).unwrap().root, expected);
    // The layout as an archive: plain, sparse, compressed, from a stream.
    for options in [&["--format=gnu"][..], &["--format=pax", "--sort=name"]] {
        let tar = gnu_tar(&layout.dir, options);
        let file = dir.path().join("image.tar");
        fs::write(&file, &tar).unwrap();
        assert_eq!(place.import_dir(&file).unwrap().root, expected, "{options:?}");
        fs::write(&file, gzip(&tar)).unwrap();
        assert_eq!(place.import_dir(&file).unwrap().root, expected, "{options:?}, compressed");
        assert_eq!(place.import(&tar).unwrap().root, expected, "{options:?}, a stream");
    }
    // As written by `docker save`: a link in place of a layer shared with another image.
    let saved = dir.path().join("saved");
    fs::create_dir_all(saved.join("a".repeat(64))).unwrap();
    fs::create_dir_all(saved.join("b".repeat(64))).unwrap();
    let config = fs::read(layout.dir.join("blobs/sha256").join(config_digest(&ours))).unwrap();
    let name = Sha::of(&config).to_string().replace("sha256:", "");
    fs::write(saved.join(format!("{name}.json")), &config).unwrap();
    fs::write(saved.join("a".repeat(64)).join("layer.tar"), &layers[0]).unwrap();
    fs::write(saved.join("under-another-name.tar"), &layers[1]).unwrap();
    symlink("../under-another-name.tar", saved.join("b".repeat(64)).join("layer.tar")).unwrap();
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let list = format!(
        r#"[{{"Config":"{name}.json","RepoTags":["x:1"],"Layers":["{a}/layer.tar","{b}/layer.tar"]}}]"#
    );
    fs::write(saved.join("manifest.json"), list).unwrap();
    assert_eq!(place.import_dir(&saved).unwrap().root, expected, "docker save, unpacked");
    assert_eq!(place.import(&gnu_tar(&saved, &["--sort=name"])).unwrap().root, expected, "docker save");
    assert_eq!(place.staged(), 0);
}

fn config_digest(manifest: &str) -> String {
    let at = manifest.find("sha256:").unwrap() + 7;
    manifest[at..at + 64].to_owned()
}

#[test]
fn damaged_blobs_are_named() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let make = |name: &str| Layout::of(dir.path().join(name), &layers);
    let layout = make("layer");
    let path = layout.path(&layers[1]);
    let mut bytes = layers[1].clone();
    bytes[600] ^= 1;
    fs::write(&path, bytes).unwrap();
    place.refused(
        &layout.dir,
        &format!("blobs/{} is damaged", Sha::of(&layers[1]).to_string().replace(':', "/")),
    );
    fs::remove_file(&path).unwrap();
    place.refused(&layout.dir, "is missing");
    // The blob matches its name, but not the configuration's diff id.
    let layout = Layout::new(dir.path().join("diff-id"));
    let manifest = layout.manifest("amd64", &[(LAYER, layers[0].clone(), &layers[1])]);
    layout.index(&[layout.blob(MANIFEST, manifest.as_bytes(), "")]);
    place.refused(&layout.dir, "is damaged: its digest should be");
    // Damage to the manifest and the configuration.
    let layout = make("manifest");
    let index = fs::read_to_string(layout.dir.join("index.json")).unwrap();
    let manifest = layout.dir.join("blobs/sha256").join(config_digest(&index));
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("schemaVersion\":2", "schemaVersion\":3")).unwrap();
    place.refused(&layout.dir, "is damaged");
    fs::write(&manifest, text.clone() + " ").unwrap();
    place.refused(&layout.dir, "bytes, but has");
    fs::write(&manifest, &text).unwrap();
    let config = layout.dir.join("blobs/sha256").join(config_digest(&text));
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("A=b", "A=c")).unwrap();
    place.refused(&layout.dir, "is damaged");
}

#[test]
fn images_for_other_machines_are_refused_with_a_list() {
    let place = Place::new();
    let dir = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let layout = Layout::new(dir.path().join("oci"));
    let manifest = layout.manifest("s390x", &[(LAYER, layers[0].clone(), &layers[0])]);
    let of = |name: &str, more: &str| {
        let more = format!(r#","platform":{{"os":"linux","architecture":"{name}"{more}}}"#);
        layout.blob(MANIFEST, manifest.as_bytes(), &more)
    };
    layout.index(&[of("s390x", ""), of("arm", r#","variant":"v7""#)]);
    place.refused(&layout.dir, "available: linux/s390x, linux/arm/v7");
    // If it is the only image, it is imported with a warning.
    layout.index(&[layout.blob(MANIFEST, manifest.as_bytes(), "")]);
    let imported = place.import_dir(&layout.dir).unwrap();
    assert!(imported.warnings.iter().any(|w| w.contains("linux/s390x")), "{:?}", imported.warnings);
    // Two tags.
    let machine = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let tag = |name: &str, manifest: &str| {
        let more = format!(
            r#","platform":{{"os":"linux","architecture":"{machine}"}},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#
        );
        layout.blob(MANIFEST, manifest.as_bytes(), &more)
    };
    let second = layout.manifest(machine, &[(LAYER, layers[1].clone(), &layers[1])]);
    layout.index(&[tag("one", &manifest), tag("two", &second)]);
    place.refused(&layout.dir, "(one)");
    layout.index(&[tag("one", &manifest), tag("two", &manifest)]);
    place.import_dir(&layout.dir).unwrap();
    layout.index(&[]);
    place.refused(&layout.dir, "available: nothing");
    // Layers that are not available.
    for (kind, words) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is a foreign layer"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "is a foreign layer"),
        ("application/vnd.example.chart", "is not a root filesystem"),
    ] {
        let manifest = layout.manifest("amd64", &[(kind, layers[0].clone(), &layers[0])]);
        layout.index(&[layout.blob(MANIFEST, manifest.as_bytes(), "")]);
        place.refused(&layout.dir, words);
    }
    // An index cannot contain itself; deep nesting and a wrong digest are possible.
    let mut inner = layout.blob(MANIFEST, manifest.as_bytes(), "");
    for _ in 0..12 {
        inner = layout.blob(INDEX, format!(r#"{{"manifests":[{inner}]}}"#).as_bytes(), "");
    }
    layout.index(&[inner]);
    place.refused(&layout.dir, "nested too deeply");
    layout.index(&[descriptor(MANIFEST, b"x", "").replace("sha256:", "sha512:")]);
    place.refused(&layout.dir, "only sha256");
    layout.index(&[descriptor(MANIFEST, b"x", "").replace("sha256:", "sha256:../../../etc/passwd")]);
    place.refused(&layout.dir, "only sha256");
    fs::write(layout.dir.join("index.json"), "{").unwrap();
    place.refused(&layout.dir, "index.json cannot be read");
}

#[test]
fn whiteouts_that_name_nothing_are_refused() {
    let place = Place::new();
    let base = archive(&[(b"d/", b'5', b"", b""), (b"d/f", b'0', b"", b"f"), (b"s", b'2', b"/nowhere", b"")]);
    let with = |name: &[u8]| place.layered(&[base.clone(), archive(&[(name, b'0', b"", b"")])]);
    for name in
        [&b"d/.wh."[..], b"d/.wh..", b"d/.wh...", b".wh.", b"../.wh.d", b".wh.d/x", b"s/x", b"d/f/.wh.x"]
    {
        let error = with(name).unwrap_err().to_string();
        assert!(error.contains(&*String::from_utf8_lossy(name)), "{error}");
    }
    // AUFS's own records, and whiteouts of nothing.
    let imported = with(b"d/.wh..wh.plnk/1").unwrap();
    assert!(imported.warnings.iter().any(|w| w.contains("AUFS")), "{:?}", imported.warnings);
    assert_eq!(names(&place, &imported.root), ["/", "/d", "/d/f", "/s"]);
    assert_eq!(with(b"d/.wh..karapace").unwrap().root, imported.root);
    // In an archive that is not an image, such a name is an ordinary name.
    let plain = place.import(&archive(&[(b"etc/.wh.x", b'0', b"", b"")])).unwrap();
    assert_eq!(names(&place, &plain.root), ["/", "/etc", "/etc/.wh.x"]);
}

#[test]
fn a_root_filesystem_that_looks_like_an_image_is_not_one() {
    let place = Place::new();
    let tar = archive(&[(b"manifest.json", b'0', b"", b"[]"), (b"etc/x", b'0', b"", b"")]);
    assert_eq!(names(&place, &place.import(&tar).unwrap().root), ["/", "/etc", "/etc/x", "/manifest.json"]);
    let file = place.dir.path().join("src/x.tar");
    fs::write(&file, gzip(&tar)).unwrap();
    assert_eq!(names(&place, &place.import_dir(&file).unwrap().root).len(), 4);
}

#[test]
fn a_layer_may_lack_its_end_marker_but_nothing_of_a_member() {
    let place = Place::new();
    let whole = archive(&[(b"d/", b'5', b"", b""), (b"d/f", b'0', b"", b"content")]);
    let expected = place.layered(std::slice::from_ref(&whole)).unwrap().root;
    let member = whole.len() - 1024 - 512;
    for cut in [member + 7, member + 300, whole.len() - 1024, whole.len() - 512] {
        assert_eq!(place.layered(&[whole[..cut].to_vec()]).unwrap().root, expected, "{cut}");
    }
    for cut in [member - 1, member + 6, whole.len() - 600] {
        let layered = place.layered(&[whole[..cut].to_vec()]);
        assert!(layered.is_err_and(|e| e.to_string().contains("truncated")), "{cut}");
    }
}
