//! Imports of real archives and directories, and of hostile archives.

mod acl;
mod changing;
mod forms;
mod hostile;
mod image;
mod intake;
mod layers;
mod members;
mod upper;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::inode::{Body, FileKind, InodeRecord, Timestamp};
use crate::progress::NoProgress;
use crate::tar::{Encoder, EntryHeader, Records, TarHash, identity_hash};
use crate::tree::{Trees, walk};

struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        fs::create_dir(dir.path().join("src")).unwrap();
        Place { dir, store }
    }

    fn src(&self) -> std::path::PathBuf {
        self.dir.path().join("src")
    }

    fn import(&self, archive: &[u8]) -> Result<Imported> {
        import_reader(&self.store, archive, &NoProgress)
    }

    fn list(&self, root: &ObjectId) -> BTreeMap<Vec<u8>, InodeRecord> {
        let trees = Trees::new(self.store.clone());
        let mut all = BTreeMap::new();
        walk(&trees, &trees.root(root).unwrap(), &mut |path, record| {
            all.insert(path.to_vec(), record.clone());
            Ok(())
        })
        .unwrap();
        all
    }

    fn tar_hash(&self, root: &ObjectId) -> TarHash {
        let trees = Trees::new(self.store.clone());
        let root = trees.root(root).unwrap();
        identity_hash(&trees, None, &root).unwrap()
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.store.layout().staging()).unwrap().count()
    }

    fn content(&self, record: &InodeRecord) -> Vec<u8> {
        let Body::Regular(content) = &record.body else { panic!("not a file") };
        let mut bytes = vec![0; content.size as usize];
        let mut at = 0;
        while at < bytes.len() {
            let got = crate::content::read_at(&self.store, content, at as u64, &mut bytes[at..]).unwrap();
            assert!(got > 0);
            at += got;
        }
        bytes
    }
}

fn import_reader(
    store: &Arc<Store>,
    reader: impl std::io::Read + Send,
    progress: &dyn Progress,
) -> Result<Imported> {
    import_stream(store, reader, "the stream", progress)
}

/// Name, type flag, link target, body.
type Raw<'a> = (&'a [u8], u8, &'a [u8], &'a [u8]);

/// A small archive.
fn archive(members: &[Raw<'_>]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    for (path, type_flag, link, body) in members {
        let header = EntryHeader {
            path,
            link,
            type_flag: *type_flag,
            mode: if *type_flag == b'5' { 0o755 } else { 0o644 },
            uid: 1,
            gid: 2,
            size: body.len() as u64,
            mtime: Timestamp { secs: 100, nanos: 0 },
            device: (0, 0),
        };
        encoder.entry(&header, Records::new()).unwrap();
        encoder.body(body).unwrap();
    }
    encoder.finish().unwrap()
}

fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).args(options).arg("-c").arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Fills a directory with every kind of entry that an ordinary user can make, and with devices if we may.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::write(dir.join("usr/bin/tool"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("usr/bin/tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(dir.join("usr/bin/tool"), dir.join("usr/bin/also")).unwrap();
    fs::hard_link(dir.join("usr/bin/tool"), dir.join("zz")).unwrap();
    fs::write(dir.join("usr.txt"), b"sorts between usr and usr/bin by bytes").unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"caf\xe9\n")), b"latin").unwrap();
    fs::write(dir.join("n".repeat(255)), vec![7; 3 << 20]).unwrap();
    symlink("/nowhere/../x", dir.join("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), 0o640.into()).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    xattr(&dir.join("usr.txt"), "user.note", b"a\0b");
    if rustix::process::getuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("null"), kind, 0o666.into(), device).unwrap();
        // cap_net_raw+ep, as written by setcap.
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr(&dir.join("usr.txt"), "security.capability", &capability);
        xattr(&dir.join("link"), "trusted.on-a-link", b"1");
        rustix::fs::chownat(
            rustix::fs::CWD,
            dir.join("usr.txt"),
            Some(rustix::fs::Uid::from_raw(3_000_000)),
            Some(rustix::fs::Gid::from_raw(12)),
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        // chown removed the capability.
        xattr(&dir.join("usr.txt"), "security.capability", &capability);
    }
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// Compares a record with the original on disk.
fn assert_like(record: &InodeRecord, path: &Path) {
    let disk = fs::symlink_metadata(path).unwrap();
    let path = path.display();
    assert_eq!(record.mode, disk.mode(), "{path}");
    assert_eq!((record.uid, record.gid), (disk.uid(), disk.gid()), "{path}");
    let mtime = Timestamp { secs: disk.mtime(), nanos: disk.mtime_nsec() as u32 };
    assert_eq!(record.mtime, mtime, "{path}");
    assert_eq!((record.atime, record.ctime), (mtime, mtime), "{path}");
    assert_eq!(u64::from(record.nlink), disk.nlink(), "{path}");
    assert_eq!(record.rdev, disk.rdev(), "{path}");
}

fn assert_furnished(place: &Place, root: &ObjectId) {
    let list = place.list(root);
    let src = place.src();
    for (path, record) in &list {
        let path = src.join(std::ffi::OsStr::from_bytes(&path[1..]));
        assert_like(record, &path);
        if record.kind() == FileKind::Regular {
            assert!(place.content(record) == fs::read(&path).unwrap(), "{}", path.display());
        }
        if record.kind() == FileKind::Symlink {
            let Body::Symlink(target) = &record.body else { panic!() };
            assert_eq!(&**target, b"/nowhere/../x");
        }
    }
    let expected = Command::new("find").arg(&src).args(["-printf", "x"]).output().unwrap().stdout.len();
    assert_eq!(list.len(), expected);
    assert_eq!(list[&b"/usr/bin/also"[..]].ino, list[&b"/zz"[..]].ino);
    assert_eq!(list[&b"/usr.txt"[..]].xattrs.get(b"user.note"), Some(&b"a\0b"[..]));
    if rustix::process::getuid().is_root() {
        assert!(list[&b"/usr.txt"[..]].xattrs.get(b"security.capability").is_some());
        assert_eq!(list[&b"/link"[..]].xattrs.get(b"trusted.on-a-link"), Some(&b"1"[..]));
    }
    let Body::Regular(sparse) = &list[&b"/sparse"[..]].body else { panic!() };
    assert_eq!(sparse.data_ranges(), [(5 << 20, 64 << 10)]);
    let inos: Vec<_> = list
        .iter()
        .map(|(p, r)| (p.split(|&b| b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>(), r))
        .collect();
    let mut seen = std::collections::HashSet::new();
    let mut in_order = inos.clone();
    in_order.sort_by(|a, b| a.0.cmp(&b.0));
    let firsts: Vec<u64> = in_order.iter().map(|(_, r)| r.ino).filter(|ino| seen.insert(*ino)).collect();
    assert_eq!(firsts, (1..=firsts.len() as u64).collect::<Vec<_>>());
}

const ALL: [&str; 6] =
    ["--format=pax", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--sort=name"];

#[test]
fn a_real_archive_and_its_directory_are_kept_whole() {
    let place = Place::new();
    furnish(&place.src());
    let from_directory = import_path(&place.store, &place.src(), &NoProgress).unwrap();
    assert_eq!(from_directory.warnings, Vec::<String>::new());
    assert_furnished(&place, &from_directory.root);
    let from_archive = place.import(&gnu_tar(&place.src(), &ALL)).unwrap();
    assert_furnished(&place, &from_archive.root);
    assert_eq!(from_archive.root, from_directory.root);
    assert_eq!(from_archive.stats.objects_new, 0);
    assert_eq!(from_archive.stats.entries, from_directory.stats.entries);
    assert_eq!(place.staged(), 0);
}

#[test]
fn the_order_of_an_archive_does_not_matter() {
    let place = Place::new();
    let members: [Raw<'_>; 7] = [
        (b"a/", b'5', b"", b""),
        (b"a/one", b'0', b"", b"1"),
        (b"a/two", b'1', b"a/one", b""),
        (b"a.txt", b'0', b"", b"t"),
        (b"b/", b'5', b"", b""),
        (b"b/link", b'2', b"../a", b""),
        (b"b/three", b'1', b"./a/two", b""),
    ];
    let one = place.import(&archive(&members)).unwrap();
    let mut shuffled = members;
    for step in 1..members.len() {
        shuffled.rotate_left(step);
        shuffled.swap(0, step);
        let other = place.import(&archive(&shuffled)).unwrap();
        assert_eq!((other.root, other.stats.objects_new), (one.root, 0), "{step}");
    }
    assert_eq!(place.tar_hash(&one.root), place.tar_hash(&one.root));
    let list = place.list(&one.root);
    assert_eq!(list[&b"/b/three"[..]].nlink, 3);
}

#[test]
fn the_identity_covers_everything_but_times() {
    let place = Place::new();
    let hash = |members: &[Raw<'_>]| place.tar_hash(&place.import(&archive(members)).unwrap().root);
    let all = [
        hash(&[(b"f", b'0', b"", b"1")]),
        hash(&[(b"f", b'0', b"", b"2")]),
        hash(&[(b"g", b'0', b"", b"1")]),
        hash(&[(b"f", b'2', b"1", b"")]),
        hash(&[(b"f", b'2', b"2", b"")]),
        hash(&[(b"f", b'5', b"", b"")]),
        hash(&[(b"f", b'6', b"", b"")]),
        hash(&[(b"f", b'0', b"", b"1"), (b"g", b'0', b"", b"1")]),
        hash(&[(b"f", b'0', b"", b"1"), (b"g", b'1', b"f", b"")]),
    ];
    let different: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(different.len(), all.len());
    fs::write(place.src().join("f"), b"1").unwrap();
    let import = || import_path(&place.store, &place.src(), &NoProgress).unwrap().root;
    let one = import();
    let file = fs::File::options().write(true).open(place.src().join("f")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let two = import();
    assert_ne!(one, two);
    assert_eq!(place.tar_hash(&one), place.tar_hash(&two));
}

#[test]
fn compressed_archives_are_told_by_content() {
    let place = Place::new();
    let plain = archive(&[(b"f", b'0', b"", &[9; 700_000]), (b"g", b'0', b"", b"g")]);
    let expected = place.import(&plain).unwrap().root;
    let (first, second) = plain.split_at(300_000);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    type Pack<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let kinds: [Pack<'_>; 3] = [&gzip, &xz, &zstd];
    for (i, pack) in kinds.iter().enumerate() {
        assert_eq!(place.import(&pack(&plain)).unwrap().root, expected, "{i}");
        let parts = [pack(first), pack(second)].concat();
        assert_eq!(place.import(&parts).unwrap().root, expected, "{i} in two members");
        let packed = pack(&plain);
        for cut in [packed.len() - 1, packed.len() / 2, 8] {
            assert!(place.import(&packed[..cut]).is_err(), "{i} cut at {cut}");
        }
        let mut flipped = packed.clone();
        let middle = flipped.len() - 5;
        flipped[middle] ^= 0x55;
        assert!(place.import(&flipped).is_err(), "{i} with a wrong check");
    }
    let error = place.import(b"BZh91AY").unwrap_err().to_string();
    assert!(error.contains("bzip2"), "{error}");
    assert_eq!(place.staged(), 0);
}

#[test]
fn absolute_names_are_below_the_root_and_a_symlink_may_point_anywhere() {
    let place = Place::new();
    let members: [Raw<'_>; 3] = [
        (b"/etc/x", b'0', b"", b"x"),
        (b"./etc//./y", b'1', b"/etc/x", b""),
        (b"out", b'2', b"../../../etc", b""),
    ];
    let list = place.list(&place.import(&archive(&members)).unwrap().root);
    assert_eq!(
        list.keys().map(|k| &k[..]).collect::<Vec<_>>(),
        [&b"/"[..], b"/etc", b"/etc/x", b"/etc/y", b"/out"]
    );
    // The archive has no entry for this directory.
    let etc = &list[&b"/etc"[..]];
    assert_eq!((etc.mode, etc.uid, etc.gid, etc.mtime), (0o040_755, 0, 0, Timestamp::default()));
    assert_eq!(list[&b"/"[..]].mode, 0o040_755);
}

#[test]
fn the_last_of_two_entries_with_one_name_wins() {
    let place = Place::new();
    let members: [Raw<'_>; 10] = [
        (b"f", b'0', b"", b"old"),
        (b"keep", b'1', b"f", b""),
        (b"f", b'0', b"", b"new"),
        (b"d/", b'5', b"", b""),
        (b"d/x", b'0', b"", b"x"),
        (b"d/", b'5', b"", b""),
        (b"gone/y", b'0', b"", b"y"),
        (b"gone", b'2', b"f", b""),
        (b"dir", b'2', b"/etc", b""),
        (b"dir/z", b'5', b"", b""),
    ];
    let error = place.import(&archive(&members)).unwrap_err().to_string();
    assert!(error.contains("dir/z"), "{error}");
    let list = place.list(&place.import(&archive(&members[..9])).unwrap().root);
    assert_eq!(place.content(&list[&b"/f"[..]]), b"new");
    assert_eq!(place.content(&list[&b"/keep"[..]]), b"old");
    assert_eq!(list[&b"/keep"[..]].nlink, 1);
    assert!(list.contains_key(&b"/d/x"[..]));
    assert_eq!(list[&b"/gone"[..]].kind(), FileKind::Symlink);
    assert!(!list.contains_key(&b"/gone/y"[..]));
}

#[test]
fn a_second_import_adds_nothing_and_progress_is_told() {
    #[derive(Default)]
    struct Count(AtomicU64, AtomicU64);
    impl Progress for Count {
        fn add(&self, bytes: u64, entries: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
            self.1.fetch_add(entries, Ordering::Relaxed);
        }
    }
    let place = Place::new();
    let bytes = archive(&[(b"a/f", b'0', b"", &[3; 100_000]), (b"a/g", b'0', b"", b"g")]);
    let count = Count::default();
    let one = import_reader(&place.store, &bytes[..], &count).unwrap();
    assert_eq!((count.0.into_inner(), count.1.into_inner()), (bytes.len() as u64, 2));
    assert_eq!((one.stats.entries, one.stats.bytes), (3, 100_001));
    assert!(one.stats.objects_new >= 4);
    let two = place.import(&bytes).unwrap();
    assert_eq!((two.root, two.stats.objects_new), (one.root, 0));
}

#[test]
fn sockets_and_the_store_itself_are_left_out_with_a_note() {
    let place = Place::new();
    let _socket = std::os::unix::net::UnixListener::bind(place.src().join("sock")).unwrap();
    let imported = import_path(&place.store, place.dir.path(), &NoProgress).unwrap();
    // One of the warnings is that it hardly looks like a root filesystem.
    assert_eq!(imported.warnings.len(), 3, "{:?}", imported.warnings);
    let list = place.list(&imported.root);
    assert_eq!(list.keys().map(|k| &k[..]).collect::<Vec<_>>(), [&b"/"[..], b"/src"]);
}

#[test]
fn paths_that_the_kernel_can_name_are_not_too_deep() {
    let place = Place::new();
    let deep = b"d/".repeat(2048);
    let imported = place.import(&archive(&[(&deep, b'5', b"", b"")])).unwrap();
    assert_eq!(place.list(&imported.root).len(), 2049);
    place.tar_hash(&imported.root);
}

#[test]
fn a_huge_sparse_file_costs_nothing() {
    let place = Place::new();
    let file = fs::File::create(place.src().join("disk")).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"end", (1 << 40) - 3).unwrap();
    let start = std::time::Instant::now();
    let one = import_path(&place.store, &place.src(), &NoProgress).unwrap();
    let two = place.import(&gnu_tar(&place.src(), &ALL)).unwrap();
    assert_eq!(one.root, two.root);
    assert!(start.elapsed().as_secs() < 20);
    assert!(one.stats.bytes < 1 << 20);
}
