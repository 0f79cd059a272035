//! Members written by other programs that Linux's own tar would not write.

use super::hostile::{patched, pax};
use super::image::gzip;
use super::*;

/// An archive of one symbolic link whose header has this mode.
fn link_of_mode(mode: u32) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    let header = EntryHeader {
        path: b"usr/link",
        link: b"target",
        type_flag: b'2',
        mode,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: Timestamp { secs: 100, nanos: 0 },
        device: (0, 0),
    };
    encoder.entry(&header, Records::new()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_symbolic_link_has_the_mode_that_linux_gives_one_whatever_the_archive_says() {
    let place = Place::new();
    let roots: Vec<ObjectId> =
        [0o777, 0o755, 0o644, 0, 0o7777].map(|mode| place.import(&link_of_mode(mode)).unwrap().root).into();
    assert_eq!(place.list(&roots[0])[&b"/usr/link"[..]].mode, 0o120_777);
    assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
}

/// `hi` in base64, as bsdtar writes values.
const HI: &[u8] = b"aGk";

#[test]
fn attributes_that_linux_has_no_namespace_for_are_left_out_with_a_note() {
    let place = Place::new();
    let records: [(&str, &[u8]); 7] = [
        ("LIBARCHIVE.xattr.com.apple.FinderInfo", HI),
        ("LIBARCHIVE.xattr.user.encoded", HI),
        ("SCHILY.xattr.com.apple.quarantine", b"0081"),
        ("SCHILY.xattr.system.nfs4_acl", b"acl"),
        ("SCHILY.xattr.user.", b"no name"),
        ("SCHILY.xattr.user.kept", b"kept"),
        ("SCHILY.xattr.trusted.kept", b"kept"),
    ];
    let imported = place.import(&pax(&records, b"")).unwrap();
    let list = place.list(&imported.root);
    let names: Vec<_> =
        list[&b"/f"[..]].xattrs.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["trusted.kept", "user.encoded", "user.kept"]);
    for name in ["com.apple.FinderInfo", "com.apple.quarantine", "system.nfs4_acl", "\"user.\""] {
        assert!(imported.warnings.iter().any(|w| w.contains(name)), "{name}: {:?}", imported.warnings);
    }
    assert_eq!(
        imported.warnings.iter().filter(|w| w.contains("xattr") || w.contains("attribute")).count(),
        4
    );
}

#[test]
fn one_note_stands_for_all_files_with_such_an_attribute() {
    let place = Place::new();
    let one = pax(&[("SCHILY.xattr.com.apple.provenance", b"x")], b"");
    let many: Vec<u8> = (0..300)
        .flat_map(|i| {
            let name = format!("usr/{i}\0");
            let header = one.len() - 1536;
            [&one[..header], &patched(one[header..].to_vec(), 0, name.as_bytes())[..512]].concat()
        })
        .chain([0; 1024])
        .collect();
    let warnings = place.import(&many).unwrap().warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("of 300 files (the first is \"usr/0\")"), "{warnings:?}");
}

/// Nobody can read or set these, though an archiver may have written them.
#[test]
fn user_attributes_of_links_and_devices_are_left_out_with_a_note() {
    let place = Place::new();
    for type_flag in [b'2', b'3', b'6'] {
        let tar =
            pax(&[("SCHILY.xattr.user.x", b"x"), ("SCHILY.xattr.trusted.x", b"x"), ("linkpath", b"to")], b"");
        let header = tar.len() - 1536;
        let tar = [&tar[..header], &patched(tar[header..].to_vec(), 156, &[type_flag])[..]].concat();
        let imported = place.import(&tar).unwrap();
        let list = place.list(&imported.root);
        let kept: Vec<_> = list[&b"/f"[..]].xattrs.iter().map(|(name, _)| name.to_vec()).collect();
        assert_eq!(kept, [b"trusted.x".to_vec()], "{type_flag}");
        assert!(imported.warnings.iter().any(|w| w.contains("user.x")), "{:?}", imported.warnings);
    }
}

