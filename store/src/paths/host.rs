//! A directory of the host as [`crate::paths`] needs it. Each step opens one name in an open directory and
//! follows no symbolic link, so nothing outside is ever reached.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::PathTree;
use crate::error::{IoContext, Result};
use crate::inode::FileKind;

/// A directory of the host as the root of a tree.
pub struct HostTree {
    top: HostNode,
}

/// A file below the directory, as an O_PATH descriptor.
#[derive(Clone)]
pub struct HostNode {
    file: Arc<OwnedFd>,
    /// For messages.
    path: PathBuf,
}

impl HostTree {
    /// The tree below the directory `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<HostTree> {
        let file = File::open(path).at("open", path)?;
        Ok(HostTree { top: HostNode { file: Arc::new(file.into()), path: path.to_owned() } })
    }
}

impl PathTree for HostTree {
    type Node = HostNode;

    fn root(&self) -> Result<HostNode> {
        Ok(self.top.clone())
    }

    fn lookup(&self, dir: &HostNode, name: &[u8]) -> Result<Option<(HostNode, FileKind)>> {
        let path = dir.path.join(OsStr::from_bytes(name));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&*dir.file, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.map_err(io::Error::from).at("open", &path)?,
        };
        let stat = rustix::fs::fstat(&file).map_err(io::Error::from).at("read", &path)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharDevice,
            FileType::BlockDevice => FileKind::BlockDevice,
            _ => FileKind::Regular,
        };
        Ok(Some((HostNode { file: Arc::new(file), path }, kind)))
    }

    fn readlink(&self, link: &HostNode) -> Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(&*link.file, "", Vec::new());
        Ok(target.map_err(io::Error::from).at("read", &link.path)?.into_bytes())
    }

    fn list(&self, dir: &HostNode) -> Result<Vec<Box<[u8]>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&*dir.file, ".", flags, Mode::empty()).map_err(io::Error::from);
        let opened = opened.at("open", &dir.path)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened).map_err(io::Error::from).at("list", &dir.path)? {
            let entry = entry.map_err(io::Error::from).at("list", &dir.path)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.into());
            }
        }
        Ok(names)
    }
}
