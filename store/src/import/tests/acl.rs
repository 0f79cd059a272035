//! ACLs in archives that differ from the permission bits.

use super::*;
use crate::acl::{ACCESS, DEFAULT};

/// Name, type flag, mode, records.
type WithRecords<'a> = (&'a str, u8, u32, &'a [(&'a str, &'a [u8])]);

/// An archive of members without content.
fn with_acls(members: &[WithRecords<'_>]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    for (path, type_flag, mode, records) in members {
        let header = EntryHeader {
            path: path.as_bytes(),
            link: if *type_flag == b'2' { b"nowhere" } else { b"" },
            type_flag: *type_flag,
            mode: *mode,
            uid: 1,
            gid: 2,
            size: 0,
            mtime: Timestamp { secs: 100, nanos: 0 },
            device: (0, 0),
        };
        let records: Records = records.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec())).collect();
        encoder.entry(&header, records).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn an_acl_decides_over_the_mode_of_its_header() {
    const NAMED: &[u8] = b"user::rw-,group::r--,other::---,user:joe:rw-:1000,mask::rw-";
    const MINIMAL: &[u8] = b"user::rwx,group::r-x,other::r-x";
    let place = Place::new();
    let access = |text: &'static [u8]| [("SCHILY.acl.access", text)];
    let raw: &[u8] = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    let imported = place
        .import(&with_acls(&[
            // bsdtar stores the group's own permissions in the header, GNU tar the mask.
            ("bsdtar", b'0', 0o640, &access(NAMED)),
            ("gnu", b'0', 0o660, &access(NAMED)),
            ("raw", b'0', 0o6640, &[("SCHILY.xattr.system.posix_acl_access", raw)]),
            ("minimal", b'0', 0o700, &access(MINIMAL)),
            // For a directory with either kind of ACL, GNU tar writes both.
            ("dir/", b'5', 0o755, &[("SCHILY.acl.access", MINIMAL), ("SCHILY.acl.default", MINIMAL)]),
            ("no-mask", b'0', 0o750, &access(b"user::rwx,user:1000:rwx,group::r-x,other::---")),
            ("default", b'0', 0o644, &[("SCHILY.acl.default", MINIMAL)]),
            ("link", b'2', 0o777, &access(NAMED)),
            ("etc/", b'5', 0o755, &[]),
        ]))
        .unwrap();
    let list = place.list(&imported.root);
    let found = |path: &str| {
        let record = &list[path.as_bytes()];
        let has = |name| record.xattrs.get(name).is_some();
        (record.mode & 0o7777, has(ACCESS), has(DEFAULT))
    };
    assert_eq!(found("/bsdtar"), (0o660, true, false));
    assert_eq!(found("/gnu"), (0o660, true, false));
    assert_eq!(found("/raw"), (0o6660, true, false));
    assert_eq!(list[&b"/raw"[..]].xattrs, list[&b"/bsdtar"[..]].xattrs);
    assert_eq!(found("/minimal"), (0o755, false, false));
    assert_eq!(found("/dir"), (0o755, false, true));
    // An ACL that Linux refuses causes a warning and leaves the mode unchanged.
    assert_eq!(found("/no-mask"), (0o750, false, false));
    assert_eq!(found("/default"), (0o644, false, false));
    assert!(!found("/link").1);
    let told = |name: &str| imported.warnings.iter().filter(|note| note.contains(name)).count();
    assert_eq!(["no-mask", "default\"", "link"].map(told), [1; 3], "{:?}", imported.warnings);
    assert_eq!(imported.warnings.len(), 3, "{:?}", imported.warnings);
}
