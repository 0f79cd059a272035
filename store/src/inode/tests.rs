use proptest::prelude::*;

use super::*;
use crate::content::Extent;

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn content() -> impl Strategy<Value = FileContent> {
    let extent = (0u64..1 << 30, 1u64..1 << 30, 0u8..4, 0u64..1 << 40);
    let listed = (proptest::collection::vec(extent, 0..6), 1u64..1 << 20, any::<[u8; 32]>()).prop_map(
        |(extents, tail, hash)| {
            let mut end = 0;
            let mut list = Vec::new();
            for (gap, length, object, object_offset) in extents {
                let object = ObjectId::of(&[object]);
                list.push(Extent { offset: end + gap, length, object, object_offset });
                end += gap + length;
            }
            FileContent::listed(end + tail, ObjectId::from_bytes(hash), list)
        },
    );
    prop_oneof![
        Just(FileContent::empty()),
        (1u64..=crate::content::SMALL_MAX, any::<[u8; 32]>())
            .prop_map(|(size, hash)| FileContent::plain(size, ObjectId::from_bytes(hash))),
        listed,
    ]
}

/// Any record that can be stored.
pub(crate) fn record() -> impl Strategy<Value = InodeRecord> {
    let body = prop_oneof![
        (proptest::option::of(any::<[u8; 32]>()), any::<bool>()).prop_map(|(tree, links)| {
            let links = links && tree.is_some();
            (FileKind::Directory, Body::Directory { tree: tree.map(ObjectId::from_bytes), links })
        }),
        content().prop_map(|content| (FileKind::Regular, Body::Regular(content))),
        proptest::collection::vec(any::<u8>(), 0..50)
            .prop_map(|t| (FileKind::Symlink, Body::Symlink(t.into()))),
        proptest::sample::select(vec![
            FileKind::Fifo,
            FileKind::Socket,
            FileKind::CharDevice,
            FileKind::BlockDevice
        ])
        .prop_map(|kind| (kind, Body::Special)),
    ];
    let xattr = (proptest::collection::vec(1u8.., 1..20), proptest::collection::vec(any::<u8>(), 0..40));
    (
        (1..=MAX_INO, 0u32..=0o7777, any::<[u32; 3]>(), any::<u64>(), any::<[bool; 2]>()),
        [time(), time(), time()],
        proptest::collection::vec(xattr, 0..4),
        body,
    )
        .prop_map(|((ino, bits, [nlink, uid, gid], rdev, same), times, xattrs, (kind, body))| {
            InodeRecord {
                ino,
                mode: kind.to_mode() | bits,
                nlink,
                uid,
                gid,
                rdev: if kind.is_device() { rdev } else { 0 },
                atime: if same[0] { times[1] } else { times[0] },
                mtime: times[1],
                ctime: if same[1] { times[1] } else { times[2] },
                xattrs: xattrs.into_iter().collect(),
                body,
            }
        })
}

proptest! {
    #[test]
    fn records_round_trip(record in record()) {
        record.check().unwrap();
        let mut out = Vec::new();
        record.encode(&mut out);
        let mut decoder = Decoder::new("test", &out);
        prop_assert_eq!(InodeRecord::decode(&mut decoder).unwrap(), record);
        decoder.finish().unwrap();
    }

    #[test]
    fn a_damaged_record_is_refused_or_canonical(
        record in record(),
        at in any::<proptest::sample::Index>(),
        byte: u8,
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let mut decoder = Decoder::new("test", &bytes);
        if let Ok(record) = InodeRecord::decode(&mut decoder) {
            record.check().unwrap();
            let mut out = Vec::new();
            record.encode(&mut out);
            prop_assert_eq!(&out[..], &bytes[..decoder.position()]);
        }
        bytes.truncate(cut.index(bytes.len()));
        let mut decoder = Decoder::new("test", &bytes);
        drop(InodeRecord::decode(&mut decoder));
    }

    #[test]
    fn garbage_is_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..150)) {
        let mut decoder = Decoder::new("test", &bytes);
        if let Ok(record) = InodeRecord::decode(&mut decoder) {
            let mut out = Vec::new();
            record.encode(&mut out);
            prop_assert_eq!(&out[..], &bytes[..decoder.position()]);
        }
    }
}

#[test]
fn an_ordinary_record_is_compact() {
    let time = Timestamp { secs: 1_700_000_000, nanos: 123_456_789 };
    let record = InodeRecord {
        ino: 13_000,
        mode: 0o100_644,
        nlink: 1,
        uid: 1000,
        gid: 1000,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: Timestamp { secs: 1_800_000_000, nanos: 987_654_321 },
        xattrs: Xattrs::default(),
        body: Body::Regular(FileContent::plain(9000, ObjectId::of(b"x"))),
    };
    let mut out = Vec::new();
    record.encode(&mut out);
    assert!(out.len() < 72, "{} bytes", out.len());
}

#[test]
fn attributes_stay_sorted() {
    let mut xattrs = Xattrs::new();
    xattrs.set(b"user.b", b"1");
    xattrs.set(b"user.a", b"2");
    xattrs.set(b"user.b", b"3");
    assert_eq!(xattrs.iter().collect::<Vec<_>>(), [(&b"user.a"[..], &b"2"[..]), (b"user.b", b"3")]);
    assert_eq!(xattrs.get(b"user.b"), Some(&b"3"[..]));
    assert!(xattrs.remove(b"user.a") && !xattrs.remove(b"user.a"));
    assert_eq!((xattrs.len(), xattrs.get(b"user.a")), (1, None));
}

#[test]
fn kinds_and_modes_agree() {
    for bits in 0..16 {
        if let Some(kind) = FileKind::from_mode(bits << 12 | 0o644) {
            assert_eq!(kind.to_mode(), bits << 12);
        }
    }
}

#[test]
fn times_before_1970_round_down() {
    let time = UNIX_EPOCH - std::time::Duration::from_millis(1500);
    assert_eq!(Timestamp::from(time), Timestamp { secs: -2, nanos: 500_000_000 });
    assert!(Timestamp::now() > Timestamp::from_secs(1_700_000_000));
}
