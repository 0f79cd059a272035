//! The reader with archives from other writers, and with broken ones.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::inode::Timestamp;

/// All members, with their stored bytes.
fn read_all(bytes: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut all = Vec::new();
    while let Some(member) = reader.next_member()? {
        let mut body = Vec::new();
        reader.read_to_end(&mut body).map_err(|source| TarError::Read { offset: 0, source })?;
        all.push((member, body));
    }
    Ok(all)
}

/// The archive that GNU tar makes of `dir`.
fn gnu_tar(dir: &Path, options: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).args(options).args(["-c", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn member<'a>(all: &'a [(Member, Vec<u8>)], path: &[u8]) -> &'a (Member, Vec<u8>) {
    all.iter().find(|(m, _)| m.path == path).unwrap()
}

#[test]
fn sparse_members_of_every_gnu_format() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create_new(dir.path().join("s")).unwrap();
    file.set_len(40 << 20).unwrap();
    for i in 0..60u64 {
        file.write_all_at(&[i as u8 + 1; 4096], i << 19).unwrap();
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let archive = gnu_tar(dir.path(), &[format, &["--sparse"]].concat());
        let all = read_all(&archive).unwrap();
        let (member, body) = member(&all, b"./s");
        assert_eq!(member.size, 40 << 20, "{format:?}");
        let ranges = member.ranges.as_ref().unwrap();
        assert_eq!(body.len() as u64, ranges.iter().map(|r| r.1).sum::<u64>());
        let mut at = 0;
        for &(offset, length) in ranges {
            let mut expected = vec![0; length as usize];
            file.read_exact_at(&mut expected, offset).unwrap();
            assert_eq!(body[at..at + length as usize], expected, "{format:?} at {offset}");
            at += length as usize;
        }
        assert!(body.len() < 1 << 20);
    }
}

#[test]
fn long_names_and_links_of_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(250));
    fs::create_dir(dir.path().join("d".repeat(120))).unwrap();
    fs::write(dir.path().join(&long), b"x").unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join("link")).unwrap();
    for format in ["--format=gnu", "--format=pax"] {
        let all = read_all(&gnu_tar(dir.path(), &[format])).unwrap();
        assert_eq!(member(&all, format!("./{long}").as_bytes()).1, b"x");
        assert_eq!(member(&all, b"./link").0.link, long.as_bytes());
    }
    let prefix = format!("{}/{}", "p".repeat(90), "n".repeat(90));
    fs::remove_dir_all(dir.path().join("d".repeat(120))).unwrap();
    fs::remove_file(dir.path().join("link")).unwrap();
    fs::create_dir(dir.path().join("p".repeat(90))).unwrap();
    fs::write(dir.path().join(&prefix), b"y").unwrap();
    let all = read_all(&gnu_tar(dir.path(), &["--format=ustar"])).unwrap();
    assert_eq!(member(&all, format!("./{prefix}").as_bytes()).1, b"y");
}

#[test]
fn what_the_tar_crate_writes() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_uid(3_000_000_000);
    header.set_gid(7);
    header.set_mode(0o104755);
    header.set_mtime(1_700_000_000);
    header.set_size(3);
    builder.append_data(&mut header, "dir/file", &b"abc"[..]).unwrap();
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Char);
    header.set_device_major(5).unwrap();
    header.set_device_minor(1).unwrap();
    header.set_mode(0o600);
    header.set_size(0);
    builder.append_data(&mut header, "console", &b""[..]).unwrap();
    let all = read_all(&builder.into_inner().unwrap()).unwrap();
    let (file, body) = &all[0];
    assert_eq!((file.path.as_slice(), body.as_slice()), (&b"dir/file"[..], &b"abc"[..]));
    assert_eq!((file.uid, file.gid, file.mode), (3_000_000_000, 7, 0o4755));
    assert_eq!(file.mtime, Timestamp { secs: 1_700_000_000, nanos: 0 });
    assert_eq!((all[1].0.kind, all[1].0.device), (MemberKind::CharDevice, (5, 1)));
}

