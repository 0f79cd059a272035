//! Folding an overlay into a view: random operations on the kernel's overlayfs, and the view must then show
//! what the overlay showed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karapace_fs::attr::HeadRef;
use karapace_fs::view::View;
use karapace_store::Store;
use karapace_store::id::{LayerHash, RecordId};
use karapace_store::import::import_path;
use karapace_store::import::upper::Writer;
use karapace_store::inode::{FileKind, Ino, ROOT_INO};
use karapace_store::progress::NoProgress;
use karapace_store::tree::Trees;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;
use proptest::prelude::*;

use crate::common::generator::{P, bytes, path, run_random};

#[derive(Debug, Clone)]
enum Op {
    Write(P, u32, u8),
    Append(P, u8),
    MakeDir(P),
    Remove(P),
    Rename(P, P),
    Exchange(P, P),
    Link(P, P),
    Symlink(P),
    Special(P, bool),
    Chmod(P, u32),
    Chown(P, u8),
    Attribute(P, u8),
    Time(P, u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), 0..200_000u32, any::<u8>()).prop_map(|(p, n, seed)| Op::Write(p, n, seed)),
        2 => (path(), any::<u8>()).prop_map(|(p, seed)| Op::Append(p, seed)),
        4 => path().prop_map(Op::MakeDir),
        4 => path().prop_map(Op::Remove),
        6 => (path(), path()).prop_map(|(a, b)| Op::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Exchange(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => path().prop_map(Op::Symlink),
        1 => (path(), any::<bool>()).prop_map(|(p, device)| Op::Special(p, device)),
        2 => (path(), 0..0o10000u32).prop_map(|(p, mode)| Op::Chmod(p, mode)),
        2 => (path(), any::<u8>()).prop_map(|(p, id)| Op::Chown(p, id)),
        2 => (path(), 0..4u8).prop_map(|(p, value)| Op::Attribute(p, value)),
        1 => (path(), any::<u32>()).prop_map(|(p, secs)| Op::Time(p, secs)),
    ]
}

/// Whether the operation succeeded: many do not, and leave everything as it is.
fn apply(top: &Path, op: &Op) -> bool {
    let at = |path: &P| path.names().iter().fold(top.to_owned(), |at, name| at.join(os(name)));
    match op {
        // Opening a FIFO would wait for a reader.
        Op::Write(p, n, seed) => {
            let is_other = at(p).symlink_metadata().is_ok_and(|found| !found.is_file());
            !is_other && fs::write(at(p), bytes(*n, *seed)).is_ok()
        }
        Op::Append(p, seed) => {
            let is_file = at(p).symlink_metadata().is_ok_and(|found| found.is_file());
            let opened = || fs::OpenOptions::new().append(true).open(at(p));
            is_file && opened().is_ok_and(|mut file| file.write_all(&bytes(100, *seed)).is_ok())
        }
        Op::MakeDir(p) => fs::create_dir(at(p)).is_ok(),
        Op::Remove(p) if p.names().is_empty() => false,
        Op::Remove(p) => fs::remove_file(at(p)).is_ok() || fs::remove_dir_all(at(p)).is_ok(),
        Op::Rename(a, b) => fs::rename(at(a), at(b)).is_ok(),
        Op::Exchange(a, b) => {
            let (a, b) = (at(a), at(b));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &b, flags).is_ok()
        }
        Op::Link(a, b) => fs::hard_link(at(a), at(b)).is_ok(),
        Op::Symlink(p) => symlink("target", at(p)).is_ok(),
        Op::Special(p, false) => mkfifo(&at(p), Mode::from_bits_truncate(0o640)).is_ok(),
        Op::Special(p, true) => {
            mknod(&at(p), SFlag::S_IFCHR, Mode::from_bits_truncate(0o620), makedev(1, 3)).is_ok()
        }
        Op::Chmod(p, mode) => {
            let plain = at(p).symlink_metadata().is_ok_and(|found| !found.is_symlink());
            plain && fs::set_permissions(at(p), fs::Permissions::from_mode(*mode)).is_ok()
        }
        Op::Chown(p, id) => {
            std::os::unix::fs::lchown(at(p), Some((*id).into()), Some((*id / 2).into())).is_ok()
        }
        Op::Attribute(p, 0) => rustix::fs::lremovexattr(at(p), "user.note").is_ok(),
        Op::Attribute(p, value) => {
            rustix::fs::lsetxattr(at(p), "user.note", &[*value; 40], rustix::fs::XattrFlags::empty()).is_ok()
        }
        Op::Time(p, secs) => {
            let time = rustix::fs::Timespec { tv_sec: (*secs).into(), tv_nsec: 123_456_789 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, at(p), &times, flags).is_ok()
        }
    }
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(name)
}

