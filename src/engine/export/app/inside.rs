//! Reads files of an environment, with symlinks resolved inside it: through its mount, or from the store and
//! its upper. Does not mount anything.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use karapace_fs::view::View;
use karapace_store::error::StoreError;
use karapace_store::inode::{FileKind, Ino, ROOT_INO};
use karapace_store::input::{open_in, reopen};
use karapace_store::paths::{self, PathTree};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::engine::At as _;
use crate::engine::{Error, Result};

/// Largest icon that is read, in bytes.
const MAX_ICON: u64 = 8 << 20;

/// Suffixes of icons, best first.
pub(super) const ICON_ENDINGS: [&str; 3] = ["svg", "png", "xpm"];

/// Directories of icons, best first. `@` stands for the size.
const ICON_PLACES: [&str; 4] = [
    "usr/share/icons/hicolor/scalable/apps",
    "usr/share/icons/hicolor/@/apps",
    "usr/share/pixmaps",
    "usr/share/icons",
];

const ICON_SIZES: [&str; 8] =
    ["512x512", "256x256", "192x192", "128x128", "96x96", "64x64", "48x48", "32x32"];

/// Why a file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// It does not exist, or is not a regular file.
    Missing,
    /// It is larger than the limit.
    TooLarge,
    /// It is not UTF-8.
    NotText,
}

/// The content of a file, or why there is none.
pub(super) type Found<T> = std::result::Result<T, Lack>;

/// The files of an environment. Paths never lead outside it.
pub(super) trait Inside {
    /// The names in a directory, sorted; empty if there is no such directory.
    fn list(&self, path: &str) -> Result<Vec<String>>;

    /// The content of a regular file of at most `most` bytes.
    fn bytes(&self, path: &str, most: u64) -> Result<Found<Vec<u8>>>;
}

/// The text of a file of at most `most` bytes.
pub(super) fn text(inside: &dyn Inside, path: &str, most: u64) -> Result<Found<String>> {
    let bytes = inside.bytes(path, most)?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes).map_err(|_| Lack::NotText)))
}

/// The icon that a `.desktop` file names: its suffix and its bytes.
pub(super) fn icon(inside: &dyn Inside, name: &str) -> Result<Option<(&'static str, Vec<u8>)>> {
    let known = |path: &str| ICON_ENDINGS.into_iter().find(|ending| path.ends_with(&format!(".{ending}")));
    if name.starts_with('/') {
        let Some(ending) = known(name) else { return Ok(None) };
        return Ok(inside.bytes(name, MAX_ICON)?.ok().map(|bytes| (ending, bytes)));
    }
    // Some files name the icon with its suffix, which they should not.
    let name = known(name).and_then(|ending| name.strip_suffix(ending)?.strip_suffix('.')).unwrap_or(name);
    if name.contains('/') {
        return Ok(None);
    }
    for place in ICON_PLACES {
        let sizes = if place.contains('@') { &ICON_SIZES[..] } else { &[""] };
        for size in sizes {
            for ending in ICON_ENDINGS {
                let path = format!("{}/{name}.{ending}", place.replace('@', size));
                if let Ok(bytes) = inside.bytes(&path, MAX_ICON)? {
                    return Ok(Some((ending, bytes)));
                }
            }
        }
    }
    Ok(None)
}

/// A mounted environment.
pub(super) struct Mounted {
    root: File,
    path: PathBuf,
}

impl Mounted {
    pub fn open(root: &Path) -> Result<Mounted> {
        let file = File::open(root).at("open", root)?;
        Ok(Mounted { root: file, path: root.to_owned() })
    }

    /// Opens a path if it is of this kind. Opens nothing else: opening a device can have effects, and opening
    /// a FIFO blocks.
    fn open_if(&self, path: &str, kind: FileType) -> Result<Option<File>> {
        let failed = |e: io::Error| Error::io("open", &self.path.join(path.trim_start_matches('/')), e);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = match open_in(&self.root, Path::new(path), OFlags::PATH, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other.map_err(|errno| failed(errno.into()))?,
        };
        let mode = rustix::fs::fstat(&found).map_err(|errno| failed(errno.into()))?.st_mode;
        if FileType::from_raw_mode(mode) != kind {
            return Ok(None);
        }
        reopen(found).map(Some).map_err(failed)
    }
}

