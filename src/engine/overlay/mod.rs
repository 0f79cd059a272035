//! The overlay of an environment: directories in which the kernel's overlayfs keeps the changes of sessions,
//! at the kernel's own speed, until they are folded into the environment.
//!
//! They are `overlay/upper` and `overlay/work` in the environment's directory. An ordinary user's belong, in
//! part, to the user's sub-ids; [`helper`] is a process that has these ids.

pub mod helper;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use karapace_fs::attr::HeadRef;
use karapace_store::id::{InstanceId, ObjectId};
use karapace_store::inode::Timestamp;
use karapace_store::metadata::Metadata;
use karapace_store::root::Root;
use nix::unistd::{getegid, geteuid};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::At as _;
use super::{Engine, Error, Report, Result};
use crate::runtime::Overlay;

/// How many bytes of names one inode's extended attributes have at most (xattr(7)).
const XATTR_LIST_MAX: usize = 64 << 10;

impl Engine {
    /// The overlay of an environment, whether or not it has been prepared.
    pub(in crate::engine) fn overlay_of(&self, instance: &InstanceId) -> Overlay {
        let dir = self.overlay_dir(instance);
        Overlay { upper: dir.join("upper"), work: dir.join("work") }
    }

    /// Whether an environment has an overlay: its sessions' changes go there, and the environment is served
    /// read-only.
    pub(in crate::engine) fn has_overlay(&self, instance: &InstanceId) -> bool {
        self.overlay_of(instance).upper.symlink_metadata().is_ok()
    }

    /// Refuses to copy an environment whose changes are on an overlay, where nobody else sees them.
    pub(in crate::engine) fn check_not_temporary(&self, env: &Metadata) -> Result<()> {
        if !self.has_overlay(&env.instance) {
            return Ok(());
        }
        let name = &env.name;
        Err(Error::Invalid(format!(
            "{name} is temporary, and its changes cannot be copied: run commands in it with `karapace exec {name}`"
        )))
    }

    fn overlay_dir(&self, instance: &InstanceId) -> PathBuf {
        self.env_dir(instance).join("overlay")
    }

    /// Prepares an empty overlay, which will lie over `lower`. Returns its upper directory, opened; `None` if
    /// the overlay would not show what an environment does, because of the store's file system or of `lower`.
    pub(in crate::engine) fn prepare_overlay(
        &self,
        instance: &InstanceId,
        lower: &Root,
    ) -> Result<Option<File>> {
        let root = &lower.inode;
        // What is told to the helper must be text.
        if (root.uid, root.gid) != (0, 0) || !root.xattrs.is_empty() || self.root().to_str().is_none() {
            return Ok(None);
        }
        let (files, dir) = (self.store().files(), self.overlay_dir(instance));
        let Overlay { upper, work } = self.overlay_of(instance);
        for made in [&dir, &upper, &work] {
            files.make_dir(made).at("create", made)?;
        }
        files.set_mode(&upper, root.mode & 0o7777).at("set the mode of", &upper)?;
        let opened = files.open_dir(&upper).at("open", &upper)?;
        if !can_be_upper(&opened).at("read the attributes of", &upper)? {
            return Ok(None);
        }
        opened.set_modified(time_of(root.mtime)).at("set the time of", &upper)?;
        Ok(Some(opened))
    }

    /// Makes what the overlay holds over the tree `root` part of the environment's uncommitted changes, of
    /// which there must be none. It is durable on return, if nothing was lost before: the caller asks that of
    /// the upper directory. The caller holds the environment's lock and, shared, the store's. No session may
    /// use the overlay any more, and afterwards only [`Engine::remove_overlay`] may. Returns what could not
    /// be kept.
    ///
    /// # Errors
    /// Those of [`View::fold`](karapace_fs::view::View::fold), and [`Error::NoIds`]. The environment is then
    /// as it was, and the overlay may be half used.
    pub(in crate::engine) fn fold_overlay(
        &self,
        env: &Metadata,
        root: &ObjectId,
        report: &dyn Report,
    ) -> Result<Vec<String>> {
        let head = HeadRef { layer: env.head, record: env.head_record, root: *root };
        let upper = self.overlay_of(&env.instance).upper;
        helper::fold(self, &upper, (&env.instance, head), report)
    }

    /// Removes the overlay, if there is one, and what is left of one that was dropped.
    pub(in crate::engine) fn remove_overlay(&self, instance: &InstanceId) -> Result<()> {
        for dir in [self.overlay_dir(instance), self.dropped_dir(instance)] {
            match fs::symlink_metadata(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", &dir, error)),
                Ok(_) => helper::remove(&dir)?,
            }
        }
        Ok(())
    }

    /// Lets the environment have no overlay any more, and removes it as far as possible: what cannot be
    /// removed does not count.
    pub(in crate::engine) fn drop_overlay(&self, instance: &InstanceId) -> Result<()> {
        let (dir, dropped) = (self.overlay_dir(instance), self.dropped_dir(instance));
        self.store().files().rename(&dir, &dropped).at("rename", &dir)?;
        if let Err(error) = helper::remove(&dropped) {
            tracing::warn!("{error}; it is not needed any more");
        }
        Ok(())
    }

    fn dropped_dir(&self, instance: &InstanceId) -> PathBuf {
        self.env_dir(instance).join("overlay-dropped")
    }
}

/// Whether overlayfs can keep its attributes on this new directory, which becomes the root of what it shows:
/// without them it mounts all the same, and fails later. The directory must be the caller's, and have no
/// attributes of its own, such as an ACL from its parent; labels of a security module are not shown.
fn can_be_upper(dir: &File) -> io::Result<bool> {
    let found = dir.metadata()?;
    let mut names = vec![0; XATTR_LIST_MAX];
    let length = match rustix::fs::flistxattr(dir, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    let mut names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    if (found.uid(), found.gid()) != (geteuid().as_raw(), getegid().as_raw())
        || names.any(|name| !name.starts_with(b"security."))
    {
        return Ok(false);
    }
    let probe = if geteuid().is_root() { "trusted.overlay.probe" } else { "user.overlay.probe" };
    match rustix::fs::fsetxattr(dir, probe, b"y", XattrFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fremovexattr(dir, probe).map(|()| true)?),
        Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn time_of(time: Timestamp) -> SystemTime {
    let part = Duration::from_nanos(time.nanos.into());
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if time.secs < 0 { epoch - whole + part } else { epoch + whole + part }
}