/// All that must be the same, but which names are one inode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    rdev: u64,
    mtime: (i64, u32),
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

type Tree = BTreeMap<PathBuf, (Seen, u64)>;

/// What a directory of the host shows.
fn of_host(top: &Path, path: &Path, tree: &mut Tree) {
    let whole = top.join(path);
    let found = whole.symlink_metadata().unwrap();
    let content = match found.file_type() {
        kind if kind.is_file() => fs::read(&whole).unwrap(),
        kind if kind.is_symlink() => fs::read_link(&whole).unwrap().into_os_string().into_vec(),
        _ => Vec::new(),
    };
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(&whole, &mut list[..]).unwrap();
    let mut xattrs = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.note")) {
        let mut value = vec![0; 100];
        let length = rustix::fs::lgetxattr(&whole, os(name), &mut value[..]).unwrap();
        value.truncate(length);
        xattrs.insert(name.to_vec(), value);
    }
    let seen = Seen {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        rdev: found.rdev(),
        mtime: (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap()),
        content,
        xattrs,
    };
    tree.insert(path.to_owned(), (seen, found.ino()));
    if found.is_dir() {
        for entry in fs::read_dir(&whole).unwrap() {
            of_host(top, &path.join(entry.unwrap().file_name()), tree);
        }
    }
}

/// What a view shows.
fn of_view(view: &View, ino: Ino, path: &Path, tree: &mut Tree) {
    let attr = view.getattr(ino).unwrap();
    let kind = FileKind::from_mode(attr.mode).unwrap();
    let mut content = Vec::new();
    match kind {
        FileKind::Regular => view.read(ino, 0, 1 << 20, &mut content).unwrap(),
        FileKind::Symlink => content = view.readlink(ino).unwrap(),
        _ => {}
    }
    let names = view.listxattr(ino, true).unwrap();
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let xattrs = names.map(|name| (name.to_vec(), view.getxattr(ino, name).unwrap())).collect();
    let seen = Seen {
        mode: attr.mode,
        owner: (attr.uid, attr.gid),
        rdev: attr.rdev,
        mtime: (attr.mtime.secs, attr.mtime.nanos),
        content,
        xattrs,
    };
    tree.insert(path.to_owned(), (seen, ino));
    if kind == FileKind::Directory {
        let mut names = Vec::new();
        view.readdir(ino, 0, false, &mut |item| {
            names.push(item.name.to_vec());
            true
        })
        .unwrap();
        for name in names.iter().filter(|name| *name != b"." && *name != b"..") {
            let child = view.lookup(ino, name).unwrap().ino;
            of_view(view, child, &path.join(os(name)), tree);
            view.forget(child, 1);
        }
    }
}

/// The names of files that are one inode, together.
fn groups(tree: &Tree) -> Vec<Vec<PathBuf>> {
    let mut by_ino: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for (path, (seen, ino)) in tree {
        if seen.mode & libc::S_IFMT != libc::S_IFDIR {
            by_ino.entry(*ino).or_default().push(path.clone());
        }
    }
    let mut groups: Vec<_> = by_ino.into_values().filter(|names| names.len() > 1).collect();
    groups.sort();
    groups
}

