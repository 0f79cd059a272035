//! Extended attributes, for every inode type and namespace. The kernel has checked permissions.

use karapace_store::inode::{Ino, Timestamp};

use crate::error::{Error, Result};
use crate::upper::record::Item;
use crate::view::View;
use crate::view::ops::acl;
use crate::view::table::{State, attr_item};

/// Limits of xattr(7) in bytes: a name, a value, and (LIST_MAX) the result of listxattr(2).
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 << 10;
/// Prefix of names that only processes with CAP_SYS_ADMIN in the initial user namespace may read.
const TRUSTED: &[u8] = b"trusted.";
const LIST_MAX: usize = 64 << 10;
/// Limit in bytes for all names and values of one inode: the first change to an inode journals all of them.
const TOTAL_MAX: usize = 1 << 20;

impl View {
    /// The value of an attribute.
    ///
    /// # Errors
    /// [`Error::NoData`] if there is none; [`Error::NotSupported`] for an unknown namespace.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let state = self.state.read();
        match state.node(ino)?.xattrs.get(name) {
            Some(value) => Ok(value.to_vec()),
            None => check_namespace(name).and(Err(Error::NoData)),
        }
    }

    /// The names of all attributes, each terminated by NUL. Without `trusted`, leaves out the `trusted.`
    /// namespace, which Linux hides from processes that may not read it.
    pub fn listxattr(&self, ino: Ino, trusted: bool) -> Result<Vec<u8>> {
        let state = self.state.read();
        let mut names = Vec::new();
        let shown = |name: &[u8]| trusted || !name.starts_with(TRUSTED);
        for (name, _) in state.node(ino)?.xattrs.iter().filter(|(name, _)| shown(name)) {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Sets an attribute; `flags` are those of setxattr(2).
    ///
    /// # Errors
    /// [`Error::Exists`] and [`Error::NoData`] as `flags` demand; [`Error::Range`] for an empty name or one
    /// above 255 bytes; [`Error::TooBig`] for a value above 64 KiB; [`Error::NoSpace`] beyond the limits of
    /// one inode; [`Error::NotSupported`] for an unknown namespace; [`Error::Invalid`] for a malformed ACL.
    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Error::Range);
        }
        if value.len() > VALUE_MAX {
            return Err(Error::TooBig);
        }
        check_namespace(name)?;
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        let exists = state.node(ino)?.xattrs.get(name).is_some();
        if exists && flags & libc::XATTR_CREATE != 0 {
            return Err(Error::Exists);
        }
        if !exists && flags & libc::XATTR_REPLACE != 0 {
            return Err(Error::NoData);
        }
        let node = state.node(ino)?;
        let mut permissions = node.meta.mode;
        let mut value = Some(value);
        if let (acl::ACCESS, Some(acl)) = (name, value) {
            // An access ACL and the permission bits must stay consistent.
            let (bits, minimal) = acl::mode_of(acl, node.meta.mode)?;
            permissions = (permissions & !0o777) | bits;
            value = value.filter(|_| !minimal);
        }
        if let Some(value) = value {
            let others = || node.xattrs.iter().filter(|(other, _)| *other != name);
            let list = name.len() + 1 + others().map(|(name, _)| name.len() + 1).sum::<usize>();
            let values = value.len() + others().map(|(_, value)| value.len()).sum::<usize>();
            if list > LIST_MAX || list + values > TOTAL_MAX {
                return Err(Error::NoSpace);
            }
        }
        self.change_xattr(&mut state, ino, name, value, permissions)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// [`Error::NoData`] if there is none; [`Error::NotSupported`] for an unknown namespace.
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        if state.node(ino)?.xattrs.get(name).is_none() {
            // As on ext4, removing an ACL that does not exist succeeds.
            return if acl::is_acl(name) { Ok(()) } else { check_namespace(name).and(Err(Error::NoData)) };
        }
        let mode = state.node(ino)?.meta.mode;
        self.change_xattr(&mut state, ino, name, None, mode)
    }

    /// Journals and applies a change of one attribute, and the permissions that follow from it.
    fn change_xattr(
        &self,
        state: &mut State,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        mode: u32,
    ) -> Result<()> {
        self.settle_times(state, ino)?;
        let mut items = Vec::new();
        state.dirty_chain(ino, &mut items)?;
        items.push(Item::Xattr { ino, name: name.into(), value: value.map(Box::from) });
        let mut meta = state.node(ino)?.meta;
        meta.set_permissions(mode);
        meta.ctime = Timestamp::now();
        items.push(attr_item(ino, &meta));
        self.change(state, items)
    }
}

/// Rejects names outside the namespaces that Linux supports on files: `EOPNOTSUPP`, or `EINVAL` for a bare
/// prefix.
fn check_namespace(name: &[u8]) -> Result<()> {
    for prefix in [&b"user."[..], b"trusted.", b"security."] {
        match name.strip_prefix(prefix) {
            Some([]) => return Err(Error::Invalid("the name of an attribute is empty after its namespace")),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    if acl::is_acl(name) { Ok(()) } else { Err(Error::NotSupported) }
}
