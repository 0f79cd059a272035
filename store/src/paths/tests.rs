//! The cases of docs/MANIFEST.md, "Chosen paths", on a host directory and on the tree imported from it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::import::import_path;
use crate::open::Store;
use crate::progress::NoProgress;
use crate::tree::StoredTree;
use crate::tree::Trees;

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// A tree with `/etc/passwd`, `/tmp/x`, `/tmpfile` and `/usr/lib/a/b`.
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        for path in ["etc/passwd", "tmp/x", "tmpfile", "usr/lib/a/b"] {
            place.file(path);
        }
        place
    }

    fn top(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    fn file(&self, path: &str) {
        let path = self.top().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        symlink(target, self.top().join(path)).unwrap();
    }

    /// Calls it on both trees; the results must agree.
    fn both(&self, call: &Call<'_>) -> Vec<String> {
        let host = HostTree::open(&self.top()).unwrap();
        let store = Store::open(&self.dir.path().join("store")).unwrap();
        let imported = import_path(&store, &self.top(), &NoProgress).unwrap();
        let trees = Trees::new(store);
        let root = trees.root(&imported.root).unwrap();
        let on_host = call.run(&host);
        assert_eq!(on_host, call.run(&StoredTree::new(&trees, &root)));
        on_host.into_iter().map(|path| String::from_utf8(path).unwrap()).collect()
    }

    fn resolve(&self, paths: &[&str], ignored: &[&str]) -> Vec<String> {
        self.both(&Call::Resolve(&bytes(paths), &ignore(ignored)))
    }

    fn scan(&self, from: &str, ignored: &[&str]) -> Vec<String> {
        self.both(&Call::Scan(from.as_bytes(), &ignore(ignored)))
    }

    fn choose(&self, paths: &[&str], ignored: &[&str]) -> Vec<String> {
        self.both(&Call::Choose(&bytes(paths), &ignore(ignored)))
    }
}

enum Call<'a> {
    Scan(&'a [u8], &'a Ignore),
    Resolve(&'a [Vec<u8>], &'a Ignore),
    Choose(&'a [Vec<u8>], &'a Ignore),
}

impl Call<'_> {
    fn run<T: PathTree>(&self, tree: &T) -> Vec<Vec<u8>> {
        match self {
            Call::Scan(from, ignore) => scan(tree, from, ignore).unwrap(),
            Call::Resolve(paths, ignore) => resolve(tree, paths, ignore).unwrap(),
            Call::Choose(paths, ignore) => choose(tree, paths, ignore).unwrap(),
        }
    }
}

fn bytes(paths: &[&str]) -> Vec<Vec<u8>> {
    paths.iter().map(|path| path.as_bytes().to_vec()).collect()
}

fn ignore(paths: &[&str]) -> Ignore {
    Ignore::new(bytes(paths))
}

