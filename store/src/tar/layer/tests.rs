//! The content of the identity tar of small trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::batch::Batch;
use crate::content::ingest;
use crate::inode::{ROOT_INO, Xattrs};
use crate::open::Store;
use crate::tar::identity::{TarHash, identity_hash, write_identity};
use crate::tar::{MemberKind, Reader};
use crate::tree::{Entry, WrittenDir, write_dir, write_links};

struct Place {
    _dir: tempfile::TempDir,
    store: Arc<Store>,
    trees: Trees,
}

/// A file: path, inode number, content.
type File<'a> = (&'a str, Ino, &'a [u8]);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Place { _dir: dir, trees: Trees::new(store.clone()), store }
    }

    /// A tree of files, in directories of at most one level; files with the same number are one inode.
    fn root(&self, files: &[File<'_>]) -> Root {
        self.changed_root(files, &|_| {})
    }

    fn changed_root(&self, files: &[File<'_>], change: &dyn Fn(&mut InodeRecord)) -> Root {
        let mut batch = Batch::new(&self.store).unwrap();
        let mut linked = BTreeMap::new();
        let mut directories: BTreeMap<&str, Vec<Entry>> = BTreeMap::from([("", Vec::new())]);
        let mut sorted = files.to_vec();
        sorted.sort();
        for (path, ino, bytes) in sorted {
            let (directory, name) = path.split_once('/').unwrap_or(("", path));
            let body = Body::Regular(ingest(&mut &*bytes, &mut batch).unwrap());
            let nlink = files.iter().filter(|f| f.1 == ino).count() as u32;
            let mut record = self.record(ino, 0o100_644, nlink, body);
            change(&mut record);
            let target = if nlink == 1 {
                Target::Inode(record)
            } else {
                linked.insert(ino, record);
                Target::Link { ino, kind: FileKind::Regular }
            };
            directories.entry(directory).or_default().push(Entry { name: name.as_bytes().into(), target });
        }
        let mut top = directories.remove("").unwrap();
        for (number, (name, mut entries)) in directories.into_iter().enumerate() {
            entries.retain(|e| !e.name.is_empty());
            let body = directory(write_dir(&mut batch, &mut entries.into_iter()).unwrap());
            let record = self.record(1000 + number as u64, 0o040_755, 2, body);
            top.push(Entry { name: name.as_bytes().into(), target: Target::Inode(record) });
        }
        top.sort_by(|a, b| a.name.cmp(&b.name));
        let body = directory(write_dir(&mut batch, &mut top.into_iter()).unwrap());
        let links = write_links(&mut batch, &mut linked.into_values()).unwrap();
        batch.commit().unwrap();
        Root { inode: self.record(ROOT_INO, 0o040_755, 2, body), links, next_ino: 5000 }
    }

    fn record(&self, ino: Ino, mode: u32, nlink: u32, body: Body) -> InodeRecord {
        let time = Timestamp::default();
        let (atime, mtime, ctime) = (time, time, time);
        InodeRecord {
            ino,
            mode,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            atime,
            mtime,
            ctime,
            xattrs: Xattrs::new(),
            body,
        }
    }

    fn hash(&self, old: &Root, new: &Root) -> TarHash {
        identity_hash(&self.trees, Some(old), new).unwrap()
    }

    /// The entries as text: `d/`, `f`, `b=a` for a hard link.
    fn names(&self, old: Option<&Root>, new: &Root) -> Vec<String> {
        let mut bytes = Vec::new();
        let partial = write_identity(&self.trees, old, new, &Names::new(), &mut bytes).unwrap();
        if !partial.is_empty() {
            let extra = other_names(&self.trees, new, &partial).unwrap();
            bytes.clear();
            assert!(write_identity(&self.trees, old, new, &extra, &mut bytes).unwrap().is_empty());
        }
        assert_eq!(blake3::hash(&bytes).as_bytes(), identity_hash(&self.trees, old, new).unwrap().as_bytes());
        let mut reader = Reader::new(&bytes[..]);
        let mut names = Vec::new();
        while let Some(member) = reader.next_member().unwrap() {
            let mut name = String::from_utf8(member.path).unwrap();
            if member.kind == MemberKind::HardLink {
                name = format!("{name}={}", String::from_utf8(member.link).unwrap());
            }
            names.push(name);
        }
        names
    }
}

fn directory(written: WrittenDir) -> Body {
    Body::Directory { tree: written.tree, links: written.links }
}

#[test]
fn a_change_brings_its_parent_directories_and_nothing_else() {
    let place = Place::new();
    let old = place.root(&[("a", 2, b"a"), ("d/x", 3, b"x"), ("d/y", 4, b"y"), ("e/z", 5, b"z")]);
    assert_eq!(place.names(None, &old), ["./", "a", "d/", "d/x", "d/y", "e/", "e/z"]);
    assert_eq!(place.names(Some(&old), &old), Vec::<String>::new());
    let new = place.root(&[("a", 2, b"a"), ("d/x", 3, b"x"), ("d/y", 4, b"new"), ("e/z", 5, b"z")]);
    assert_eq!(place.names(Some(&old), &new), ["./", "d/", "d/y"]);
}

#[test]
fn a_removed_tree_is_one_whiteout() {
    let place = Place::new();
    let old = place.root(&[("a", 2, b"a"), ("d/x", 3, b"x"), ("d/y", 4, b"y"), ("z", 5, b"z")]);
    assert_eq!(place.names(Some(&old), &place.root(&[("a", 2, b"a"), ("z", 5, b"z")])), ["./", ".wh.d"]);
    let new = place.root(&[("a", 2, b"a"), ("d/y", 4, b"y")]);
    assert_eq!(place.names(Some(&old), &new), ["./", "d/", "d/.wh.x", ".wh.z"]);
    // A file replaces a directory, and a directory replaces a file.
    let new = place.root(&[("a/x", 7, b"x"), ("d", 8, b"d"), ("z", 5, b"z")]);
    assert_eq!(place.names(Some(&old), &new), ["./", "a/", "a/x", "d"]);
    assert_eq!(place.names(Some(&old), &place.root(&[])), ["./", ".wh.a", ".wh.d", ".wh.z"]);
}

#[test]
fn a_literal_whiteout_name_is_not_a_deletion() {
    let place = Place::new();
    let old = place.root(&[("x", 2, b"")]);
    let deleted = place.root(&[]);
    let literal = place.root(&[("x", 2, b""), (".wh.x", 3, b"")]);
    assert_eq!(place.names(Some(&old), &literal), ["./", ".wh.x"]);
    assert_ne!(place.hash(&old, &deleted), place.hash(&old, &literal));
    let mut bytes = Vec::new();
    write_identity(&place.trees, Some(&old), &literal, &Names::new(), &mut bytes).unwrap();
    assert!(bytes.windows(21).any(|w| w == b"22 KARAPACE.literal=1"));
}

#[test]
fn a_link_is_not_a_copy() {
    let place = Place::new();
    let old = place.root(&[("a", 2, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e")]);
    let linked = place.root(&[("a", 2, b"same"), ("b", 2, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e")]);
    let other = place.root(&[("a", 2, b"same"), ("b", 3, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e")]);
    let copied = place.root(&[("a", 2, b"same"), ("b", 9, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e")]);
    assert_eq!(place.names(Some(&old), &linked), ["./", "a", "b=a"]);
    assert_eq!(place.names(Some(&old), &other), ["./", "b", "c=b"]);
    assert_eq!(place.names(Some(&old), &copied), ["./", "b"]);
    // A name in another directory that is otherwise unchanged.
    let far = place.root(&[("a", 2, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e"), ("f", 4, b"e")]);
    assert_eq!(place.names(Some(&old), &far), ["./", "d/", "d/e", "f=d/e"]);
    let renamed = place.root(&[("a", 2, b"same"), ("c", 3, b"same"), ("d/e", 4, b"e"), ("g", 4, b"e")]);
    assert_eq!(place.names(Some(&far), &renamed), ["./", "d/", "d/e", ".wh.f", "g=d/e"]);
}

#[test]
fn a_change_to_a_linked_inode_brings_all_its_names() {
    let place = Place::new();
    let files: [File<'_>; 3] = [("a", 2, b"old"), ("d/b", 2, b"old"), ("e", 3, b"e")];
    let old = place.root(&files);
    let new = place.root(&[("a", 2, b"new"), ("d/b", 2, b"new"), ("e", 3, b"e")]);
    assert_eq!(place.names(Some(&old), &new), ["./", "a", "d/", "d/b=a"]);
    let owned = place.changed_root(&files, &|r| r.uid = if r.ino == 2 { 7 } else { 0 });
    assert_eq!(place.names(Some(&old), &owned), ["./", "a", "d/", "d/b=a"]);
}

#[test]
fn sizes_and_holes_are_records() {
    let place = Place::new();
    let mut bytes = vec![1; 200_000];
    bytes[65_536..131_072].fill(0);
    let root = place.root(&[("f", 2, &bytes), ("g", 3, b"12345"), ("h", 4, b"")]);
    let mut tar = Vec::new();
    write_identity(&place.trees, None, &root, &Names::new(), &mut tar).unwrap();
    let has = |text: &[u8]| tar.windows(text.len()).any(|w| w == text);
    assert!(has(b" KARAPACE.size=200000\n") && has(b" KARAPACE.extents=0,65536,131072,68928\n"));
    assert!(has(b" KARAPACE.size=5\n") && has(b" KARAPACE.size=0\n"));
    assert!(has(ObjectId::of(b"12345").to_hex().as_bytes()));
}
