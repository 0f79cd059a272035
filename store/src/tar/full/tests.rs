//! Full tars of imported trees, read back by our import and by GNU tar. (tests/e2e/suites/export.sh covers
//! bsdtar and OCI's tools.)

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::id::ObjectId;
use crate::import::import_stream;
use crate::inode::{Body, Xattrs};
use crate::open::Store;
use crate::progress::NoProgress;
use crate::tar::encode::xattr_records;
use crate::tar::{Encoder, Member, Reader, identity_hash};
use crate::tree::{Target, update_dir};

struct Place {
    dir: tempfile::TempDir,
    trees: Trees,
}

/// An entry of an archive to import: header, xattrs, body.
struct Made<'a> {
    header: EntryHeader<'a>,
    xattrs: Xattrs,
    body: Vec<u8>,
}

fn made<'a>(path: &'a [u8], type_flag: u8) -> Made<'a> {
    let header = EntryHeader {
        path,
        link: b"",
        type_flag,
        mode: if type_flag == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Timestamp { secs: 1_000_000_000, nanos: 0 },
        device: (0, 0),
    };
    Made { header, xattrs: Xattrs::new(), body: Vec::new() }
}

fn file<'a>(path: &'a [u8], body: &[u8]) -> Made<'a> {
    let mut file = made(path, b'0');
    file.body = body.to_vec();
    file.header.size = body.len() as u64;
    file
}

fn link<'a>(path: &'a [u8], target: &'a [u8], type_flag: u8) -> Made<'a> {
    let mut link = made(path, type_flag);
    link.header.link = target;
    link
}

fn archive(entries: &[Made<'_>]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    for entry in entries {
        let mut records = Records::new();
        xattr_records(&entry.xattrs, &mut records);
        encoder.entry(&entry.header, records).unwrap();
        encoder.body(&entry.body).unwrap();
    }
    encoder.finish().unwrap()
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let trees = Trees::new(Store::open(&dir.path().join("store")).unwrap());
        Place { dir, trees }
    }

    fn import(&self, archive: &[u8]) -> Arc<Root> {
        self.trees.root(&self.root_id(archive)).unwrap()
    }

    fn root_id(&self, archive: &[u8]) -> ObjectId {
        import_stream(self.trees.store(), archive, "the archive", &NoProgress).unwrap().root
    }

    fn full(&self, dialect: Dialect) -> FullTar<'_> {
        FullTar { trees: &self.trees, dialect, progress: &NoProgress, name: Path::new("the test's tar") }
    }

    fn export(&self, root: &Root) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.full(Dialect::Pax).tree(root, None, &mut bytes).unwrap();
        bytes
    }

    fn changes(&self, old: &Root, new: &Root) -> (Vec<String>, Written) {
        let mut bytes = Vec::new();
        let written = self.full(Dialect::Layer).changes(old, new, &mut bytes).unwrap();
        (names(&bytes), written)
    }
}

fn members(archive: &[u8]) -> Vec<Member> {
    let mut reader = Reader::new(archive);
    std::iter::from_fn(|| reader.next_member().unwrap()).collect()
}

fn names(archive: &[u8]) -> Vec<String> {
    members(archive).iter().map(|m| String::from_utf8_lossy(&m.path).into_owned()).collect()
}

fn member(archive: &[u8], path: &[u8]) -> Member {
    members(archive).into_iter().find(|m| m.path == path).unwrap()
}

fn has(archive: &[u8], text: &[u8]) -> bool {
    archive.windows(text.len()).any(|window| window == text)
}

const LONG: [u8; 250] = [b'n'; 250];

