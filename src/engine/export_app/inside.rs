//! Reading files of a mounted environment, links resolved inside it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::engine::{Error, Result};

/// The largest file that is read.
const MAX_BYTES: u64 = 8 << 20;

/// What icons are, the best first.
pub(super) const ICON_ENDINGS: [&str; 3] = ["svg", "png", "xpm"];

/// Where icons are, the best first. `@` is the size.
const ICON_PLACES: [&str; 4] = [
    "usr/share/icons/hicolor/scalable/apps",
    "usr/share/icons/hicolor/@/apps",
    "usr/share/pixmaps",
    "usr/share/icons",
];

const ICON_SIZES: [&str; 8] =
    ["512x512", "256x256", "192x192", "128x128", "96x96", "64x64", "48x48", "32x32"];

pub(super) struct Inside {
    root: File,
    path: PathBuf,
}

impl Inside {
    pub fn open(root: &Path) -> Result<Inside> {
        let file = File::open(root).map_err(|e| Error::io("open", root, e))?;
        Ok(Inside { root: file, path: root.to_owned() })
    }

    /// The names in a directory, sorted; none when there is none.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let Some(dir) = self.find(path, OFlags::DIRECTORY)? else { return Ok(Vec::new()) };
        let failed = |e: rustix::io::Errno| Error::io("list", &self.path.join(path), e.into());
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().to_str().ok().map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// A text file; None when it is not there, or no text.
    pub fn text(&self, path: &str) -> Result<Option<String>> {
        Ok(self.bytes(path)?.and_then(|bytes| String::from_utf8(bytes).ok()))
    }

    /// The icon that a `.desktop` file names: its ending, and its bytes.
    pub fn icon(&self, name: &str) -> Result<Option<(&'static str, Vec<u8>)>> {
        let known =
            |path: &str| ICON_ENDINGS.into_iter().find(|ending| path.ends_with(&format!(".{ending}")));
        if let Some(path) = name.strip_prefix('/') {
            let Some(ending) = known(path) else { return Ok(None) };
            return Ok(self.bytes(path)?.map(|bytes| (ending, bytes)));
        }
        // Some name the file with its ending, where none should be.
        let name =
            known(name).and_then(|ending| name.strip_suffix(ending)?.strip_suffix('.')).unwrap_or(name);
        if name.contains('/') {
            return Ok(None);
        }
        for place in ICON_PLACES {
            let sizes = if place.contains('@') { &ICON_SIZES[..] } else { &[""] };
            for size in sizes {
                for ending in ICON_ENDINGS {
                    let path = format!("{}/{name}.{ending}", place.replace('@', size));
                    if let Some(bytes) = self.bytes(&path)? {
                        return Ok(Some((ending, bytes)));
                    }
                }
            }
        }
        Ok(None)
    }

    fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        // A FIFO must not make us wait.
        let Some(file) = self.find(path, OFlags::NONBLOCK)? else { return Ok(None) };
        let failed = |e: io::Error| Error::io("read", &self.path.join(path), e);
        if !file.metadata().map_err(failed)?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() as u64 <= MAX_BYTES))
    }

    /// Opens a path without ever leaving the environment.
    fn find(&self, path: &str, flags: OFlags) -> Result<Option<File>> {
        use rustix::io::Errno;
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(errno) => Err(Error::io("open", &self.path.join(path), errno.into())),
        }
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
        let inside = Inside::open(&root).unwrap();
        assert_eq!(inside.text("usr/share/applications/absolute").unwrap().as_deref(), Some("inside"));
        assert_eq!(inside.text("usr/share/applications/out").unwrap(), None);
        assert!(inside.list("usr/share/applications").unwrap().contains(&"a.desktop".to_owned()));
        assert!(inside.list("none").unwrap().is_empty());
        let icon = |name: &str| inside.icon(name).unwrap();
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