/// An archive with a member of this type, and another after it.
fn of_type(type_flag: u8, name: &[u8], body: &[u8]) -> Vec<u8> {
    let tar = archive(&[(name, b'0', b"", body), (b"etc/after", b'0', b"", b"after")]);
    patched(tar, 156, &[type_flag])
}

#[test]
fn members_of_unknown_types_are_files_as_posix_says_with_a_note() {
    let place = Place::new();
    for type_flag in [b'Q', b'8', b'E', b'N', b'z', 0xff] {
        let imported = place.import(&of_type(type_flag, b"etc/q", b"content")).unwrap();
        let list = place.list(&imported.root);
        assert_eq!(place.content(&list[&b"/etc/q"[..]]), b"content", "{type_flag}");
        assert_eq!(place.content(&list[&b"/etc/after"[..]]), b"after", "{type_flag}");
        assert_eq!(imported.warnings.len(), 1, "{:?}", imported.warnings);
        assert!(imported.warnings[0].contains("imported as a regular file"), "{:?}", imported.warnings);
    }
    // GNU tar accepts it.
    let expected = Command::new("tar").arg("--version").output().is_ok_and(|o| o.status.success());
    if expected {
        let file = place.dir.path().join("q.tar");
        fs::write(&file, of_type(b'Q', b"etc/q", b"content")).unwrap();
        let output = Command::new("tar").arg("-C").arg(place.src()).arg("-xf").arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(place.src().join("etc/q")).unwrap(), b"content");
    }
}

#[test]
fn solaris_acls_are_left_out_with_a_note_and_are_not_files() {
    let place = Place::new();
    let imported = place.import(&of_type(b'A', b"etc/after", b"1000000\0")).unwrap();
    let list = place.list(&imported.root);
    assert_eq!(place.content(&list[&b"/etc/after"[..]]), b"after");
    assert!(imported.warnings.iter().any(|w| w.contains("Solaris")), "{:?}", imported.warnings);
}

#[test]
fn half_a_file_of_another_volume_is_refused() {
    let place = Place::new();
    let error = place.import(&of_type(b'M', b"etc/half", b"the rest")).unwrap_err().to_string();
    assert!(error.contains("etc/half") && error.contains("another volume"), "{error}");
}

#[test]
fn zeros_after_a_gzip_stream_are_padding_and_anything_else_is_damage() {
    let place = Place::new();
    let tar = archive(&[(b"etc/f", b'0', b"", &[9; 100_000])]);
    let expected = place.import(&tar).unwrap().root;
    let packed = gzip(&tar);
    // gzip(1) accepts these silently; a tape's block is 10240 bytes.
    for zeros in [1, 3, 511, 512, 10_240, 1 << 20] {
        let padded = [&packed[..], &vec![0; zeros]].concat();
        assert_eq!(place.import(&padded).unwrap().root, expected, "{zeros}");
    }
    let (first, second) = tar.split_at(50_000);
    let two = [gzip(first), gzip(second), vec![0; 512]].concat();
    assert_eq!(place.import(&two).unwrap().root, expected, "two members");
    for after in [&b"garbage"[..], b"\0\0\0garbage", b"\0\0\x1f\x8b"] {
        assert!(place.import(&[&packed[..], after].concat()).is_err(), "{after:?}");
    }
    // A member after the padding would be lost silently.
    assert!(place.import(&[gzip(first), vec![0; 512], gzip(second)].concat()).is_err());
    // The xz format allows padding; zstd has none, and zstd(1) refuses it.
    let xz = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(&tar).unwrap();
        encoder.finish().unwrap()
    };
    assert_eq!(place.import(&[&xz[..], &[0; 512]].concat()).unwrap().root, expected);
    assert!(place.import(&[&xz[..], &[0; 511]].concat()).is_err());
    assert!(place.import(&[zstd::encode_all(&tar[..], 1).unwrap(), vec![0; 512]].concat()).is_err());
}