/// One entry of every kind that a tar can hold.
fn everything() -> Vec<Made<'static>> {
    let mut all = vec![
        made(b"./", b'5'),
        made(b"dev/", b'5'),
        made(b"dev/fifo", b'6'),
        made(b"dev/tty", b'3'),
        made(b"dev/sda", b'4'),
        made(b"empty/", b'5'),
        made(b"etc/", b'5'),
        file(b"etc/.wh.x", b"literal"),
        file(b"etc/owned", b"owned"),
        file(b"etc/times", b"times"),
        file(b"etc/xattrs", b"xattrs"),
        file(b"etc/zz\xff\n=", b"any bytes"),
        link(b"etc/zz-link", &LONG, b'2'),
        file(&LONG, b"long"),
        made(b"srv/", b'5'),
        file(b"srv/a", b"linked"),
        link(b"srv/b", b"srv/a", b'1'),
        file(b"srv/empty", b""),
        file(b"srv/large", &[7; 3_000_000]),
        file(b"srv/sparse", &sparse()),
        file(b"srv/zeros", &[0; 200_000]),
    ];
    let by_name = |name: &[u8], all: &[Made<'_>]| all.iter().position(|e| e.header.path == name).unwrap();
    let root = by_name(b"./", &all);
    (all[root].header.mode, all[root].header.mtime.nanos) = (0o1777, 5);
    let (tty, sda) = (by_name(b"dev/tty", &all), by_name(b"dev/sda", &all));
    (all[tty].header.device, all[sda].header.device) = ((5, 0), (4095, 1_048_575));
    let owned = by_name(b"etc/owned", &all);
    all[owned].header = EntryHeader { mode: 0o6711, uid: 2_097_152, gid: u32::MAX - 1, ..all[owned].header };
    let times = by_name(b"etc/times", &all);
    all[times].header.mtime = Timestamp { secs: -2, nanos: 123_456_789 };
    let xattrs = by_name(b"etc/xattrs", &all);
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    for (name, value) in [
        (&b"user.a=%b"[..], &b"\0\n\xff"[..]),
        (b"user.empty", b""),
        (b"security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        (b"system.posix_acl_access", acl),
    ] {
        all[xattrs].xattrs.set(name, value);
    }
    all
}

/// A hole, data, a hole, data that ends within a block, and a hole at the end.
fn sparse() -> Vec<u8> {
    let mut bytes = vec![0; 10 * BLOCK as usize + 77];
    bytes[2 * BLOCK as usize] = 1;
    bytes[5 * BLOCK as usize + 9] = 2;
    bytes
}

#[test]
fn our_import_of_the_tar_is_the_same_tree() {
    let place = Place::new();
    let first = place.root_id(&archive(&everything()));
    let root = place.trees.root(&first).unwrap();
    let tar = place.export(&root);
    let second = place.root_id(&tar);
    assert_eq!(second, first);
    assert_eq!(place.export(&place.trees.root(&second).unwrap()), tar);
    let other = Place::new();
    let root_there = other.import(&tar);
    assert_eq!(
        identity_hash(&other.trees, None, &root_there).unwrap(),
        identity_hash(&place.trees, None, &root).unwrap()
    );
    assert_eq!(other.export(&root_there), tar);
}

#[test]
fn the_order_of_creation_does_not_show() {
    let place = Place::new();
    let tar = place.export(&place.import(&archive(&everything())));
    let mut shuffled = everything();
    shuffled.reverse();
    // Nor does it matter which name of a link comes first, or whether a directory comes before its entries.
    assert_eq!(place.export(&place.import(&archive(&shuffled))), tar);
    let mut reader = Reader::new(&tar[..]);
    let mut paths = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        paths.push(member.path);
    }
    let by_components = |path: &Vec<u8>| path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let mut sorted = paths[1..].to_vec();
    sorted.sort_by_key(by_components);
    assert_eq!((&paths[0][..], &paths[1..]), (&b"./"[..], &sorted[..]));
}

#[test]
fn headers_say_what_pax_is_for() {
    let place = Place::new();
    let tar = place.export(&place.import(&archive(&everything())));
    let owned = member(&tar, b"etc/owned");
    assert_eq!((owned.mode, owned.uid, owned.gid), (0o6711, 2_097_152, u32::MAX - 1));
    assert!(has(&tar, b" uid=2097152\n") && has(&tar, b" gid=4294967294\n"));
    assert!(has(&tar, b" mtime=-1.876543211\n"));
    assert!(has(&tar, b" SCHILY.xattr.user.a%3D%25b=\0\n\xff\n"));
    assert!(has(&tar, b" SCHILY.acl.access=user::rw-,user:1000:r--,group::r--,mask::r--,other::---\n"));
    assert!(has(&tar, b"22 KARAPACE.literal=1\n"));
    assert_eq!(member(&tar, b"dev/sda").device, (4095, 1_048_575));
    assert_eq!(member(&tar, b"srv/b").link, b"srv/a");
    assert_eq!(member(&tar, b"etc/zz-link").link, LONG);
    // A name that is not UTF-8 is marked only if it is in a record.
    assert!(!has(&tar, b"hdrcharset"));
    let odd = [b'\xff'; 101];
    let named = place.export(&place.import(&archive(&[file(&odd, b"x"), link(b"l", b"\xff", b'2')])));
    assert!(has(&named, b"21 hdrcharset=BINARY\n"));
    assert_eq!(member(&named, &odd).size, 1);
    let sparse = place.export(&place.import(&archive(&[file(b"\xff", &sparse())])));
    assert!(has(&sparse, b"21 hdrcharset=BINARY\n"));
    // Whole seconds, short names and small ids need no extended header.
    let plain = place.export(&place.import(&archive(&[file(b"plain", b"x")])));
    assert!(has(&plain, b"plain") && !has(&plain, b"PaxHeader"));
}

