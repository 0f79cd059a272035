//! Shows a command the caller's account: the session's own passwd and group files are bind-mounted over the
//! environment's.

use std::ffi::{CStr, CString};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chown, mkdir};

use super::mounts::{make_parents, private, write_new};
use crate::runtime::sys;

/// Where the files are written before they are bound: a directory that every session has.
const SCRATCH: &CStr = c"/dev/run";

/// Each list: where it is written, and where it is bound.
const LISTS: [(&CStr, &CStr); 2] = [(c"/dev/run/passwd", c"/etc/passwd"), (c"/dev/run/group", c"/etc/group")];

pub(in crate::runtime) struct Account {
    pub(in crate::runtime) lists: [Vec<u8>; 2],
    /// The caller's home directory in the environment itself; it is made if it is missing.
    pub(in crate::runtime) home: Option<CString>,
    pub(in crate::runtime) uid: u32,
    pub(in crate::runtime) gid: u32,
}

impl Account {
    /// Shows the account to this process and to those that it starts, in a mount namespace of their own.
    /// Needs all the privileges that exist inside.
    pub fn show(&self) -> Result<(), Errno> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        private()?;
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let files = sys::new_filesystem(c"tmpfs", &[(c"mode", c"0755".into())], attributes)?;
        sys::move_mount(&files, SCRATCH, true)?;
        let mask = umask(Mode::from_bits_truncate(0o022));
        for ((path, target), text) in LISTS.into_iter().zip(&self.lists) {
            write_new(path, text)?;
            let list = sys::open_tree(path, false)?;
            sys::add_attributes(&list, attributes | libc::MOUNT_ATTR_RDONLY, false)?;
            match sys::move_mount(&list, target, false) {
                // The environment has no such file, or has a directory there, which a file cannot cover.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EINVAL) => {}
                other => other?,
            }
        }
        umount2(SCRATCH, MntFlags::MNT_DETACH)?;
        let made = self.home.as_ref().map_or(Ok(()), |home| self.make_home(home));
        umask(mask);
        match made {
            // The environment is read-only, or has something else in the way.
            Err(Errno::EROFS | Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            other => other,
        }
    }

    fn make_home(&self, home: &CStr) -> Result<(), Errno> {
        make_parents(home)?;
        match mkdir(home, Mode::S_IRWXU) {
            Ok(()) => chown(home, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid))),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
