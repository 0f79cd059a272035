//! Extended attributes of every kind of inode and in every namespace; the kernel has checked who may.

use karapace_store::inode::{Ino, Timestamp};

use crate::error::{Error, Result};
use crate::upper::record::Item;
use crate::view::View;
use crate::view::ops::acl;
use crate::view::table::{State, attr_item};

/// Limits of xattr(7): bytes of a name, of a value, and of what listxattr(2) gives.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 64 << 10;
/// How names begin that only CAP_SYS_ADMIN of the initial user namespace reads.
const TRUSTED: &[u8] = b"trusted.";
const LIST_MAX: usize = 64 << 10;
/// Most bytes of names and values of one inode: the first change of an inode writes all of them to the
/// journal.
const TOTAL_MAX: usize = 1 << 20;

impl View {
    /// The value of an attribute.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let state = self.state.read();
        match state.node(ino)?.xattrs.get(name) {
            Some(value) => Ok(value.to_vec()),
            None => check_namespace(name).and(Err(Error::NoData)),
        }
    }

    /// The names of all attributes, each with a NUL behind it; without `trusted`, but for those of that
    /// namespace, which Linux hides from who may not read them.
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
            // An access ACL and the permission bits are two views of one thing.
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
    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.writable()?;
        let _gate = self.gate.read();
        let mut state = self.state.write();
        if state.node(ino)?.xattrs.get(name).is_none() {
            // As on ext4, an ACL that is not there can be removed.
            return if acl::is_acl(name) { Ok(()) } else { check_namespace(name).and(Err(Error::NoData)) };
        }
        let mode = state.node(ino)?.meta.mode;
        self.change_xattr(&mut state, ino, name, None, mode)
    }

    /// Journals and applies one attribute, with the permissions that follow from it.
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

/// Refuses a name outside the namespaces that Linux knows of a file: `EOPNOTSUPP`, or `EINVAL` for a bare
/// prefix.
fn check_namespace(name: &[u8]) -> Result<()> {
    for prefix in [&b"user."[..], b"trusted.", b"security."] {
        match name.strip_prefix(prefix) {
            Some([]) => return Err(Error::Invalid("the name of an attribute ends with its namespace")),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    if acl::is_acl(name) { Ok(()) } else { Err(Error::NotSupported) }
}