#[test]
fn holes_are_found_from_the_content() {
    let place = Place::new();
    let tar = place.export(&place.import(&archive(&everything())));
    let sparse = member(&tar, b"srv/sparse");
    assert_eq!(sparse.size, 10 * BLOCK + 77);
    assert_eq!(sparse.ranges.unwrap(), [(2 * BLOCK, BLOCK), (5 * BLOCK, BLOCK)]);
    assert!(has(
        &tar,
        format!("\n3\n{}\n65536\n{}\n65536\n{}\n0\n", 2 * BLOCK, 5 * BLOCK, 10 * BLOCK + 77)
            .trim_start()
            .as_bytes()
    ));
    let zeros = member(&tar, b"srv/zeros");
    assert_eq!((zeros.size, zeros.ranges.unwrap()), (200_000, vec![]));
    assert_eq!(member(&tar, b"srv/large").ranges, None);
    // The same bytes from a sparse file of the host.
    let dir = place.dir.path();
    let host = fs::File::create_new(dir.join("sparse")).unwrap();
    host.set_len(10 * BLOCK + 77).unwrap();
    host.write_all_at(&[1], 2 * BLOCK).unwrap();
    host.write_all_at(&[2], 5 * BLOCK + 9).unwrap();
    let packed = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args([
            "--sparse",
            "--mtime=@5",
            "--owner=0",
            "--group=0",
            "--mode=644",
            "--format=pax",
            "-c",
            "sparse",
        ])
        .output()
        .unwrap();
    let full = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(["--mtime=@5", "--owner=0", "--group=0", "--mode=644", "--format=pax", "-c", "sparse"])
        .output()
        .unwrap();
    assert!(packed.stdout.len() < full.stdout.len());
    assert_eq!(place.export(&place.import(&packed.stdout)), place.export(&place.import(&full.stdout)));
}

#[test]
fn very_large_sizes_are_records() {
    let place = Place::new();
    let size = 20_u64 << 30;
    // 20 GiB with one block of data, in the sparse format of the reader's tests.
    let records = Records::from([
        (b"GNU.sparse.map".to_vec(), format!("{},3", 10_u64 << 30).into_bytes()),
        (b"GNU.sparse.size".to_vec(), size.to_string().into_bytes()),
    ]);
    let mut encoder = Encoder::new(Vec::new());
    let mut huge = file(b"huge", b"abc");
    huge.header.size = 3;
    encoder.entry(&huge.header, records).unwrap();
    encoder.body(b"abc").unwrap();
    let root = place.import(&encoder.finish().unwrap());
    let tar = place.export(&root);
    assert!(tar.len() < 1 << 20);
    let back = member(&tar, b"huge");
    assert_eq!((back.size, back.ranges.unwrap()), (size, vec![(10 << 30, BLOCK)]));
    assert_eq!(place.export(&place.import(&tar)), tar);
    // A body larger than 8 GiB: the header alone is enough to check.
    let mut encoder = Encoder::new(Vec::new());
    let mut huge = file(b"huge", b"");
    huge.header.size = 9 << 30;
    encoder.entry(&huge.header, Records::new()).unwrap();
    let bytes = encoder.finish().unwrap();
    assert!(has(&bytes, b" size=9663676416\n"));
    assert_eq!(Reader::new(&bytes[..]).next_member().unwrap().unwrap().size, 9 << 30);
}

#[test]
fn many_ranges_are_joined_until_readers_take_them() {
    let ranges: Ranges = (0..10).map(|i| (i * 4 * BLOCK, BLOCK)).collect();
    let size = 40 * BLOCK - 5;
    assert_eq!(bounded(ranges.clone(), size, 11), ranges);
    assert_eq!(bounded(ranges.clone(), size, 10), [(0, size)]);
    let pairs: Ranges = vec![(0, BLOCK), (2 * BLOCK, BLOCK), (64 * BLOCK, 7)];
    assert_eq!(bounded(pairs, 64 * BLOCK + 7, 3), [(0, 4 * BLOCK), (64 * BLOCK, 7)]);
    assert_eq!(&sparse_map(&[(0, 4), (8, 4)], 12)[..11], b"2\n0\n4\n8\n4\n\0");
    assert_eq!(&sparse_map(&[], 12)[..8], b"1\n12\n0\n\0");
}

