//! Upper directories as written by overlayfs and fuse-overlayfs, made by hand. (tests/e2e/suites/import.sh
//! uses the real ones.)

use super::*;

/// A store with a lower tree, and an empty upper directory.
struct Overlay {
    place: Place,
    lower: ObjectId,
}

impl Overlay {
    fn new() -> Overlay {
        let place = Place::new();
        let lower = place
            .import(&archive(&[
                (b"a/", b'5', b"", b""),
                (b"a/b/", b'5', b"", b""),
                (b"a/b/deep", b'0', b"", b"deep"),
                (b"a/f", b'0', b"", b"lower f"),
                (b"a/g", b'1', b"a/f", b""),
                (b"d/", b'5', b"", b""),
                (b"d/one", b'0', b"", b"1"),
                (b"d/two", b'0', b"", b"2"),
                (b"top", b'0', b"", b"top"),
            ]))
            .unwrap()
            .root;
        Overlay { place, lower }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.place.src().join(name)
    }

    fn dir(&self, name: &str, xattrs: &[(&str, &str)]) {
        fs::create_dir_all(self.path(name)).unwrap();
        xattrs.iter().for_each(|(name_, value)| xattr(&self.path(name), name_, value.as_bytes()));
    }

    fn file(&self, name: &str, content: &[u8], xattrs: &[(&str, &str)]) {
        fs::write(self.path(name), content).unwrap();
        xattrs.iter().for_each(|(name_, value)| xattr(&self.path(name), name_, value.as_bytes()));
    }

    fn whiteout(&self, name: &str) {
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, self.path(name), kind, 0.into(), 0).unwrap();
    }

    fn import(&self) -> Result<Imported> {
        let trees = Trees::new(self.place.store.clone());
        let lower = trees.root(&self.lower).unwrap();
        import_upper(&trees, &lower, &self.place.src(), Mounts::LeaveOut, &NoProgress)
    }

    /// The paths that show, with the content of files.
    fn shown(&self) -> Vec<String> {
        let list = self.place.list(&self.import().unwrap().root);
        let text = |(path, record): (&Vec<u8>, &InodeRecord)| {
            let path = String::from_utf8_lossy(path).into_owned();
            match record.kind() {
                FileKind::Regular => {
                    format!("{path}={}", String::from_utf8_lossy(&self.place.content(record)))
                }
                _ => path,
            }
        };
        list.iter().map(text).collect()
    }

    fn refused(&self, path: &str, words: &str) {
        let error = self.import().unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(words), "{path}, {words}: {error}");
        assert_eq!(self.place.staged(), 0);
    }
}

#[test]
fn an_empty_upper_changes_nothing_below() {
    let overlay = Overlay::new();
    fs::set_permissions(overlay.place.src(), fs::Permissions::from_mode(0o700)).unwrap();
    let imported = overlay.import().unwrap();
    let (before, after) = (overlay.place.list(&overlay.lower), overlay.place.list(&imported.root));
    // The root's attributes are those of the upper, as in the mount.
    assert_eq!(after[&b"/"[..]].mode, 0o040_700);
    let rest = |list: &BTreeMap<Vec<u8>, InodeRecord>| list.clone().into_iter().skip(1).collect::<Vec<_>>();
    assert_eq!(rest(&before), rest(&after));
    // Only the root object is new: the listings are the existing ones.
    assert_eq!(imported.stats.objects_new, 1);
}

#[test]
fn whiteouts_opaque_directories_and_changes_of_both_kinds() {
    let overlay = Overlay::new();
    overlay.dir("a", &[]);
    overlay.whiteout("a/b");
    overlay.file("a/f", b"upper f", &[("user.overlay.origin", "x"), ("user.note", "kept")]);
    overlay.dir("d", &[("user.overlay.opaque", "y")]);
    overlay.file("d/new", b"n", &[]);
    overlay.file(".wh.top", b"", &[]);
    let shown = ["/", "/a", "/a/f=upper f", "/a/g=lower f", "/d", "/d/new=n"];
    assert_eq!(overlay.shown(), shown);
    let list = overlay.place.list(&overlay.import().unwrap().root);
    let names: Vec<_> = list[&b"/a/f"[..]].xattrs.iter().map(|(n, _)| n.to_vec()).collect();
    assert_eq!((names, list[&b"/a/g"[..]].nlink), (vec![b"user.note".to_vec()], 1));
    // The same as written by fuse-overlayfs.
    fs::remove_dir_all(overlay.path("d")).unwrap();
    fs::remove_file(overlay.path("a/b")).unwrap();
    overlay.file("a/.wh.b", b"", &[]);
    overlay.dir("d", &[("user.fuseoverlayfs.origin", "x")]);
    overlay.file("d/.wh..wh..opq", b"", &[]);
    overlay.file("d/new", b"n", &[]);
    assert_eq!(overlay.shown(), shown);
}

/// A socket shows instead of what is below, and is left out.
#[test]
fn a_socket_covers_what_is_below() {
    let overlay = Overlay::new();
    overlay.dir("d", &[]);
    std::os::unix::net::UnixListener::bind(overlay.path("d/one")).unwrap();
    assert!(!overlay.shown().contains(&"/d/one=1".to_owned()));
}