#[test]
fn scan_walks_in_the_order_of_components_and_follows_nothing() {
    let place = Place::new();
    place.link("usr/lib64", "lib");
    place.file("usr/lib.d");
    let all = [
        "/",
        "/etc",
        "/etc/passwd",
        "/tmp",
        "/tmp/x",
        "/tmpfile",
        "/usr",
        "/usr/lib",
        "/usr/lib/a",
        "/usr/lib/a/b",
        "/usr/lib.d",
        "/usr/lib64",
    ];
    assert_eq!(place.scan("/", &[]), all);
    assert_eq!(place.scan("/usr/lib", &[]), ["/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]);
    // Not through a link, nor below a file, nor for a missing path.
    assert!(place.scan("/usr/lib64/a", &[]).is_empty());
    assert!(place.scan("/etc/passwd/x", &[]).is_empty());
    assert!(place.scan("/nowhere", &[]).is_empty());
    assert_eq!(place.scan("/usr/lib64", &[]), ["/usr/lib64"]);
}

#[test]
fn scan_prunes_what_is_ignored_by_whole_components() {
    let place = Place::new();
    assert_eq!(place.scan("/", &["/tmp", "/usr/lib"]), ["/", "/etc", "/etc/passwd", "/tmpfile", "/usr"]);
    assert!(place.scan("/tmp/x", &["/tmp"]).is_empty());
}

#[test]
fn a_pruned_directory_is_not_opened() {
    let place = Place::new();
    let host = HostTree::open(&place.top()).unwrap();
    struct Watched(HostTree);
    impl PathTree for Watched {
        type Node = <HostTree as PathTree>::Node;
        fn root(&self) -> Result<Self::Node> {
            self.0.root()
        }
        fn lookup(&self, dir: &Self::Node, name: &[u8]) -> Result<Option<(Self::Node, FileKind)>> {
            assert_ne!(name, b"x", "looked into what is ignored");
            self.0.lookup(dir, name)
        }
        fn readlink(&self, link: &Self::Node) -> Result<Vec<u8>> {
            self.0.readlink(link)
        }
        fn list(&self, dir: &Self::Node) -> Result<Vec<Box<[u8]>>> {
            self.0.list(dir)
        }
    }
    assert_eq!(scan(&Watched(host), b"/", &ignore(&["/tmp"])).unwrap().len(), 8);
}

#[test]
fn resolve_adds_ancestors_and_skips_what_is_ignored_or_missing() {
    let place = Place::new();
    assert_eq!(
        place.resolve(&["/usr/lib/a/b"], &[]),
        ["/", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]
    );
    assert_eq!(place.resolve(&["/tmpfile", "/tmp/x"], &["/tmp"]), ["/", "/tmpfile"]);
    assert_eq!(place.resolve(&["/tmp"], &["/tmp"]), [""; 0]);
    assert_eq!(place.resolve(&["/nowhere/at/all", "/etc/passwd/x"], &[]), [""; 0]);
    assert_eq!(place.resolve(&["/"], &[]), ["/"]);
}

#[test]
fn a_link_brings_its_target_through_all_hops_inside_the_root() {
    let place = Place::new();
    place.link("one", "etc/two");
    place.link("etc/two", "../three");
    place.link("three", "/usr/lib/a/b");
    assert_eq!(
        place.resolve(&["/one"], &[]),
        ["/", "/etc", "/etc/two", "/one", "/three", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]
    );
    // `..` never leads above the root.
    place.link("up", "../../../../../../../../../etc/passwd");
    assert_eq!(place.resolve(&["/up"], &[]), ["/", "/etc", "/etc/passwd", "/up"]);
    place.link("usr/top", "..");
    assert_eq!(place.resolve(&["/usr/top"], &[]), ["/", "/usr", "/usr/top"]);
    // If the target is a directory, the directory itself is included, but not its entries.
    place.link("dir", "usr");
    assert_eq!(place.resolve(&["/dir"], &[]), ["/", "/dir", "/usr"]);
}

#[test]
fn the_host_is_never_reached() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    place.link("host", outside.to_str().unwrap());
    place.link("above", "../outside");
    assert!(Path::new(&place.top().join("above")).exists(), "the host would follow it");
    assert_eq!(place.resolve(&["/host", "/above"], &[]), ["/", "/above", "/host"]);
    place.link("proc", "/proc");
    assert_eq!(place.resolve(&["/proc", "/proc/self"], &[]), ["/", "/proc"]);
}

#[test]
fn links_among_the_directories_above_are_taken() {
    let place = Place::new();
    place.link("lib", "usr/lib");
    assert_eq!(
        place.resolve(&["/lib/a/b"], &[]),
        ["/", "/lib", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]
    );
    assert_eq!(place.resolve(&["/lib/a/b"], &["/usr/lib"]), ["/", "/lib"]);
    let tree = HostTree::open(&place.top()).unwrap();
    assert_eq!(locate(&tree, b"/lib/a").unwrap().unwrap(), b"/usr/lib/a");
    assert_eq!(locate(&tree, b"/lib").unwrap().unwrap(), b"/lib");
    assert!(locate(&tree, b"/lib/none").unwrap().is_none());
    let kind = |path: &[u8]| find(&tree, path).unwrap().map(|(_, kind)| kind);
    assert_eq!(kind(b"/lib/a/b"), Some(FileKind::Regular));
    assert_eq!(kind(b"/lib"), Some(FileKind::Directory));
    assert_eq!(kind(b"/lib/a/.."), Some(FileKind::Directory));
    assert_eq!(kind(b"/"), Some(FileKind::Directory));
    for nothing in ["/lib/none", "/lib/a/b/c", "/lib/a/b/."] {
        assert_eq!(kind(nothing.as_bytes()), None, "{nothing}");
    }
}

#[test]
fn loops_and_dangling_links_come_alone_and_cut_nothing_short() {
    let place = Place::new();
    place.link("a", "b");
    place.link("b", "a");
    place.link("self", "self");
    place.link("dangling", "etc/none");
    place.link("chain", "dangling");
    place.link("through", "etc/passwd/x");
    let chosen = ["/a", "/self", "/dangling", "/through", "/self/x", "/chain", "/tmp/x"];
    let taken = ["/", "/a", "/chain", "/dangling", "/self", "/through", "/tmp", "/tmp/x"];
    assert_eq!(place.resolve(&chosen, &[]), taken);
    // Forty links are followed; one more counts as a loop.
    place.link("hop0", "etc/passwd");
    for i in 1..=40 {
        place.link(&format!("hop{i}"), &format!("hop{}", i - 1));
    }
    assert_eq!(place.resolve(&["/hop39"], &[]).len(), 40 + 3);
    assert_eq!(place.resolve(&["/hop40"], &[]), ["/", "/hop40"]);
    let tree = HostTree::open(&place.top()).unwrap();
    assert_eq!(find(&tree, b"/hop39").unwrap().map(|(_, kind)| kind), Some(FileKind::Regular));
    for nothing in ["/hop40", "/self", "/chain", "/through"] {
        assert!(find(&tree, nothing.as_bytes()).unwrap().is_none(), "{nothing}");
    }
}

#[test]
fn a_link_to_what_is_ignored_is_kept_and_its_target_not() {
    let place = Place::new();
    place.link("cache", "tmp/x");
    assert_eq!(place.resolve(&["/cache"], &["/tmp"]), ["/", "/cache"]);
    place.link("far", "cache");
    assert_eq!(place.resolve(&["/far"], &["/tmp"]), ["/", "/cache", "/far"]);
    // Whatever the ignored link leads to.
    place.link("tmp/back", "../etc/passwd");
    place.link("via", "tmp/back");
    assert_eq!(place.resolve(&["/via"], &["/tmp"]), ["/", "/via"]);
}

#[test]
fn chosen_directories_are_taken_whole_with_what_their_links_lead_to() {
    let place = Place::new();
    place.link("usr/lib/data", "../../etc/passwd");
    place.link("lib", "usr/lib");
    let all = ["/", "/etc", "/etc/passwd", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b", "/usr/lib/data"];
    assert_eq!(place.choose(&["/usr"], &[]), all);
    // The link on the way to a chosen path is included; a chosen link does not include its target's entries.
    assert_eq!(
        place.choose(&["/lib/a"], &[]),
        ["/", "/lib", "/usr", "/usr/lib", "/usr/lib/a", "/usr/lib/a/b"]
    );
    assert_eq!(place.choose(&["/lib"], &[]), ["/", "/lib", "/usr", "/usr/lib"]);
}

#[test]
fn names_of_any_bytes() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let name = b"odd\n\xff\xfe name";
    fs::write(place.top().join(OsStr::from_bytes(name)), "x").unwrap();
    let tree = HostTree::open(&place.top()).unwrap();
    let path = [b"/", &name[..]].concat();
    assert!(scan(&tree, b"/", &Ignore::default()).unwrap().contains(&path));
    assert_eq!(
        resolve(&tree, std::slice::from_ref(&path), &Ignore::default()).unwrap(),
        [b"/".to_vec(), path]
    );
}

#[test]
fn prefixes_are_of_whole_components() {
    let list = ignore(&["/tmp", "/var/cache/apt"]);
    for covered in ["/tmp", "/tmp/a", "/var/cache/apt/x/y"] {
        assert!(list.covers(covered.as_bytes()), "{covered}");
    }
    for free in ["/", "/tmpfile", "/tm", "/var/cache", "/var/cache/apt2", "/x/tmp"] {
        assert!(!list.covers(free.as_bytes()), "{free}");
    }
    assert!(is_at_or_below(b"/a", b"/") && is_at_or_below(b"/", b"/"));
}

#[test]
fn paths_are_normalised() {
    let table: [(&str, Option<&str>); 7] = [
        ("/", Some("/")),
        ("//a/./b/", Some("/a/b")),
        ("/.", Some("/")),
        ("a", None),
        ("", None),
        ("/a/../b", None),
        ("/..a/b..", Some("/..a/b..")),
    ];
    for (path, expected) in table {
        assert_eq!(normalise(path.as_bytes()), expected.map(|p| p.as_bytes().to_vec()), "{path}");
    }
}