/// `linked`: the names that are one inode in the upper, since overlayfs may show different inode numbers for
/// them; below it there are none.
fn same(overlay: &Tree, linked: &[Vec<PathBuf>], view: &Tree) -> Result<(), String> {
    for path in overlay.keys().chain(view.keys()) {
        let (theirs, ours) = (overlay.get(path).map(|found| &found.0), view.get(path).map(|found| &found.0));
        if theirs != ours {
            let brief = |seen: Option<&Seen>| {
                seen.map(|seen| Seen { content: vec![seen.content.len() as u8], ..seen.clone() })
            };
            return Err(format!("{}: overlay {:?}, view {:?}", path.display(), brief(theirs), brief(ours)));
        }
    }
    match groups(view) {
        ours if ours == linked => Ok(()),
        ours => Err(format!("hard links: overlay {linked:?}, view {ours:?}")),
    }
}

/// A directory with something under most names that the operations use.
fn fill(top: &Path, depth: u32) {
    for (number, name) in (0..4u8).map(crate::common::generator::name).enumerate() {
        let path = top.join(os(&name));
        match number {
            0 | 1 if depth > 0 => {
                fs::create_dir(&path).unwrap();
                fill(&path, depth - 1);
            }
            2 => symlink("below", &path).unwrap(),
            _ => fs::write(&path, bytes(1000 + depth, number as u8)).unwrap(),
        }
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap_or_else(|errno| println!("still mounted: {errno}"));
    }
}

fn run(ops: &[Op], writer: Writer) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| dir.path().join(name));
    for made in [&lower, &upper, &work, &merged] {
        fs::create_dir(made).unwrap();
    }
    fill(&lower, 2);
    let store = Store::open(&dir.path().join("store")).unwrap();
    let root = import_path(&store, &lower, &NoProgress).unwrap().root;
    let options = match writer {
        Writer::User => "userxattr,index=off",
        _ => "redirect_dir=on,metacopy=off,index=off",
    };
    let places =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = format!("{places},{options}");
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*options)).unwrap();
    let mounted = Mounted(merged.clone());
    let succeeded = ops.iter().filter(|op| apply(&merged, op)).count() as u64;
    let mut overlay = Tree::new();
    of_host(&merged, Path::new(""), &mut overlay);
    drop(mounted);
    let mut in_upper = Tree::new();
    of_host(&upper, Path::new(""), &mut in_upper);
    // All whiteouts are one inode.
    in_upper.retain(|_, (seen, _)| seen.rdev != 0 || seen.mode & libc::S_IFMT != libc::S_IFCHR);
    let linked = groups(&in_upper);
    let trees = Arc::new(Trees::new(store.clone()));
    let head = HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root };
    let open = || View::open(&store, &trees, &dir.path().join("store/upper"), head, false).unwrap();
    let view = open();
    let notes = view.fold(&upper, writer, &|| false).map_err(|error| error.to_string())?;
    if !notes.is_empty() {
        return Err(notes.join("; "));
    }
    for when in ["folded", "opened again"] {
        let view = if when == "folded" { view.close().map(|()| open()).unwrap() } else { open() };
        let mut shown = Tree::new();
        of_view(&view, ROOT_INO, Path::new(""), &mut shown);
        same(&overlay, &linked, &shown).map_err(|why| format!("{when}: {why}"))?;
        drop(view);
    }
    Ok(succeeded)
}

#[test]
fn a_folded_overlay_shows_the_same_root() {
    run_random("fold, as root's overlayfs writes it", 60, 60, op(), |ops| run(ops, Writer::Root));
}

#[test]
fn a_folded_overlay_shows_the_same_user() {
    run_random("fold, as a user's overlayfs writes it", 60, 60, op(), |ops| run(ops, Writer::User));
}

