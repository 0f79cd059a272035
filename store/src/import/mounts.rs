//! Detects mounts below an imported directory, and decides what is done with them.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::builder::Attributes;
use crate::inode::{Timestamp, Xattrs};

/// What is done with mounts below an imported directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mounts {
    /// They are left out; their mount points are kept, empty.
    #[default]
    LeaveOut,
    /// They are imported, except for pseudo file systems that show the state of the kernel (proc, sysfs,
    /// cgroup, …): these have no files that could be kept, and reading some of them blocks or has side
    /// effects.
    TakeIn,
}

/// A mount. Not identified by device, except on old kernels: a bind mount of the same file system shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MountId {
    Mount(u64),
    /// The device number, on kernels before Linux 5.8.
    Device(u32, u32),
}

/// What the kernel knows about a name without asking the file system, which may not respond, or not to us.
pub(super) struct Look {
    pub mount: MountId,
    stat: Statx,
}

impl Look {
    /// Looks at a name in a directory. Triggers no automount.
    pub fn at(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<Look> {
        Look::with(directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Looks at the file of a descriptor.
    pub fn of(fd: &OwnedFd) -> rustix::io::Result<Look> {
        Look::with(fd, c"", AtFlags::EMPTY_PATH)
    }

    fn with(fd: &OwnedFd, name: &CStr, flags: AtFlags) -> rustix::io::Result<Look> {
        // With an empty mask even another user's file system responds, and the mount id is returned
        // nevertheless.
        let flags = flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(fd, name, flags, StatxFlags::empty())?;
        let mount = match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID) {
            true => MountId::Mount(stat.stx_mnt_id),
            false => MountId::Device(stat.stx_dev_major, stat.stx_dev_minor),
        };
        Ok(Look { mount, stat })
    }

    /// Whether it is a directory, as far as the kernel knows.
    pub fn is_directory(&self) -> bool {
        // The type is unknown if we may not access the file system; what users mount there are directories.
        matches!(FileType::from_raw_mode(self.stat.stx_mode.into()), FileType::Directory | FileType::Unknown)
    }

    /// The attributes of a mount point, as far as the kernel knows them without asking the file system.
    pub fn attributes(&self) -> Attributes {
        let stat = &self.stat;
        if stat.stx_mode == 0 {
            return Attributes { mode: 0o755, ..Attributes::default() };
        }
        let mtime = Timestamp { secs: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec };
        Attributes {
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime,
            other_times: None,
            xattrs: Xattrs::new(),
        }
    }
}

/// Whether a name leads into a pseudo file system.
pub(super) fn leads_into_pseudo(directory: &OwnedFd, name: &CStr) -> rustix::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(pseudo(&rustix::fs::openat(directory, name, flags, Mode::empty())?)?.is_some())
}

/// The name of the file system, if it is a pseudo file system: one whose files show the state of the kernel.
pub(super) fn pseudo(fd: &impl AsFd) -> Result<Option<&'static str>, Errno> {
    // The magic numbers are from linux/magic.h.
    Ok(match rustix::fs::fstatfs(fd)?.f_type as u32 {
        0x0000_9fa0 => Some("proc"),
        0x6265_6572 => Some("sysfs"),
        0x0027_e0eb | 0x6367_7270 => Some("cgroup"),
        0x0000_1cd1 => Some("devpts"),
        0x6462_6720 => Some("debugfs"),
        0x7472_6163 => Some("tracefs"),
        0x7363_6673 => Some("securityfs"),
        0xf97c_ff8c => Some("selinuxfs"),
        0x4341_5d53 => Some("smackfs"),
        0xcafe_4a11 => Some("bpf"),
        0x6165_676c => Some("pstore"),
        0xde5e_81e4 => Some("efivarfs"),
        0x6265_6570 => Some("configfs"),
        0x6573_5543 => Some("fusectl"),
        0x1980_0202 => Some("mqueue"),
        0x4249_4e4d => Some("binfmt_misc"),
        0x6759_6969 => Some("rpc_pipefs"),
        0x6e66_7364 => Some("nfsd"),
        0x6e73_6673 => Some("nsfs"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_of_kernel_state_are_recognized() {
        let open = |path: &str| rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(pseudo(&open("/proc")).unwrap(), Some("proc"));
        assert_eq!(pseudo(&open("/sys")).unwrap(), Some("sysfs"));
        assert_eq!(pseudo(&open("/")).unwrap(), None);
        let (root, proc) = (Look::of(&open("/")).unwrap(), Look::at(&open("/"), c"proc").unwrap());
        assert!(root.mount != proc.mount && proc.is_directory());
        assert_eq!(Look::of(&open("/proc")).unwrap().mount, proc.mount);
        assert!(leads_into_pseudo(&open("/"), c"proc").unwrap());
        assert_eq!(proc.attributes().mode & 0o555, 0o555);
    }
}
