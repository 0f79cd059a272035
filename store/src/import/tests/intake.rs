//! Sources that could block an import, or make it write data that is not needed.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::image::{CONFIG, LAYER, Layout, MANIFEST, descriptor, gzip, two_layers};
use super::*;
use crate::import::sha::Sha;

/// An import with a limit of twenty seconds. Its thread is left blocked if it takes longer.
fn import_soon(place: &Place, path: PathBuf) -> Result<Imported> {
    let (done, result) = channel();
    let store = place.store.clone();
    std::thread::spawn(move || done.send(import_path(&store, &path, &NoProgress)));
    result.recv_timeout(Duration::from_secs(20)).expect("the import waits for somebody")
}

fn refused(place: &Place, path: PathBuf, words: &str) {
    let error = import_soon(place, path).unwrap_err().to_string();
    assert!(error.contains(words), "{words}: {error}");
    assert_eq!(place.staged(), 0);
}

fn make_fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap();
}

#[test]
fn what_is_neither_file_nor_directory_is_refused_at_once() {
    let place = Place::new();
    let here = |name: &str| place.dir.path().join(name);
    make_fifo(&here("fifo"));
    symlink("fifo", here("link")).unwrap();
    let _socket = UnixListener::bind(here("socket")).unwrap();
    for (path, words) in [
        (here("fifo"), "it is a FIFO"),
        (here("link"), "it is a FIFO"),
        (here("socket"), "it is a socket"),
        ("/dev/zero".into(), "it is a character device"),
    ] {
        refused(&place, path, words);
    }
    let trees = Trees::new(place.store.clone());
    let empty = import_soon(&place, place.src()).unwrap().root;
    let (done, result) = channel();
    let fifo = here("fifo");
    std::thread::spawn(move || {
        done.send(import_upper(&trees, &trees.root(&empty).unwrap(), &fifo, Mounts::LeaveOut, &NoProgress))
    });
    let error = result.recv_timeout(Duration::from_secs(20)).unwrap().unwrap_err().to_string();
    assert!(error.contains("it is a FIFO"), "{error}");
}

#[test]
fn blobs_that_are_not_files_of_the_image_are_refused_at_once() {
    let place = Place::new();
    let layers = two_layers();
    let outside = place.dir.path().join("outside");
    fs::write(&outside, &layers[0]).unwrap();
    let layout = Layout::of(place.dir.path().join("image"), &layers);
    let blob = layout.path(&layers[0]);
    let replaced = |make: &dyn Fn(&Path), words: &str| {
        fs::remove_file(&blob).unwrap();
        make(&blob);
        refused(&place, layout.dir.clone(), words);
    };
    replaced(&|path| make_fifo(path), "is not a regular file");
    replaced(&|path| symlink(&outside, path).unwrap(), "is a link that leads out of the image");
    replaced(&|path| symlink("../../../outside", path).unwrap(), "is a link that leads out of the image");
    replaced(&|path| symlink(path.file_name().unwrap(), path).unwrap(), "is a link that leads nowhere");
    replaced(&|path| symlink("/dev/zero", path).unwrap(), "is a link that leads out of the image");
    // A link to another blob of the image works as well.
    replaced(&|path| fs::write(path, &layers[0][..512]).unwrap(), "should have");
    fs::rename(&blob, layout.dir.join("elsewhere")).unwrap();
    fs::write(layout.dir.join("elsewhere"), &layers[0]).unwrap();
    symlink("../../elsewhere", &blob).unwrap();
    import_soon(&place, layout.dir.clone()).unwrap();
    // At the top of a root filesystem, files that only look like an image's are ignored.
    for name in ["oci-layout", "index.json", "manifest.json"] {
        symlink("/nowhere/at/all", place.src().join(name)).unwrap();
    }
    import_soon(&place, place.src()).unwrap();
    fs::remove_file(place.src().join("manifest.json")).unwrap();
    make_fifo(&place.src().join("manifest.json"));
    let root = import_soon(&place, place.src()).unwrap().root;
    assert_eq!(place.list(&root)[&b"/manifest.json"[..]].kind(), FileKind::Fifo);
}

/// The disk space that the store's unnamed files use, in bytes.
fn unnamed(store: &Store) -> u64 {
    let staging = store.layout().staging();
    let ours = |path: &PathBuf| fs::read_link(path).is_ok_and(|target| target.starts_with(&staging));
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten().map(|entry| entry.path());
    open.filter(ours).map(|path| fs::metadata(path).map_or(0, |found| found.blocks() * 512)).sum()
}

/// A body of `mebibytes` MiB of one byte.
fn much(byte: u8, mebibytes: usize) -> Vec<u8> {
    vec![byte; mebibytes << 20]
}

/// The result of an import, and the maximum disk space in bytes that its unnamed files used.
fn imported_watched(place: &Place, archive: &[u8]) -> (Result<Imported>, u64) {
    let file = place.dir.path().join("archive");
    fs::write(&file, archive).unwrap();
    let (over, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let imported = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(unnamed(&place.store), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let imported = import_path(&place.store, &file, &NoProgress);
        over.store(true, Ordering::Relaxed);
        imported
    });
    (imported, most.into_inner())
}

