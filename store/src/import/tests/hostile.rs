//! Hostile archives: each must lead to the error or result that docs/SECURITY.md specifies.

use std::io::Read;

use super::*;
use crate::import::builder::Builder;

/// An archive with some bytes of its first header changed, and a correct checksum.
pub(super) fn patched(mut archive: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    archive[at..at + bytes.len()].copy_from_slice(bytes);
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|&b| u32::from(b)).sum();
    archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    archive
}

/// An extended header with this type and body.
pub(super) fn extended(type_flag: u8, body: &[u8]) -> Vec<u8> {
    let mut whole = archive(&[(b"extended", b'0', b"", body)]);
    whole.truncate(whole.len() - 1024);
    patched(whole, 156, &[type_flag])
}

/// PAX records, each preceded by its length.
pub(super) fn records(all: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in all {
        let rest = key.len() + value.len() + 3;
        let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() == n - rest).unwrap();
        out.extend_from_slice(format!("{length} {key}=").as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// One file `f`, preceded by a PAX header with these records.
pub(super) fn pax(all: &[(&str, &[u8])], body: &[u8]) -> Vec<u8> {
    [extended(b'x', &records(all)), archive(&[(b"f", b'0', b"", body)])].concat()
}

/// A PAX 1.0 map of `count` ranges of one byte each.
fn sparse_map(count: usize) -> Vec<u8> {
    let mut map = format!("{count}\n");
    (0..count).for_each(|i| map.push_str(&format!("{}\n1\n", i * 2)));
    map.into_bytes()
}

fn sparse(count: usize) -> Vec<u8> {
    let mut body = sparse_map(count);
    body.resize(body.len().next_multiple_of(512) + count, b'x');
    let size = (count * 2).to_string();
    let all: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())];
    pax(&all, &body)
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let place = Place::new();
    let one = |type_flag| archive(&[(b"f", type_flag, b"", b"")]);
    let many: Vec<(String, &[u8])> =
        (0..100_000).map(|i| (format!("SCHILY.xattr.user.{i}"), &b"v"[..])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let outside = place.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let out = outside.as_os_str().as_bytes();
    let deep = b"d/".repeat(3000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("../evil", archive(&[(b"../evil", b'0', b"", b"x")])),
        ("a/../../evil", archive(&[(b"a/../../evil", b'0', b"", b"x")])),
        ("s/evil", archive(&[(b"s", b'2', out, b""), (b"s/evil", b'0', b"", b"x")])),
        ("f/evil", archive(&[(b"f", b'0', b"", b"x"), (b"f/evil", b'5', b"", b"")])),
        ("h", archive(&[(b"h", b'1', b"/etc/passwd", b"")])),
        ("h", archive(&[(b"h", b'1', b"../../etc/passwd", b"")])),
        ("h", archive(&[(b"d/", b'5', b"", b""), (b"h", b'1', b"d", b"")])),
        ("h", archive(&[(b"s", b'2', out, b""), (b"h", b'1', b"s/x", b"")])),
        ("h", archive(&[(b"h", b'1', b"h", b"")])),
        ("h", archive(&[(b"h", b'1', b"i", b""), (b"i", b'1', b"h", b"")])),
        (".karapace", archive(&[(b".karapace", b'5', b"", b"")])),
        ("./.karapace/ctl", archive(&[(b"./.karapace/ctl", b'0', b"", b"")])),
        (".karapace", archive(&[(b"f", b'0', b"", b""), (b".karapace", b'1', b"f", b"")])),
        ("./", archive(&[(b"./", b'7', b"", b"x")])),
        ("deeper", archive(&[(&deep, b'5', b"", b"")])),
        ("longer than 255", archive(&[(&[b'n'; 256], b'0', b"", b"")])),
        ("empty", archive(&[(b"s", b'2', b"", b"")])),
        ("4095", archive(&[(b"s", b'2', &[b't'; 4096], b"")])),
        ("another volume", archive(&[(b"m", b'M', b"", b"")])),
        ("truncated", archive(&[(b"big", b'0', b"", &[1; 4096])]).tap(|a| a.truncate(2000))),
        ("truncated", archive(&[(b"f", b'0', b"", b"")]).tap(|a| a.truncate(512))),
        ("is empty", Vec::new()),
        // Numbers in a header.
        (
            "checksum",
            [archive(&[(b"a", b'0', b"", b"")]).tap(|a| a.truncate(512)), one(b'0').tap(|a| a[0] = 1)]
                .concat(),
        ),
        ("size is not a number", patched(one(b'0'), 124, &[0xff; 12])),
        ("size is not a number", patched(one(b'0'), 124, b"12345678\0")),
        ("size is not a number", patched(one(b'0'), 124, &[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("truncated", patched(one(b'0'), 124, b"77777777777\0")),
        (
            "truncated",
            patched(one(b'0'), 124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("out of range", patched(one(b'0'), 108, &[0xff; 8])),
        ("out of range", patched(one(b'0'), 116, &[0x80, 0, 0, 1, 0, 0, 0, 0])),
        ("mode is not a number", patched(one(b'0'), 100, b"0000xyz\0")),
        ("exceeds Linux's range", patched(one(b'3'), 329, b"0010000\0")),
        ("exceeds Linux's range", patched(one(b'4'), 337, b"4000000\0")),
        ("exceeds Linux's range", patched(one(b'3'), 329, &[0xff; 8])),
        // PAX.
        ("larger than", patched(one(b'x'), 124, b"10000000000\0")),
        ("larger than", patched(one(b'g'), 124, b"10000000000\0")),
        ("larger than", patched(one(b'L'), 124, b"10000000000\0")),
        ("NUL", pax(&[("path", b"a\0b")], b"")),
        ("must be a number", pax(&[("size", b"99999999999999999999")], b"")),
        ("must be a number", pax(&[("size", b"-1")], b"")),
        ("truncated", pax(&[("size", b"9223372036854775807")], b"")),
        ("the largest file size", pax(&[("size", b"18446744073709551615")], b"")),
        ("mtime is not a time", pax(&[("mtime", b"99999999999999999999")], b"")),
        ("reaches beyond its header", extended(b'x', b"99 path=a\n")),
        ("reaches beyond its header", extended(b'x', b"1 path=a\n")),
        ("does not end in a newline", extended(b'x', b"9 path=ab.")),
        ("more than Linux can list", pax(&many, b"")),
        ("that Linux does not allow", pax(&[("SCHILY.xattr.user.x", &vec![1; 70_000])], b"")),
        (
            "single members only",
            [extended(b'g', &records(&[("SCHILY.xattr.user.x", b"1")])), one(b'0')].concat(),
        ),
        ("single members only", [extended(b'g', &records(&[("path", b"x")])), one(b'0')].concat()),
        ("too large", [extended(b'g', &records(&[("comment", &vec![b'x'; 70_000])])), one(b'0')].concat()),
        // Sparse maps.
        ("too many ranges", sparse((1 << 20) + 1)),
    ];
    for (name, archive) in cases {
        let error = place.import(&archive).unwrap_err();
        assert!(matches!(error, crate::StoreError::Invalid(_)), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let mut names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["outside", "src", "store"]);
    assert_eq!(place.staged(), 0);
}

trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for Vec<u8> {}

/// Results of archives that are accepted.
#[test]
fn hostile_archives_that_are_taken_in_as_documented() {
    let place = Place::new();
    let import = |bytes: &[u8]| {
        let imported = place.import(bytes).unwrap();
        (place.list(&imported.root), imported.warnings)
    };
    // A directory entry replaces a symbolic link; later entries go into the directory.
    let members: [Raw<'_>; 3] =
        [(b"s", b'2', b"/etc", b""), (b"s/", b'5', b"", b""), (b"s/x", b'0', b"", b"x")];
    let (list, _) = import(&archive(&members));
    assert_eq!(list[&b"/s"[..]].kind(), FileKind::Directory);
    assert!(list.contains_key(&b"/s/x"[..]));
    // PAX's size takes precedence over the header's.
    let bytes = pax(&[("size", b"5")], b"12345");
    let header = bytes.len() - 1024 - 512 - 512;
    let (list, _) =
        import(&[&bytes[..header], &patched(bytes[header..].to_vec(), 124, b"00000000001\0")].concat());
    assert_eq!(place.content(&list[&b"/f"[..]]), b"12345");
    // PAX's name takes precedence, whether a GNU long name comes before or after it.
    let (long, path) = (extended(b'L', b"gnu-name\0"), extended(b'x', &records(&[("path", b"pax-name")])));
    for before in [[&long[..], &path].concat(), [&path[..], &long].concat()] {
        let (list, _) = import(&[before, archive(&[(b"f", b'0', b"", b"")])].concat());
        assert!(list.contains_key(&b"/pax-name"[..]));
    }
    // A time before 1970, in binary.
    let (list, _) = import(&patched(archive(&[(b"f", b'0', b"", b"")]), 136, &[0xff; 12]));
    assert_eq!(list[&b"/f"[..]].mtime, Timestamp { secs: -1, nanos: 0 });
    // A zero block ends the archive. What follows, be it a member or not, is left out with a warning.
    let first = archive(&[(b"etc", b'0', b"", b"")]).tap(|a| a.truncate(512));
    for (after, warned) in
        [(archive(&[(b"late", b'0', b"", b"")]), 1), (vec![b'x'; 700], 1), (vec![0; 9000], 0)]
    {
        let (list, warnings) = import(&[&first[..], &[0; 512], &after].concat());
        assert_eq!((list.len(), warnings.len()), (2, warned), "{warnings:?}");
    }
    // A million ranges are accepted.
    let (list, _) = import(&sparse(1 << 20));
    assert_eq!(place.content(&list[&b"/f"[..]])[..4], [b'x', 0, b'x', 0]);
    assert_eq!(place.staged(), 0);
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    let place = Place::new();
    let whole = archive(&[
        (b"d/", b'5', b"", b""),
        (&b"n".repeat(120), b'0', b"", &[7; 1500]),
        (b"l", b'1', b"x", b""),
    ]);
    let end = whole.len() - 1024;
    for cut in (0..end).step_by(127).chain([end]) {
        let error = place.import(&whole[..cut]).unwrap_err().to_string();
        let reason = if cut == 0 { "is empty" } else { "truncated" };
        assert!(error.contains(reason), "{cut}: {error}");
    }
}

#[test]
fn links_that_come_before_their_targets_cost_no_more_than_others() {
    let place = Place::new();
    let names: Vec<Vec<u8>> = (0..30_000).map(|i| format!("{i:05}").into_bytes()).collect();
    let mut members: Vec<Raw<'_>> =
        names.windows(2).map(|pair| (&pair[0][..], b'1', &pair[1][..], &b""[..])).collect();
    members.push((&names[names.len() - 1], b'0', b"", b"content"));
    let start = std::time::Instant::now();
    let list = place.list(&place.import(&archive(&members)).unwrap().root);
    assert_eq!(list[&b"/00000"[..]].nlink, 30_000);
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn metadata_beyond_the_limit_is_refused() {
    let attributes = || super::super::builder::Attributes::default();
    let mut builder = Builder::new(10_000);
    let refused =
        (0..1000).find_map(|i| builder.put_directory(format!("{i}").as_bytes(), attributes()).err());
    assert!(refused.unwrap().contains("names and attributes"));
    assert!(builder.room() < 1000);
}

/// A generated stream: a head, then `zeros` zeros, then a tail.
struct Endless {
    head: Vec<u8>,
    zeros: u64,
}

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if !self.head.is_empty() {
            let got = buf.len().min(self.head.len());
            buf[..got].copy_from_slice(&self.head[..got]);
            self.head.drain(..got);
            return Ok(got);
        }
        let got = (buf.len() as u64).min(self.zeros) as usize;
        buf[..got].fill(0);
        self.zeros -= got as u64;
        Ok(got)
    }
}

/// Run by the test below in a process of its own, so that its memory use can be measured.
#[test]
#[ignore = "a child of bombs_are_defused_in_little_memory"]
fn child_bombs() {
    let place = Place::new();
    let head = |size: &str| {
        patched(archive(&[(b"zeros", b'0', b"", b"")]), 124, format!("{size}\0").as_bytes())
            .tap(|a| a.truncate(512))
    };
    // 256 MiB of zeros, from a stream; the same, compressed by a factor of a thousand.
    let bomb = || Endless { head: head("2000000000"), zeros: (256 << 20) + 1024 };
    let root = import_reader(&place.store, bomb(), &NoProgress).unwrap().root;
    assert_eq!(place.list(&root).len(), 2);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::copy(&mut bomb(), &mut encoder).unwrap();
    let packed = encoder.finish().unwrap();
    assert!(packed.len() < 3 << 20);
    assert_eq!(place.import(&packed).unwrap().root, root);
    // Endless extended headers and long names, each of the maximum size.
    let record = records(&[("comment", &vec![b'x'; 1 << 20])]);
    let header = extended(b'x', &record);
    let name = extended(b'L', &vec![b'n'; 1 << 20]);
    let many = [header, name].concat().repeat(100);
    assert!(place.import(&many).is_err());
    // A manifest that is too large is not read.
    let json =
        archive(&[(b"oci-layout", b'0', b"", b"{}"), (b"index.json", b'0', b"", &vec![b'['; 5 << 20])]);
    place.import(&json).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // `many` and `packed` belong to the test itself: some 200 MiB.
    assert!(peak < 330 << 10, "{peak} KiB");
}

#[test]
fn bombs_are_defused_in_little_memory() {
    let name = "import::tests::hostile::child_bombs";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
}
