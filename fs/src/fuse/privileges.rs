//! Set-user-id and set-group-id, where their fate depends on the caller: on a mount that handles privileges
//! itself (FUSE_HANDLE_KILLPRIV_V2) the kernel leaves this to us, and does not tell all that it knows of the
//! caller.

use std::fs;

use fuser::Request;
use karapace_store::inode::{FileKind, Ino};

use super::Shared;
use crate::attr::{Attr, SetAttr};
use crate::error::Result;
use crate::view::View;

/// What the kernel sends as user id when it sends none: on a mount that allows id-mapping (FUSE_ALLOW_IDMAP),
/// in all requests except those that create something (`fuse_get_req` in fs/fuse/dev.c).
const NO_ID: u32 = u32::MAX;

impl Shared {
    /// The user id with which the caller accesses files, as the host sees it. If the request has none, it is
    /// read from /proc, where it stays valid because the caller waits for the answer; [`NO_ID`] for a process
    /// in another process namespace.
    pub(super) fn caller_uid(req: &Request) -> u32 {
        if req.uid() != NO_ID {
            return req.uid();
        }
        let status = status_of(req.pid());
        ids_in(&status, "Uid:").nth(FILE_ACCESS_ID).unwrap_or(NO_ID)
    }

    /// Whether to honour a request that only drops set-user-id. The kernel sends one before a write, having
    /// checked write permission, but also when any user calls chown(2) without ids; that must not take
    /// set-user-id from another user's program. (A write through an inherited descriptor says itself what to
    /// drop, and for fallocate(2) see [`Shared::drop_set_id_for`].)
    pub(super) fn may_drop_privileges(&self, req: &Request, view: &View, ino: Ino) -> Result<bool> {
        let attr = view.getattr(ino)?;
        let uid = Shared::caller_uid(req);
        let owns = uid == 0 || (req.uid() != NO_ID && uid == self.ids.shown_uid(attr.uid));
        Ok(!self.kernel_permissions() || owns || attr.mode & 0o022 != 0)
    }

    /// Drops set-user-id, set-group-id and file capabilities, like a chown to the current owner.
    pub(super) fn drop_set_id(view: &View, ino: Ino) -> Result<Attr> {
        view.setattr(ino, &SetAttr { kill_priv: true, ..SetAttr::default() })
    }

    /// Called before fallocate(2), which unlike a write has no flag for this: drops the bits that a caller
    /// other than root may not keep.
    pub(super) fn drop_set_id_for(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let set_id = view.getattr(ino)?.mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        if !self.kernel_permissions() || !set_id || Shared::caller_uid(req) == 0 {
            return Ok(());
        }
        self.drop_foreign_set_gid(req, view, ino)?;
        Shared::drop_set_id(view, ino).map(drop)
    }

    /// Drops set-group-id if the caller is not in the group, before it changes a file's content or owner.
    /// Covers the case that the view leaves out, in which the bit does not mean execution
    /// (`setattr_should_drop_sgid` in the kernel).
    pub(super) fn drop_foreign_set_gid(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let mode = view.getattr(ino)?.mode;
        let file = FileKind::from_mode(mode) != Some(FileKind::Directory);
        if file && mode & libc::S_IXGRP == 0 { self.drop_any_foreign_set_gid(req, view, ino) } else { Ok(()) }
    }

    /// Drops set-group-id if the caller is not in the group.
    pub(super) fn drop_any_foreign_set_gid(&self, req: &Request, view: &View, ino: Ino) -> Result<()> {
        let attr = view.getattr(ino)?;
        if attr.mode & libc::S_ISGID == 0 || self.is_in_group(req, self.ids.shown_gid(attr.gid)) {
            return Ok(());
        }
        view.setattr(ino, &SetAttr { without: libc::S_ISGID, ..SetAttr::default() }).map(drop)
    }

    /// Whether the caller is in a group, by its file access group or supplementary groups, or is root, who
    /// need not be. The caller waits for the answer to its request, so what /proc says about it is current.
    /// On mounts where requests have no ids, only root counts as a member: /proc has the host's ids, and the
    /// mount may show others.
    fn is_in_group(&self, req: &Request, gid: u32) -> bool {
        if Shared::caller_uid(req) == 0 {
            return true;
        }
        let is_it = |group: u32| self.ids.own_gid(group) == Some(gid);
        req.uid() != NO_ID && (req.gid() == gid || ids_in(&status_of(req.pid()), "Groups:").any(is_it))
    }
}

/// Index of the file access id in the lines `Uid:` and `Gid:` of proc_pid_status(5).
const FILE_ACCESS_ID: usize = 3;

/// proc_pid_status(5) of a caller; empty if it is in another process namespace, which numbers processes
/// differently.
fn status_of(pid: u32) -> String {
    let path = format!("/proc/{pid}/status");
    fs::read_to_string(&path).unwrap_or_else(|error| {
        tracing::debug!(path, %error, "cannot read the caller's ids");
        String::new()
    })
}

/// The ids in one line of proc_pid_status(5).
fn ids_in<'a>(status: &'a str, name: &str) -> impl Iterator<Item = u32> + use<'a> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or("").split_ascii_whitespace().filter_map(|id| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_process() {
        let status = "Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t7\t7\t7\t7\nGroups:\t4 24 1000 \nNStgid:\t9\n";
        assert_eq!(ids_in(status, "Groups:").collect::<Vec<_>>(), [4, 24, 1000]);
        assert_eq!(ids_in(status, "Uid:").nth(FILE_ACCESS_ID), Some(4));
        assert_eq!(ids_in("Groups:\t \n", "Groups:").count() + ids_in("", "Groups:").count(), 0);
    }
}