#[test]
fn whiteouts_as_empty_files_count_where_their_directory_says_so() {
    let overlay = Overlay::new();
    overlay.dir("d", &[("user.overlay.opaque", "x")]);
    overlay.file("d/one", b"", &[("user.overlay.whiteout", "y")]);
    overlay.dir("a", &[]);
    overlay.file("a/f", b"", &[("user.overlay.whiteout", "y")]);
    let shown = overlay.shown();
    assert!(shown.contains(&"/a/f=".to_owned()) && shown.contains(&"/d/two=2".to_owned()), "{shown:?}");
    assert!(!shown.iter().any(|s| s.starts_with("/d/one")), "{shown:?}");
}

#[test]
fn renamed_directories_bring_what_they_had_below() {
    let overlay = Overlay::new();
    // mv a/b b; mv a moved; rm b/deep was not done, moved/f was removed.
    overlay.dir("b", &[("user.overlay.redirect", "/a/b")]);
    overlay.dir("moved", &[("user.overlay.redirect", "a")]);
    overlay.whiteout("moved/b");
    overlay.whiteout("moved/f");
    overlay.whiteout("a");
    assert_eq!(
        overlay.shown(),
        ["/", "/b", "/b/deep=deep", "/d", "/d/one=1", "/d/two=2", "/moved", "/moved/g=lower f", "/top=top"]
    );
    // Renamed entries keep their inode numbers.
    let list = overlay.place.list(&overlay.import().unwrap().root);
    let before = overlay.place.list(&overlay.lower);
    assert_eq!(list[&b"/b/deep"[..]].ino, before[&b"/a/b/deep"[..]].ino);
    assert_eq!(list[&b"/moved"[..]].ino, before[&b"/a"[..]].ino);
}

#[test]
fn metadata_only_copies_take_their_data_from_the_lower() {
    let overlay = Overlay::new();
    overlay.dir("a", &[]);
    let metacopy = [("user.overlay.metacopy", "")];
    overlay.file("a/f", &[0; 7], &metacopy);
    fs::set_permissions(overlay.path("a/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    overlay.file("renamed", &[0; 3], &[metacopy[0], ("user.overlay.redirect", "/top")]);
    fs::hard_link(overlay.path("renamed"), overlay.path("twice")).unwrap();
    overlay.whiteout("top");
    let shown = overlay.shown();
    for expected in ["/a/f=lower f", "/a/g=lower f", "/renamed=top", "/twice=top"] {
        assert!(shown.contains(&expected.to_owned()), "{expected}: {shown:?}");
    }
    let list = overlay.place.list(&overlay.import().unwrap().root);
    assert_eq!((list[&b"/a/f"[..]].mode, list[&b"/twice"[..]].nlink), (0o104_711, 2));
}

#[test]
fn unresolvable_entries_are_refused_by_name() {
    let metacopy = ("user.overlay.metacopy", "");
    type Case<'a> = (&'a str, &'a str, &'a dyn Fn(&Overlay));
    let cases: [Case<'_>; 10] = [
        ("x", "renamed", &|o| o.dir("x", &[("user.overlay.redirect", "/not/there")])),
        ("x", "renamed", &|o| o.dir("x", &[("user.overlay.redirect", "/top")])),
        ("x/y", "renamed", &|o| {
            o.dir("x", &[]);
            o.dir("x/y", &[("user.overlay.redirect", "b")]);
        }),
        ("x", "'..'", &|o| o.dir("x", &[("user.overlay.redirect", "/../a")])),
        ("top", "metadata", &|o| o.file("top", b"1", &[metacopy])),
        ("new", "metadata", &|o| o.file("new", b"1", &[metacopy])),
        ("new", "metadata", &|o| o.file("new", b"1", &[metacopy, ("user.overlay.redirect", "/a")])),
        ("y", "the same directory of the lower", &|o| {
            o.dir("x", &[("user.overlay.redirect", "/a")]);
            o.dir("y", &[("user.overlay.redirect", "/a")]);
        }),
        ("", "two places", &|o| o.dir("x", &[("user.overlay.redirect", "/a/b")])),
        (".wh.x", "is not one", &|o| o.file(".wh.x", b"content", &[])),
    ];
    for (path, words, make) in cases {
        let overlay = Overlay::new();
        make(&overlay);
        // Two directories, one of which claims to have been the other: the error names the one met second.
        let path = if path == "y" { "" } else { path };
        overlay.refused(path, words);
    }
    let overlay = Overlay::new();
    overlay.dir(".karapace", &[]);
    overlay.refused(".karapace", "reserved");
}

#[test]
fn root_s_own_attributes_count_where_root_imports() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let overlay = Overlay::new();
    overlay.dir("d", &[("trusted.overlay.opaque", "y")]);
    overlay.dir("a", &[("trusted.overlay.overlay.opaque", "y")]);
    let list = overlay.place.list(&overlay.import().unwrap().root);
    assert!(!list.contains_key(&b"/d/one"[..]) && list.contains_key(&b"/a/f"[..]));
    assert!(list[&b"/a"[..]].xattrs.get(b"trusted.overlay.opaque").is_some());
}
