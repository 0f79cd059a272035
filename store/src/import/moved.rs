//! Files of a directory that become objects themselves, without a copy.

use std::fs::File;
use std::os::unix::fs::fchown;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use rustix::fs::Stat;

use super::builder::{Builder, LeafId, refuse};
use crate::batch::Batch;
use crate::content;
use crate::error::{IoContext as _, Result};

/// The files found so far. Their contents are hashed together, on several threads.
#[derive(Default)]
pub(super) struct Moved {
    /// A file whose leaf is not known yet.
    next: Option<PathBuf>,
    files: Vec<(PathBuf, LeafId)>,
}

impl Moved {
    /// Takes an open file, which must have no extended attributes, and gives it to this process's user, as
    /// all objects are. False if it is left to be copied: it is empty.
    pub fn take(&mut self, path: &Path, file: &File, stat: &Stat) -> Result<bool> {
        if stat.st_size == 0 {
            return Ok(false);
        }
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            fchown(file, Some(uid), Some(gid)).at("take over", path)?;
        }
        self.next = Some(path.to_owned());
        Ok(true)
    }

    /// Says which leaf the last file taken belongs to; does nothing if that is known.
    pub fn is_at(&mut self, leaf: LeafId) {
        self.files.extend(self.next.take().map(|path| (path, leaf)));
    }

    /// Makes objects of the files and gives the leaves their contents.
    pub fn finish(self, batch: &mut Batch, builder: &mut Builder) -> Result<()> {
        let (paths, leaves): (Vec<_>, Vec<_>) = self.files.into_iter().unzip();
        let contents = content::adopt_all(paths.clone(), batch)?;
        for ((leaf, content), path) in leaves.into_iter().zip(contents).zip(&paths) {
            builder
                .set_content(leaf, content)
                .map_err(|reason| refuse(path.as_os_str().as_encoded_bytes(), &reason))?;
        }
        Ok(())
    }
}