/// An archive with one PAX header of these records, and one empty file.
fn with_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let header = EntryHeader {
        path: b"f",
        link: b"",
        type_flag: b'0',
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Timestamp::default(),
        device: (0, 0),
    };
    let records = records.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec())).collect();
    let mut encoder = Encoder::new(Vec::new());
    encoder.entry(&header, records).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn attributes_from_records() {
    let all = read_all(&with_records(&[
        ("path", b"\xff/\n"),
        ("uid", b"4294967295"),
        ("mtime", b"1.000000001"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ("LIBARCHIVE.xattr.user.x", b"aGk="),
        ("RHT.security.selinux", b"system_u:object_r:bin_t:s0"),
        ("SCHILY.acl.access", b"user::rwx,user:joe:r--,group::r--,mask::r--,other::---"),
        ("SCHILY.acl.default", b"user::rwx,group::r--,other::---"),
    ]))
    .unwrap();
    let member = &all[0].0;
    assert_eq!((member.path.as_slice(), member.uid), (&b"\xff/\n"[..], u32::MAX));
    assert_eq!(member.mtime, Timestamp { secs: 1, nanos: 1 });
    let names: Vec<_> = member.xattrs.iter().map(|(n, _)| String::from_utf8_lossy(n)).collect();
    assert_eq!(names, ["security.capability", "security.selinux", "system.posix_acl_default", "user.x"]);
    assert!(member.notes[0].contains("user:joe"), "{:?}", member.notes);
}

#[test]
fn broken_archives_are_errors() {
    let good = with_records(&[("path", b"x")]);
    assert!(matches!(read_all(b""), Err(TarError::Truncated { .. })));
    for cut in [100, 512, 700, 1024, good.len() - 1024] {
        let error = read_all(&good[..cut]).unwrap_err();
        assert!(matches!(error, TarError::Truncated { .. }), "{cut}: {error}");
    }
    let mut flipped = good.clone();
    flipped[1030] ^= 1;
    assert!(read_all(&flipped).unwrap_err().to_string().contains("checksum"));
    assert!(read_all(&[b'x'; 2048]).unwrap_err().to_string().contains("not a tar archive"));
    let refused: [&[(&str, &[u8])]; 7] = [
        &[("uid", b"4294967296")],
        &[("mtime", b"soon")],
        &[("path", b"a\0b")],
        &[("size", b"-1")],
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.realsize", b"1")],
        &[("GNU.sparse.map", b"0,1,5"), ("GNU.sparse.size", b"1")],
        &[("SCHILY.realsize", b"10")],
    ];
    for records in refused {
        assert!(matches!(read_all(&with_records(records)), Err(TarError::Broken { .. })), "{records:?}");
    }
}

#[test]
fn a_truncated_body_is_an_unexpected_end() {
    let mut archive = with_records(&[("size", b"5000")]);
    archive.truncate(archive.len() - 1024);
    archive.extend_from_slice(&[1; 2000]);
    assert!(matches!(read_all(&archive), Err(TarError::Read { .. })));
    let mut reader = Reader::new(&archive[..]);
    reader.next_member().unwrap().unwrap();
    assert!(matches!(reader.next_member(), Err(TarError::Truncated { .. })));
}

#[test]
fn an_extended_header_may_not_ask_for_much_memory() {
    let mut block = vec![0; 512];
    block[..1].copy_from_slice(b"x");
    block[124..136].copy_from_slice(b"77777777777\0");
    block[148..156].fill(b' ');
    for flag in [b'x', b'g', b'L', b'K'] {
        block[156] = flag;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let error = read_all(&block).unwrap_err().to_string();
        assert!(error.contains("larger than"), "{error}");
    }
}

#[test]
fn global_records_hold_until_taken_back() {
    let one = with_records(&[("uid", b"5")]);
    let mut archive = one[..one.len() - 1024].to_vec();
    archive[156] = b'g';
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|&b| u32::from(b)).sum();
    archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let two = with_records(&[("uid", b"")]);
    archive.extend_from_slice(&two);
    let all = read_all(&archive).unwrap();
    assert_eq!((all[0].0.uid, all[1].0.uid), (5, 0));
}

#[test]
fn the_encoder_and_the_reader_agree() {
    let long = b"n".repeat(300);
    let header = EntryHeader {
        path: &long,
        link: &long,
        type_flag: EntryHeader::type_flag(crate::inode::FileKind::Symlink),
        mode: 0o7777,
        uid: 3_000_000,
        gid: u32::MAX,
        size: 0,
        mtime: Timestamp { secs: -2, nanos: 750_000_000 },
        device: (0, 0),
    };
    let mut encoder = Encoder::new(Vec::new());
    encoder.entry(&header, Records::new()).unwrap();
    let all = read_all(&encoder.finish().unwrap()).unwrap();
    let member = &all[0].0;
    assert_eq!((&member.path, &member.link, member.kind), (&long, &long, MemberKind::Symlink));
    assert_eq!((member.mode, member.uid, member.gid), (0o7777, 3_000_000, u32::MAX));
    assert_eq!(member.mtime, header.mtime);
}

#[test]
fn any_bytes_end_in_members_or_an_error() {
    use proptest::prelude::*;
    let good = with_records(&[("path", b"a/b"), ("SCHILY.xattr.user.a", b"1")]);
    proptest!(ProptestConfig::with_cases(500), |(flips in proptest::collection::vec((0..2048usize, any::<u8>()), 1..8))| {
        let mut bytes = good.clone();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        for start in [0, 1024] {
            bytes[start + 148..start + 156].fill(b' ');
            let sum: u32 = bytes[start..start + 512].iter().map(|&b| u32::from(b)).sum();
            bytes[start + 148..start + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        if let Ok(all) = read_all(&bytes) {
            prop_assert!(all.len() <= 4);
        }
    });
}
