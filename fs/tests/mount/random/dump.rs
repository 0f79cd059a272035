//! The complete contents of a tree, comparable between the two sides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use karapace_store::id::ObjectId;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};

use super::side::{entries, get_xattr, list_xattrs};

/// What is at a path. Times set during the run differ between the sides and are left out.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    kind: FileType,
    mode: u32,
    nlink: u64,
    owner: (u32, u32),
    device: u64,
    size: i64,
    content: String,
    mtime: Option<(i64, u64)>,
    xattrs: Vec<(String, Vec<u8>)>,
    /// The first path of the same inode.
    first_name: PathBuf,
}

/// The contents of the working directory, by path. `start`: Unix time in seconds after which times belong to
/// the run.
pub fn dump(start: i64) -> BTreeMap<PathBuf, Shown> {
    let mut out = BTreeMap::new();
    walk(Path::new("."), start, &mut BTreeMap::new(), &mut out);
    out
}

fn walk(path: &Path, start: i64, inodes: &mut BTreeMap<u64, PathBuf>, out: &mut BTreeMap<PathBuf, Shown>) {
    let stat = fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).expect("stat");
    let kind = FileType::from_raw_mode(stat.st_mode);
    // A write to a FIFO changes its times on ext4, but is handled entirely by the kernel.
    let timed = matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink);
    let content = match kind {
        FileType::RegularFile => ObjectId::of(&std::fs::read(path).expect("read")).to_hex(),
        FileType::Symlink => format!("{:?}", std::fs::read_link(path).expect("readlink")),
        _ => String::new(),
    };
    let names = list_xattrs(path).expect("listxattr");
    let xattrs = names.into_iter().map(|name| {
        let value = get_xattr(path, &name).expect("getxattr");
        (name, value)
    });
    let shown = Shown {
        kind,
        mode: stat.st_mode & 0o7777,
        nlink: stat.st_nlink,
        owner: (stat.st_uid, stat.st_gid),
        device: stat.st_rdev,
        size: if kind == FileType::Directory { 0 } else { stat.st_size },
        content,
        mtime: (timed && stat.st_mtime < start).then_some((stat.st_mtime, stat.st_mtime_nsec)),
        xattrs: xattrs.collect(),
        first_name: inodes.entry(stat.st_ino).or_insert_with(|| path.to_owned()).clone(),
    };
    out.insert(path.to_owned(), shown);
    if kind != FileType::Directory {
        return;
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = fs::openat(CWD, path, flags, Mode::empty()).expect("open a directory");
    for (name, listed) in entries(dir).expect("list") {
        let below = path.join(name);
        walk(&below, start, inodes, out);
        assert_eq!(listed, out[&below].kind, "listed kind of {below:?}");
    }
}
