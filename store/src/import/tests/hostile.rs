//! Archives made to do harm: each gives the error or the outcome that docs/SECURITY.md names.
//!
use super::*;

#[test]
fn hostile_archives_are_refused_by_name() {
    let place = Place::new();
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
        ("not known", archive(&[(b"q", b'Q', b"", b"")])),
        ("truncated", archive(&[(b"big", b'0', b"", &[1; 4096])]).tap(|a| a.truncate(2000))),
        ("truncated", archive(&[(b"f", b'0', b"", b"")]).tap(|a| a.truncate(512))),
        ("truncated", Vec::new()),
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