impl Inside for Mounted {
    fn list(&self, path: &str) -> Result<Vec<String>> {
        let Some(dir) = self.open_if(path, FileType::Directory)? else {
            return Ok(Vec::new());
        };
        let failed = |e: rustix::io::Errno| Error::io("list", &self.path.join(path), e.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().to_str().ok().map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    fn bytes(&self, path: &str, most: u64) -> Result<Found<Vec<u8>>> {
        let Some(file) = self.open_if(path, FileType::RegularFile)? else { return Ok(Err(Lack::Missing)) };
        let mut bytes = Vec::new();
        let read = file.take(most + 1).read_to_end(&mut bytes);
        read.at("read", &self.path.join(path.trim_start_matches('/')))?;
        Ok(if bytes.len() as u64 > most { Err(Lack::TooLarge) } else { Ok(bytes) })
    }
}

/// An environment that is not served, read through its view.
pub(super) struct Unmounted<'a>(pub &'a View);

impl Inside for Unmounted<'_> {
    fn list(&self, path: &str) -> Result<Vec<String>> {
        let Some((dir, FileKind::Directory)) = paths::find(self, path.as_bytes())? else {
            return Ok(Vec::new());
        };
        let names = PathTree::list(self, &dir)?;
        let mut names: Vec<String> =
            names.into_iter().filter_map(|name| String::from_utf8(name.into_vec()).ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    fn bytes(&self, path: &str, most: u64) -> Result<Found<Vec<u8>>> {
        let Some((file, FileKind::Regular)) = paths::find(self, path.as_bytes())? else {
            return Ok(Err(Lack::Missing));
        };
        let size = self.0.getattr(file)?.size;
        if size > most {
            return Ok(Err(Lack::TooLarge));
        }
        let mut bytes = Vec::new();
        self.0.read(file, 0, size as usize, &mut bytes)?;
        Ok(Ok(bytes))
    }
}

impl PathTree for Unmounted<'_> {
    type Node = Ino;

    fn root(&self) -> karapace_store::error::Result<Ino> {
        Ok(ROOT_INO)
    }

    fn lookup(&self, dir: &Ino, name: &[u8]) -> karapace_store::error::Result<Option<(Ino, FileKind)>> {
        match self.0.lookup(*dir, name) {
            Ok(attr) => {
                let kind = FileKind::from_mode(attr.mode);
                Ok(kind.map(|kind| (attr.ino, kind)))
            }
            Err(karapace_fs::Error::NotFound | karapace_fs::Error::NameTooLong) => Ok(None),
            Err(error) => Err(of_store(error)),
        }
    }

    fn readlink(&self, link: &Ino) -> karapace_store::error::Result<Vec<u8>> {
        self.0.readlink(*link).map_err(of_store)
    }

    fn list(&self, dir: &Ino) -> karapace_store::error::Result<Vec<Box<[u8]>>> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let listed = self.0.readdir(*dir, 0, false, &mut |item| {
            if item.name != b"." && item.name != b".." {
                names.push(item.name.into());
            }
            true
        });
        listed.map_err(of_store)?;
        Ok(names)
    }
}

/// Converts an error of the view, which is a store error or a damaged upper.
fn of_store(error: karapace_fs::Error) -> StoreError {
    match error {
        karapace_fs::Error::Store(error) => error,
        other => StoreError::Invalid(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_lead_nowhere_else_and_the_best_icon_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let put = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        fs::write(dir.path().join("secret"), "outside").unwrap();
        put("usr/share/applications/a.desktop", "a");
        put("etc/real", "inside");
        symlink("/etc/real", root.join("usr/share/applications/absolute")).unwrap();
        symlink("../../../../../../secret", root.join("usr/share/applications/out")).unwrap();
        put("usr/share/pixmaps/x.png", "pixmap");
        put("usr/share/icons/hicolor/48x48/apps/x.png", "48");
        put("usr/share/icons/hicolor/128x128/apps/x.png", "128");
        let inside = Mounted::open(&root).unwrap();
        let read = |path: &str| text(&inside, path, 100).unwrap();
        assert_eq!(read("usr/share/applications/absolute").as_deref(), Ok("inside"));
        assert_eq!(read("usr/share/applications/out"), Err(Lack::Missing));
        fs::write(root.join("long"), [b'x'; 101]).unwrap();
        fs::write(root.join("latin"), b"caf\xe9").unwrap();
        assert_eq!((read("long"), read("latin")), (Err(Lack::TooLarge), Err(Lack::NotText)));
        assert!(inside.list("usr/share/applications").unwrap().contains(&"a.desktop".to_owned()));
        assert!(inside.list("none").unwrap().is_empty());
        let icon = |name: &str| icon(&inside, name).unwrap();
        assert_eq!(icon("x"), Some(("png", b"128".to_vec())));
        assert_eq!(icon("x.png"), Some(("png", b"128".to_vec())));
        assert_eq!(icon("/usr/share/pixmaps/x.png"), Some(("png", b"pixmap".to_vec())));
        put("usr/share/icons/hicolor/scalable/apps/x.svg", "svg");
        assert_eq!(icon("x"), Some(("svg", b"svg".to_vec())));
        for none in ["y", "", "../../../secret", "/etc/real"] {
            assert_eq!(icon(none), None, "{none}");
        }
    }
}