/// What the random operations do not have: set-id files, sockets, holes, attributes of the overlay's own.
/// Files are moved, not copied, and belong to this process then.
#[test]
fn files_become_data_files_whatever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("sub")).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let trees = Arc::new(Trees::new(store.clone()));
    let root = crate::common::reference::empty_root(&store);
    let head = HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root };
    let own = |path: &Path| {
        rustix::fs::setxattr(path, "user.overlay.origin", b"x", rustix::fs::XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(path, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    };
    fs::write(upper.join("tool"), "set-id").unwrap();
    own(&upper.join("tool"));
    std::os::unix::fs::chown(upper.join("tool"), Some(33), Some(4)).unwrap();
    fs::set_permissions(upper.join("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::hard_link(upper.join("tool"), upper.join("sub/linked")).unwrap();
    let sparse = fs::File::create(upper.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 5 << 20).unwrap();
    fs::write(upper.join("empty"), "").unwrap();
    std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    own(&upper);
    let inode = fs::metadata(upper.join("tool")).unwrap().ino();
    let view = View::open(&store, &trees, &dir.path().join("store/upper"), head, false).unwrap();
    assert_eq!(view.fold(&upper, Writer::User, &|| false).unwrap(), Vec::<String>::new());
    view.close().unwrap();
    let view = View::open(&store, &trees, &dir.path().join("store/upper"), head, false).unwrap();
    let mut shown = Tree::new();
    of_view(&view, ROOT_INO, Path::new(""), &mut shown);
    let names: Vec<_> = shown.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(names, ["", "empty", "socket", "sparse", "sub", "sub/linked", "tool"]);
    let (tool, _) = &shown[Path::new("tool")];
    assert_eq!((tool.mode, tool.owner, &tool.content[..]), (libc::S_IFREG | 0o6755, (33, 4), &b"set-id"[..]));
    for path in ["", "tool", "sub/linked"] {
        let kept: Vec<_> = shown[Path::new(path)].0.xattrs.iter().collect();
        assert_eq!(kept, [(&b"user.note".to_vec(), &b"kept".to_vec())], "{path}");
    }
    assert_eq!(groups(&shown), [[Path::new("sub/linked"), Path::new("tool")]]);
    assert_eq!(shown[Path::new("sparse")].0.content.len(), 1 << 20, "as far as it is read");
    let data = walk(&dir.path().join("store/upper/data"));
    assert_eq!(data.len(), 2, "{data:?}");
    assert!(data.iter().all(|found| (found.uid(), found.mode() & 0o7777) == (0, 0o600)));
    assert!(data.iter().any(|found| found.ino() == inode), "it is the very file");
    assert!(data.iter().all(|found| found.blocks() < 100), "holes stay holes");
}

fn walk(dir: &Path) -> Vec<fs::Metadata> {
    let subdirs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files =
        subdirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap()));
    files.collect()
}

/// After an error nothing has happened to the view on disk.
#[test]
fn what_cannot_be_folded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("moved")).unwrap();
    fs::write(upper.join("file"), "new").unwrap();
    let from = "trusted.overlay.redirect";
    rustix::fs::setxattr(upper.join("moved"), from, b"/a/../b", rustix::fs::XattrFlags::empty()).unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let trees = Arc::new(Trees::new(store.clone()));
    let root = crate::common::reference::empty_root(&store);
    let head = HeadRef { layer: LayerHash::from_bytes([0; 32]), record: RecordId::from_bytes([0; 32]), root };
    let open = || View::open(&store, &trees, &dir.path().join("store/upper"), head, false).unwrap();
    let view = open();
    let error = view.fold(&upper, Writer::Root, &|| false).unwrap_err().to_string();
    assert!(error.contains("upper/moved") && error.contains(".."), "{error}");
    drop(view);
    assert!(open().diff().unwrap().is_empty());
    let view = open();
    let cancelled = view.fold(&upper, Writer::User, &|| true).unwrap_err();
    assert!(cancelled.to_string().contains("stopped on request"), "{cancelled}");
    drop(view);
    assert!(open().diff().unwrap().is_empty());
}