#[test]
fn gnu_tar_extracts_the_same_tree() {
    let place = Place::new();
    let mut entries = everything();
    // An ordinary user cannot make these; the end-to-end suite covers them.
    entries.retain(|e| !matches!(e.header.type_flag, b'3' | b'4') && e.header.path != b"etc/xattrs");
    let tar = place.export(&place.import(&archive(&entries)));
    let dir = place.dir.path().join("out");
    fs::create_dir(&dir).unwrap();
    let mut child = Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .args(["--warning=no-unknown-keyword", "--no-same-owner", "-xpf", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(dir.join("srv/sparse")).unwrap(), sparse());
    assert_eq!(fs::read(dir.join("srv/zeros")).unwrap(), [0; 200_000]);
    assert!(fs::metadata(dir.join("srv/sparse")).unwrap().blocks() * 512 < 4 * BLOCK);
    let times = fs::metadata(dir.join("etc/times")).unwrap();
    assert_eq!((times.mtime(), times.mtime_nsec()), (-2, 123_456_789));
    assert_eq!(fs::metadata(dir.join("srv/a")).unwrap().nlink(), 2);
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&dir)
        .args([
            "--numeric-owner",
            "--owner=0",
            "--group=0",
            "--hard-dereference",
            "--hard-dereference",
            "--format=pax",
            "-c",
            ".",
        ])
        .output()
        .unwrap();
    let mut back = members(&packed.stdout)
        .into_iter()
        .map(|m| (m.path, (m.kind, m.mode, m.mtime, m.size)))
        .collect::<BTreeMap<_, _>>();
    for member in members(&tar).into_iter().filter(|m| m.link.is_empty()) {
        let path = if member.path == b"./" { b"./".to_vec() } else { [b"./", &member.path[..]].concat() };
        let found = back.remove(&path).unwrap();
        assert_eq!(found, (member.kind, member.mode, member.mtime, member.size), "{path:?}");
    }
}

#[test]
fn chosen_paths_only() {
    let place = Place::new();
    let root = place.import(&archive(&everything()));
    let chosen = |path: &[u8]| matches!(path, b"/" | b"/srv" | b"/srv/b" | b"/srv/empty");
    let mut bytes = Vec::new();
    let written = place.full(Dialect::Pax).tree(&root, Some(&chosen), &mut bytes).unwrap();
    assert_eq!(names(&bytes), ["./", "srv/", "srv/b", "srv/empty"]);
    assert_eq!(written.entries, 4);
    assert_eq!(member(&bytes, b"srv/b").size, 6);
}

#[test]
fn a_layer_has_whiteouts_content_and_every_name_of_a_linked_file() {
    let place = Place::new();
    let old = [
        made(b"./", b'5'),
        made(b"a/", b'5'),
        file(b"a/one", b"one"),
        file(b"a/two", b"linked"),
        made(b"b/", b'5'),
        file(b"b/same", b"same"),
        link(b"b/three", b"a/two", b'1'),
        file(b"c", b"c"),
    ];
    let new = [
        made(b"./", b'5'),
        made(b"a/", b'5'),
        file(b"a/two", b"linked"),
        made(b"b/", b'5'),
        file(b"b/same", b"same"),
        link(b"b/three", b"a/two", b'1'),
        link(b"b/zz", b"a/two", b'1'),
        file(b"c", &sparse()),
    ];
    let (old, new) = (place.import(&archive(&old)), place.import(&archive(&new)));
    let (names, _) = place.changes(&old, &new);
    assert_eq!(names, ["./", "a/", "a/.wh.one", "a/two", "b/", "b/three", "b/zz", "c"]);
    let mut bytes = Vec::new();
    let written = place.full(Dialect::Layer).changes(&old, &new, &mut bytes).unwrap();
    assert_eq!((member(&bytes, b"a/two").size, member(&bytes, b"b/zz").link), (6, b"a/two".to_vec()));
    // Holes are written as zeros in a layer.
    assert_eq!((member(&bytes, b"c").size, member(&bytes, b"c").ranges), (10 * BLOCK + 77, None));
    assert_eq!(written.newest, Some(Timestamp { secs: 1_000_000_000, nanos: 0 }));
    assert_eq!(place.changes(&new, &new).0, Vec::<String>::new());
}