#[test]
fn members_that_grow_by_decompression_are_not_written_before_they_are_needed() {
    let place = Place::new();
    let id = "a".repeat(64);
    let member = format!("{id}/layer.tar");
    // Not an image, though it begins like one: zeros are holes, and stay holes.
    let bomb = archive(&[(member.as_bytes(), b'0', b"", &much(0, 96)), (b"etc/", b'5', b"", b"")]);
    let (imported, most) = imported_watched(&place, &gzip(&bomb));
    let list = place.list(&imported.unwrap().root);
    assert!(list.contains_key(format!("/{member}").as_bytes()));
    assert!(most < 8 << 20, "{most} bytes for zeros");
    // An image with a member that it does not refer to.
    let config = br#"{"rootfs":{"diff_ids":[]}}"#;
    let layer = archive(&[(b"etc/", b'5', b"", b""), (b"zeros", b'0', b"", &much(0, 96))]);
    let list = r#"[{"Config":"config.json","Layers":["real.tar"]}]"#;
    let image = |layer: &[u8]| {
        gzip(&archive(&[
            (member.as_bytes(), b'0', b"", &much(b'x', 96)),
            (b"real.tar", b'0', b"", layer),
            (b"config.json", b'0', b"", config),
            (b"manifest.json", b'0', b"", list.as_bytes()),
        ]))
    };
    let (imported, most) = imported_watched(&place, &image(&layer));
    assert_eq!(place.list(&imported.unwrap().root).len(), 3);
    assert!(most < 8 << 20, "{most} bytes for what is not referred to, and for zeros of a layer");
    // A referenced file is checked against its descriptor.
    let body = much(b'x', 96);
    let blob = format!("blobs/sha256/{}", Sha::of(&body).to_string().replace("sha256:", ""));
    let config = descriptor(CONFIG, b"{}", "");
    let layer = descriptor(LAYER, &body, "").replace(&body.len().to_string(), "1000");
    let manifest = format!(r#"{{"config":{config},"layers":[{layer}]}}"#);
    let name = |bytes: &[u8]| format!("blobs/{}", Sha::of(bytes).to_string().replace(':', "/"));
    let index = format!(r#"{{"manifests":[{}]}}"#, descriptor(MANIFEST, manifest.as_bytes(), ""));
    let (imported, most) = imported_watched(
        &place,
        &gzip(&archive(&[
            (blob.as_bytes(), b'0', b"", &body),
            (name(b"{}").as_bytes(), b'0', b"", b"{}"),
            (name(manifest.as_bytes()).as_bytes(), b'0', b"", manifest.as_bytes()),
            (b"index.json", b'0', b"", index.as_bytes()),
            (b"oci-layout", b'0', b"", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ])),
    );
    let error = imported.unwrap_err().to_string();
    assert!(error.contains("should have 1000 bytes, but has 100663296"), "{error}");
    assert!(most < 8 << 20, "{most} bytes for a blob that is too large");
    assert_eq!(place.staged(), 0);
}

#[test]
fn documents_without_end_are_refused() {
    let place = Place::new();
    let document = [&b"{"[..], &much(b' ', 4)[1..]].concat();
    let names: Vec<String> = (0..17).map(|i| format!("blobs/{i}")).collect();
    let members: Vec<Raw<'_>> =
        names.iter().map(|name| (name.as_bytes(), b'0', &b""[..], &document[..])).collect();
    let (imported, _) = imported_watched(&place, &gzip(&archive(&members)));
    let error = imported.unwrap_err().to_string();
    assert!(error.contains("its documents have more than"), "{error}");
}

/// A progress that cancels the work once it has begun.
struct Impatient(AtomicU64);

impl Progress for Impatient {
    fn add(&self, _bytes: u64, _entries: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

#[test]
fn an_import_that_is_stopped_leaves_nothing() {
    let place = Place::new();
    let noise: Vec<u8> = (0..8_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for name in ["one", "two"] {
        fs::write(place.src().join(name), &noise).unwrap();
    }
    let tar = gnu_tar(&place.src(), &[]);
    let (plain, packed) = (place.dir.path().join("plain.tar"), place.dir.path().join("packed.tar.gz"));
    fs::write(&plain, &tar).unwrap();
    fs::write(&packed, gzip(&tar)).unwrap();
    let layout = Layout::of(place.dir.path().join("image"), &two_layers());
    let image = place.dir.path().join("image.tar.gz");
    fs::write(&image, gzip(&gnu_tar(&layout.dir, &["--sort=name"]))).unwrap();
    let before = place.store.files().list(place.store.objects().dir()).unwrap();
    for source in [place.src(), plain, packed, layout.dir, image] {
        let stopped = import_path(&place.store, &source, &Impatient(AtomicU64::new(0)));
        assert!(matches!(stopped, Err(StoreError::Cancelled)), "{}: {stopped:?}", source.display());
        assert_eq!(place.staged(), 0, "{}", source.display());
    }
    assert_eq!(place.store.files().list(place.store.objects().dir()).unwrap(), before);
}
