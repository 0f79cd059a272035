//! A root whose changes go to a directory: the kernel's overlayfs over the mount of an environment.
//!
//! Source: Documentation/filesystems/overlayfs.rst of the kernel.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::runtime::sys;

/// The length of a path below /proc/self/fd, in bytes, with its NUL.
const LINK: usize = 32;

/// What fails if it cannot be made.
pub(in crate::runtime) const ACTION: &str = "mount overlayfs over";

/// An overlay, before it is made.
pub(in crate::runtime) struct Overlay {
    /// The directory that gets the changes, on the host.
    pub upper: CString,
    /// An empty directory beside it, for the kernel.
    pub work: CString,
    /// Options with a value, and those without one.
    pub options: Vec<(&'static CStr, Cow<'static, CStr>)>,
    pub flags: Vec<&'static CStr>,
    /// What the server of the environment is to show as `/etc/resolv.conf`.
    pub resolv_conf: Option<Vec<u8>>,
}

impl Overlay {
    /// Makes it over this directory. The mount is detached.
    pub fn over(&self, lower: &OwnedFd) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let held = |path: &CStr| open(path, flags, Mode::empty());
        let (upper, work) = (held(&self.upper)?, held(&self.work)?);
        // By descriptor: the kernel takes no longer paths than 255 bytes here, and a colon in one separates
        // two.
        let (mut first, mut second, mut third) = ([0; LINK], [0; LINK], [0; LINK]);
        let places = [
            (c"lowerdir", Cow::Borrowed(link(lower, &mut first)?)),
            (c"upperdir", Cow::Borrowed(link(&upper, &mut second)?)),
            (c"workdir", Cow::Borrowed(link(&work, &mut third)?)),
        ];
        sys::new_overlay(&places, &self.options, &self.flags)
    }
}

/// The path by which this process can name an open file.
fn link<'b>(open: &OwnedFd, buffer: &'b mut [u8; LINK]) -> Result<&'b CStr, Errno> {
    write!(&mut buffer[..], "/proc/self/fd/{}\0", open.as_raw_fd()).map_err(|_| Errno::ENAMETOOLONG)?;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::EINVAL)
}