#[test]
fn a_layer_has_directories_of_which_only_the_time_changed() {
    let place = Place::new();
    let tree = |nanos| {
        let mut all = [made(b"./", b'5'), made(b"d/", b'5'), made(b"d/e/", b'5'), file(b"d/f", b"f")];
        all[2].header.mtime.nanos = nanos;
        place.import(&archive(&all))
    };
    let (old, new) = (tree(0), tree(9));
    assert_eq!(place.changes(&old, &new).0, ["./", "d/", "d/e/"]);
    assert_eq!(
        identity_hash(&place.trees, Some(&old), &new).unwrap(),
        identity_hash(&place.trees, Some(&old), &old).unwrap()
    );
}

#[test]
fn holes_that_become_many_zeros_are_told() {
    let place = Place::new();
    let records = Records::from([
        (b"GNU.sparse.map".to_vec(), b"0,3".to_vec()),
        (b"GNU.sparse.size".to_vec(), ((1u64 << 30) + BLOCK).to_string().into_bytes()),
    ]);
    let mut encoder = Encoder::new(Vec::new());
    encoder.entry(&file(b"huge", b"abc").header, records).unwrap();
    encoder.body(b"abc").unwrap();
    let root = place.import(&encoder.finish().unwrap());
    let mut size = 0;
    let mut out = Counting(&mut size);
    let written = place.full(Dialect::Layer).tree(&root, None, &mut out).unwrap();
    assert_eq!(written.filled, [(b"/huge".to_vec(), 1 << 30)]);
    assert_eq!(size, (1 << 30) + BLOCK + 4 * 512);
    let written = place.full(Dialect::Pax).tree(&root, None, &mut std::io::sink()).unwrap();
    assert_eq!(written.filled, []);
}

struct Counting<'a>(&'a mut u64);

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        *self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_name_that_would_be_a_deletion_is_refused_in_a_layer() {
    let place = Place::new();
    let root = place.import(&archive(&[file(b"etc/.wh.x", b"literal")]));
    let error = place.full(Dialect::Layer).tree(&root, None, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("\"/etc/.wh.x\"") && error.contains("export a tar"), "{error}");
}

/// `root` with a socket at `/name`.
fn with_socket(place: &Place, root: &Root, name: &[u8]) -> Root {
    let mut record = root.inode.clone();
    record.ino = root.next_ino;
    record.mode = 0o140_755;
    record.nlink = 1;
    record.body = Body::Special;
    let changes = BTreeMap::from([(Box::from(name), Some(Target::Inode(record)))]);
    let mut batch = crate::batch::Batch::new(place.trees.store()).unwrap();
    let written = update_dir(&place.trees, &mut batch, root.tree(), &changes).unwrap();
    batch.commit().unwrap();
    let mut root = root.clone();
    root.inode.body = Body::Directory { tree: written.tree, links: written.links };
    root.next_ino += 1;
    root
}

#[test]
fn sockets_are_left_out_with_a_note() {
    let place = Place::new();
    let old = place.import(&archive(&[file(b"a", b"a"), file(b"b", b"b")]));
    let new = with_socket(&place, &with_socket(&place, &old, b"b"), b"s");
    let mut bytes = Vec::new();
    let written = place.full(Dialect::Pax).tree(&new, None, &mut bytes).unwrap();
    assert_eq!(
        (names(&bytes), written.sockets),
        (vec!["./".into(), "a".into()], vec![b"/b".to_vec(), b"/s".to_vec()])
    );
    // What previously had the socket's name is removed all the same.
    assert_eq!(place.changes(&old, &new).0, ["./", ".wh.b"]);
}

#[test]
fn damaged_content_is_an_error_not_an_archive() {
    let place = Place::new();
    let root = place.import(&archive(&[file(b"f", b"content")]));
    let path = place.trees.store().objects().path(&ObjectId::of(b"content"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"Content").unwrap();
    let error = place.full(Dialect::Pax).tree(&root, None, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    let full = place.full(Dialect::Pax);
    let good = place.import(&archive(&[file(b"g", b"good")]));
    let mut no_room = &mut [0; 700][..];
    let error = full.tree(&good, None, &mut no_room).unwrap_err().to_string();
    assert!(error.contains("write the test's tar"), "{error}");
}
